"""The encoder as one writes it with the library's layer, and its cheaper cousin, both around the project's weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.encoders.encoder import Block, Encoder, Fold, Tokens
from itemsage_model.encoders.hash_embedding import HashEmbedding
from itemsage_model.encoders.item_tower import ItemTower


class PlainEncoder(nn.Module):
    """`nn.TransformerEncoderLayer` over the whole sequence, then the head at [CLS].

    Args:
        encoder: A one-block encoder, whose weights are copied.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        block = _block(encoder)
        width, hidden, head_width = len(encoder.cls), len(_bias(block.feed_forward[0])), len(_bias(encoder.head[1]))
        dim = len(_bias(encoder.head[3]))
        self.cls = nn.Parameter(encoder.cls.detach().clone())
        self.projections = nn.ModuleDict(
            {name: nn.Linear(ours.in_features, width) for name, ours in encoder.projections.items()}  # type: ignore[arg-type]
        )
        self.layer = nn.TransformerEncoderLayer(
            width, block.heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, head_width),
            nn.GELU(),
            nn.Linear(head_width, dim),
        )
        self.to(encoder.cls.dtype)
        self.projections.load_state_dict(encoder.projections.state_dict())
        self.head.load_state_dict(encoder.head.state_dict())
        # Ours has no bias on the keys, which no output depends on.
        no_bias = torch.zeros_like(block.query.bias)
        self.layer.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([block.query.weight, block.key.weight, block.value.weight]),
                "self_attn.in_proj_bias": torch.cat([block.query.bias, no_bias, block.value.bias]),
                "self_attn.out_proj.weight": block.output.weight,
                "self_attn.out_proj.bias": block.output.bias,
                **{f"linear1.{name}": value for name, value in block.feed_forward[0].state_dict().items()},
                **{f"linear2.{name}": value for name, value in block.feed_forward[2].state_dict().items()},
                **{f"norm1.{name}": value for name, value in block.attention_norm.state_dict().items()},
                **{f"norm2.{name}": value for name, value in block.feed_forward_norm.state_dict().items()},
            }
        )
        self.train(encoder.training)

    def forward(self, sequence: dict[str, Tokens], fold: Fold | None = None) -> Float[Tensor, "item dim"]:
        """Encode items, as `Encoder` does; there is nothing to fold."""
        hidden, is_present = project(self.projections, self.cls, sequence)
        hidden = self.layer(hidden, src_key_padding_mask=~is_present)
        return F.normalize(self.head(hidden[:, 0]), dim=-1)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The gradient of every parameter under the name that `Encoder` has for it."""
        parts = {name: parameter.grad for name, parameter in self.named_parameters()}
        names = {
            "layer.self_attn.out_proj": "output",
            "layer.linear1": "feed_forward.0",
            "layer.linear2": "feed_forward.2",
            "layer.norm1": "attention_norm",
            "layer.norm2": "feed_forward_norm",
        }
        for kind in ("weight", "bias"):
            whole = parts.pop(f"layer.self_attn.in_proj_{kind}")
            assert whole is not None
            for name, part in zip(("query", "key", "value"), whole.chunk(3), strict=True):
                if (name, kind) != ("key", "bias"):
                    yield f"blocks.0.{name}.{kind}", part
        for name, gradient in parts.items():
            module, _, kind = name.rpartition(".")
            assert gradient is not None, name
            yield f"blocks.0.{names[module]}.{kind}" if module in names else name, gradient


class ClsQueryEncoder(nn.Module):
    """Keys and values of all tokens, but query, feed-forward and head at [CLS] only.

    Args:
        encoder: The encoder, whose modules are shared.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, sequence: dict[str, Tokens], fold: Fold | None = None) -> Float[Tensor, "item dim"]:
        """Encode items, as `Encoder` does."""
        hidden, is_present = project(self.encoder.projections, self.encoder.cls, sequence)
        return F.normalize(self.encoder.head(_block(self.encoder)(hidden, is_present, 1)[:, 0]), dim=-1)


class PlainHashEmbedding(nn.Module):
    """The hash embedding as one writes it: a weighted `embedding_bag` over every token of every text by itself.

    Args:
        ours: The embedding whose tables are copied.
    """

    slots: Tensor

    def __init__(self, ours: HashEmbedding) -> None:
        super().__init__()
        self.table = nn.Parameter(ours.table.detach().clone())
        self.importance = nn.Parameter(ours.importance.detach().clone())
        self.register_buffer("slots", ours.slots, persistent=False)

    def forward(self, token_ids: Tensor, token_counts: Tensor) -> Tensor:
        """Embed texts, as `HashEmbedding` does."""
        rows, weights = self.slots[token_ids], F.embedding(token_ids, self.importance)
        offsets = F.pad(token_counts.cumsum(0), (1, 0)) * rows.shape[1]
        return F.embedding_bag(
            rows.flatten(),
            self.table,
            offsets,
            mode="sum",
            per_sample_weights=weights.flatten(),
            include_last_offset=True,
        )


def plain_tower(tower: ItemTower) -> ItemTower:
    """The same tower with the plain encoder and the plain hash embedding in place of ours; changes `tower`."""
    tower.hash_embedding = PlainHashEmbedding(tower.hash_embedding)  # type: ignore[assignment]
    tower.encoder = PlainEncoder(tower.encoder)  # type: ignore[assignment, arg-type]
    return tower.train(tower.training)


def project(projections: nn.ModuleDict, cls: Tensor, sequence: dict[str, Tokens]) -> tuple[Tensor, Tensor]:
    """[CLS] and the projected tokens [item, 1 + slots, width], and which of them are there."""
    projected = [projections[name](tokens.padded()) for name, tokens in sequence.items()]
    hidden = torch.cat([cls.to(projected[0].dtype).expand(len(projected[0]), 1, -1), *projected], dim=1)
    masks = [tokens.is_present for tokens in sequence.values()]
    return hidden, torch.cat([masks[0].new_ones(len(hidden), 1), *masks], dim=1)


def _bias(module: nn.Module) -> Tensor:
    assert isinstance(module, nn.Linear)
    return module.bias


def _block(encoder: Encoder) -> Block:
    (block,) = encoder.blocks
    assert isinstance(block, Block)
    return block
