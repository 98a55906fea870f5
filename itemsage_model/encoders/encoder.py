"""The item encoder, in the order of the paper's Figure 3: projections, [CLS], one transformer block, head.

Only the [CLS] output of the block is read, and with one block the [CLS] *input* is the same for every item.
So the query of [CLS] is a constant: keys and values of the tokens are never formed. Each head scores a raw
feature by one dot product with a folded vector, pools the raw features, and projects once per item.
This is the same function of the same parameters (the tests hold it against nn.TransformerEncoderLayer),
at about a seventeenth of the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

_EMPTY_ROWS = 64
"""With a single one, a GPU would add the gradients of all empty slots to it one after another."""


@dataclass(frozen=True)
class Tokens:
    """One modality's part of the sequence: which slots hold a feature, and those features, slot after slot."""

    features: Float[Tensor, "present feature"]
    is_present: Bool[Tensor, "item slot"]

    def padded(self) -> Float[Tensor, "item slot feature"]:
        """The features at their slots, zero where there is none."""
        return self.at_slots(self.features, 0.0)

    def at_slots(self, values: Float[Tensor, "present value"], empty: float) -> Float[Tensor, "item slot value"]:
        """One value a feature, placed at the feature's slot; `empty` at the slots without a feature."""
        if len(values) < self.is_present.numel():
            # Picking rows, the last ones `empty`, is half as long as writing them to their places.
            empties = values.new_full((_EMPTY_ROWS, values.shape[1]), empty)
            values = torch.cat([values, empties]).index_select(0, self._rows)
        return values.view(*self.is_present.shape, -1)

    @cached_property
    def _rows(self) -> Int[Tensor, "item_slot"]:
        """Which feature each slot holds; an empty row, one after another, where it holds none."""
        is_present = self.is_present.flatten()
        empty = len(self.features) + torch.arange(len(is_present), device=is_present.device) % _EMPTY_ROWS
        return torch.where(is_present, is_present.cumsum(0) - 1, empty)


@dataclass(frozen=True)
class ModalityFold:
    """What remains of one modality's projection, the block's first norm and its keys and values.

    Attributes:
        scores: Columns: the Gram matrix G (feature), a score vector a head.
        bias: What is added to a feature's product with them: the linear term of the variance, each head's constant.
        variance: Constant term of the variance.
        values: Value projection of the raw features, per head.
        value_bias: Value of the projection's bias, per head.
    """

    scores: Float[Tensor, "feature folded"]
    bias: Float[Tensor, "folded"]
    variance: Float[Tensor, ""]
    values: Float[Tensor, "head feature head_dim"]
    value_bias: Float[Tensor, "head head_dim"]

    def to(self, dtype: torch.dtype) -> ModalityFold:
        """The constants of this modality in another precision."""
        return ModalityFold(*(getattr(self, field.name).to(dtype) for field in fields(self)))


@dataclass(frozen=True)
class Fold:
    """All constants of the single-block encoder; computed on the fly in training, once at load time for scoring."""

    modalities: dict[str, ModalityFold]
    cls_score: Float[Tensor, "head"]
    cls_value: Float[Tensor, "head head_dim"]
    value_shift: Float[Tensor, "width"]

    def to(self, dtype: torch.dtype) -> Fold:
        """All constants in another precision."""
        modalities = {name: part.to(dtype) for name, part in self.modalities.items()}
        return Fold(modalities, self.cls_score.to(dtype), self.cls_value.to(dtype), self.value_shift.to(dtype))


class Block(nn.Module):
    """A pre-norm transformer block: attention and feed-forward, each behind a layer norm, each added to its input.

    Assumed: pre-norm, GELU, no dropout (the paper states neither; its head begins with its own layer norm).
    Keys have no bias: it adds the same number to all scores of a query, which softmax cancels, so it could never learn.
    """

    def __init__(self, width: int, heads: int, feed_forward_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, feed_forward_width), nn.GELU(), nn.Linear(feed_forward_width, width)
        )

    def forward(
        self, sequence: Float[Tensor, "item token width"], is_present: Bool[Tensor, "item token"], positions: int
    ) -> Float[Tensor, "item position width"]:
        """Run the block, computing its outputs at the first `positions` tokens only.

        Args:
            sequence: The token vectors, [CLS] first.
            is_present: Tokens that may be attended to.
            positions: How many leading tokens the caller reads.
        """
        normed = self.attention_norm(sequence)
        attended = F.scaled_dot_product_attention(
            self._split(self.query(normed[:, :positions])),
            self._split(self.key(normed)),
            self._split(self.value(normed)),
            attn_mask=is_present[:, None, None, :],
        )
        # [item, head, position, head_dim] -> [item, position, width]
        merged = attended.transpose(1, 2).flatten(2)
        return self.after_attention(sequence[:, :positions], merged)

    def after_attention(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residual, feed-forward; `attended` holds the heads' values side by side."""
        hidden: Tensor = residual + self.output(attended)
        result: Tensor = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        return result

    def _split(self, vectors: Tensor) -> Tensor:
        # [item, token, width] -> [item, head, token, head_dim]
        return vectors.view(*vectors.shape[:-1], self.heads, -1).transpose(1, 2)


class Encoder(nn.Module):
    """Feature sequence -> one unit-length embedding an item.

    Source: ItemSage section 3.2 and Figure 3.
    Assumed: no positional or token-type embedding (none is drawn), each modality has its own projection.
    Differs from the paper: none in function; with one block it is evaluated in folded form.

    Args:
        modalities: The sequence's parts, such as text and images, and the length of a raw feature of each.
        width: Width of the transformer.
        layers: Number of blocks; more than one cannot be folded, and the last reads out at [CLS] only.
        heads: Attention heads.
        feed_forward_width: Hidden width of a block.
        head_width: Hidden width of the output head.
        dim: Length of the embedding.
    """

    def __init__(
        self,
        modalities: dict[str, int],
        width: int,
        layers: int,
        heads: int,
        feed_forward_width: int,
        head_width: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({name: nn.Linear(length, width) for name, length in modalities.items()})
        self.cls = nn.Parameter(torch.randn(width))
        self.blocks = nn.ModuleList(Block(width, heads, feed_forward_width) for _ in range(layers))
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, head_width), nn.GELU(), nn.Linear(head_width, dim)
        )

    def forward(self, sequence: dict[str, Tokens], fold: Fold | None = None) -> Float[Tensor, "item dim"]:
        """Encode items.

        Args:
            sequence: Each modality's features and mask; the order of slots does not matter.
            fold: Constants from `fold()`, where the weights no longer change.

        Returns:
            Unit-length embeddings.
        """
        hidden = self._folded(sequence, fold or self.fold()) if len(self.blocks) == 1 else self._unfolded(sequence)
        embeddings = self.head(hidden)
        # In half precision a vector's length would be off by up to .4 %.
        return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)

    def fold(self) -> Fold:
        """The constants of the single-block encoder, with gradient; never in bfloat16, being sums of squares.

        Notation: z = W x + b is a projected feature, LN(z) = g (z - m) / d + s its layer norm.
        """
        with torch.autocast(self.cls.device.type, enabled=False):
            return self._fold()

    def _fold(self) -> Fold:
        block: Block = self.blocks[0]  # type: ignore[assignment]
        norm, heads = block.attention_norm, block.heads
        head_dim = self.cls.numel() // heads
        query = block.query(norm(self.cls)).view(heads, head_dim) / math.sqrt(head_dim)
        # u_h = g Wk_h^T q_h, centred, so that the mean of z drops out; [head, width]
        keys = torch.einsum("hd,hdw->hw", query, block.key.weight.view(heads, head_dim, -1)) * norm.weight
        keys = keys - keys.mean(-1, keepdim=True)
        # g Wv, centred likewise; [width, width]
        values = block.value.weight * norm.weight
        values = values - values.mean(-1, keepdim=True)
        scaled_cls = self.cls * torch.rsqrt(self.cls.var(unbiased=False) + norm.eps)
        modalities = {
            name: _fold_modality(projection.weight, projection.bias, keys, values)  # type: ignore[arg-type]
            for name, projection in self.projections.items()
        }
        return Fold(
            modalities=modalities,
            cls_score=keys @ scaled_cls,
            cls_value=(values @ scaled_cls).view(heads, head_dim),
            value_shift=block.value(norm.bias),
        )

    def _folded(self, sequence: dict[str, Tokens], fold: Fold) -> Float[Tensor, "item width"]:
        block: Block = self.blocks[0]  # type: ignore[assignment]
        present = [(tokens, fold.modalities[name]) for name, tokens in sequence.items()]
        scored = [_scores(tokens, part, block.attention_norm.eps) for tokens, part in present]
        items = scored[0][0].shape[0]
        # softmax over [CLS] and every slot of every modality; [item, 1 + slots, head]
        logits = torch.cat([fold.cls_score.expand(items, 1, -1), *(scores for scores, _ in scored)], dim=1)
        attention = logits.softmax(dim=1)
        value = attention[:, 0, :, None] * fold.cls_value
        start = 1
        for (tokens, part), (_, inverse_deviation) in zip(present, scored, strict=True):
            stop = start + tokens.is_present.shape[1]
            weights = attention[:, start:stop] * inverse_deviation[..., None]
            start = stop
            # pool the raw features per head, then project: [item, head, feature] -> [item, head, head_dim]
            pooled = weights.transpose(1, 2) @ tokens.padded()
            value = value + (pooled.transpose(0, 1) @ part.values).transpose(0, 1)
            value = value + weights.sum(1)[..., None] * part.value_bias
        return block.after_attention(self.cls, value.flatten(1) + fold.value_shift)  # type: ignore[no-any-return]

    def _unfolded(self, sequence: dict[str, Tokens]) -> Float[Tensor, "item width"]:
        projected = [self.projections[name](tokens.padded()) for name, tokens in sequence.items()]
        items = projected[0].shape[0]
        hidden = torch.cat([self.cls.expand(items, 1, -1), *projected], dim=1)
        masks = [tokens.is_present for tokens in sequence.values()]
        is_present = torch.cat([masks[0].new_ones(items, 1), *masks], dim=1)
        for block in self.blocks[:-1]:
            hidden = block(hidden, is_present, hidden.shape[1])
        return self.blocks[-1](hidden, is_present, 1)[:, 0]  # type: ignore[no-any-return]


def _fold_modality(weight: Tensor, bias: Tensor, keys: Tensor, values: Tensor) -> ModalityFold:
    """Fold one projection (W, b) into keys u [head, width] and values g Wv [width, width], both centred."""
    heads, width = keys.shape
    centred_weight, centred_bias = weight - weight.mean(0), bias - bias.mean()
    gram = centred_weight.T @ centred_weight / width
    linear = 2 * (centred_bias @ centred_weight) / width
    return ModalityFold(
        scores=torch.cat([gram, (keys @ weight).T], dim=1),
        bias=torch.cat([linear, keys @ bias]),
        variance=centred_bias.square().mean(),
        # [width, feature] -> [head, feature, head_dim]
        values=(values @ weight).view(heads, width // heads, -1).transpose(1, 2),
        value_bias=(values @ bias).view(heads, width // heads),
    )


def _scores(tokens: Tokens, fold: ModalityFold, epsilon: float) -> tuple[Tensor, Tensor]:
    """Attention scores [item, slot, head] and inverse deviation [item, slot] of the projected tokens.

    Computed for the slots that hold something, often a quarter of them; the others score -inf and weigh 0.
    """
    features = tokens.features
    dim = features.shape[1]
    # One product with 264 columns: tensor cores want a multiple of 8.
    gram, raw_scores = torch.split(torch.addmm(fold.bias, features, fold.scores), [dim, len(fold.bias) - dim], dim=1)
    variance = (gram * features).sum(1, keepdim=True) + fold.variance
    inverse_deviation = torch.rsqrt(variance.clamp_min(0) + epsilon)
    scores = raw_scores * inverse_deviation
    return tokens.at_slots(scores, -math.inf), tokens.at_slots(inverse_deviation, 0.0).squeeze(-1)
