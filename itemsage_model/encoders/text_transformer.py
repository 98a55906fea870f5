"""Texts -> vectors by a transformer: token ids in batches of like length, pooled, and one linear layer to 256.

The door to the package transformers. What a transformer is stands in plain values, so that it can be built where the
folder that it came from is not: a tower's model file and a stored text encoder hold all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import SettingsError
from schemas.tables import EMBEDDING_DIM

Pooling = Literal["mean", "cls"]

_TEXTS_AT_ONCE = 64
_OF_A_FOLDER = ("_name_or_path", "transformers_version", "architectures", "id2label", "label2id", "dtype")
_WITHOUT_DROPOUT = {
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
_EXTRA = (
    "a text encoder of your own needs an extra: run `make sentence-transformers` "
    "(pip install -r requirements-sentence-transformers.txt)"
)


@dataclass(frozen=True)
class TextSpec:
    """What one must know to turn texts into token ids, and to read the weights of a `TextTransformer`.

    Attributes:
        config: The transformer's sizes, as the package transformers calls them.
        tokenizer: Its tokenizer, as the JSON of the package tokenizers.
        pooling: Of its last layer: the mean over the text's tokens, or the vector of the first one, [CLS].
        max_tokens: A longer text is cut.
    """

    config: dict[str, Any]
    tokenizer: str
    pooling: Pooling
    max_tokens: int

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, with those that begin and end it; the token 0 where there would be none."""
        return [one.ids or [0] for one in self.cut_tokenizer().encode_batch(list(texts))]

    def cut_tokenizer(self) -> Any:
        """The tokenizer, cut at the longest text and without padding."""
        require_extra()
        from tokenizers import Tokenizer  # noqa: PLC0415 (an optional extra)

        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        return tokenizer


class TextTransformer(nn.Module):
    """A transformer, its pooling and a linear layer; vectors of unit length.

    Source: SearchSage (Pancha et al. 2021, Pinterest Engineering): DistilBERT, its [CLS] vector, linear to 256.
    Differs from the paper: any encoder of that family; the mean over the tokens is the default, as MiniLM was trained.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.pooling = spec.pooling
        self.transformer = _empty_transformer(spec.config)
        self.projection = nn.Linear(int(self.transformer.config.hidden_size), EMBEDDING_DIM)
        nn.init.zeros_(self.projection.bias)
        self._frozen_layers = 0

    def forward(
        self, tokens: Shaped[Tensor, "text token ..."], mask: Int[Tensor, "text token"]
    ) -> Float[Tensor, "text dim"]:
        """Embed texts.

        Args:
            tokens: Ids of tokens, or what `lower` made of them.
            mask: 1 where a token stands, 0 where a shorter text is filled up.
        """
        if tokens.is_floating_point():
            hidden = self._upper(tokens, mask)
        else:
            hidden = self.transformer(input_ids=tokens, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask[..., None].to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return F.normalize(self.projection(pooled), dim=-1)

    def freeze_below(self, layers: int) -> None:
        """Leave all but the last `layers` layers as they are, or none where there are no more; -1 = train all of it."""
        if layers < 0:
            return
        stack = _layers(self.transformer)
        self._frozen_layers = max(0, len(stack) - layers)
        self.transformer.requires_grad_(False)
        for layer in stack[self._frozen_layers :]:
            layer.requires_grad_(True)

    @torch.no_grad()
    def lower(
        self, ids: Int[Tensor, "text token"], mask: Int[Tensor, "text token"]
    ) -> Float[Tensor, "text token width"]:
        """What the layers that stay as they are make of texts: the same in every step, so it can be kept."""
        found = self.transformer(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        hidden: Tensor = found.hidden_states[self._frozen_layers]
        return hidden

    @torch.no_grad()
    def can_go_on_from_lower(self) -> bool:
        """Whether the layers that learn, called one by one, make the same of `lower` as the whole transformer does."""
        if not self._frozen_layers:
            return False
        device = self.projection.weight.device
        ids, mask = (
            torch.tensor([[1, 2, 3], [4, 5, 0]], device=device),
            torch.tensor([[1, 1, 1], [1, 1, 0]], device=device),
        )
        try:
            return torch.allclose(self(self.lower(ids, mask), mask), self(ids, mask), atol=1e-5)
        except (TypeError, RuntimeError, IndexError):  # layers that want more than their input and a mask
            return False

    def _upper(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The layers that learn, of the output of those that do not."""
        # What is added to a score: nothing, or so much that a place without a token counts nothing.
        added = (1 - mask[:, None, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in _layers(self.transformer)[self._frozen_layers :]:
            found = layer(hidden, added)
            hidden = found[0] if isinstance(found, tuple) else found
        return hidden


def by_length(tokens: Sequence[Sequence[int]] | Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Texts in batches of like length: which texts they are, their tokens and their mask [text, token].

    Args:
        tokens: The ids of each text's tokens, or a vector of each token [token, width].
    """
    order = sorted(range(len(tokens)), key=lambda row: (len(tokens[row]), row))
    for first in range(0, len(order), _TEXTS_AT_ONCE):
        rows = order[first : first + _TEXTS_AT_ONCE]
        parts = [torch.as_tensor(tokens[row]) for row in rows]
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        lengths = torch.tensor([len(part) for part in parts])
        yield rows, padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()


def read_folder(folder: str) -> tuple[dict[str, Any], str, dict[str, Tensor]]:
    """The sizes, the tokenizer and the weights of a transformer in a local folder.

    Raises:
        SettingsError: the extra is not installed, or there is no such folder, or no fast tokenizer in it.
    """
    transformers = _transformers()
    if not Path(folder).is_dir():
        raise SettingsError(f"search_text.folder = {folder!r} is no folder: name a local transformer, such as MiniLM")
    tokenizer = Path(folder) / "tokenizer.json"
    if not tokenizer.is_file():
        raise SettingsError(f"search_text.folder = {folder!r} holds no tokenizer.json: save its fast tokenizer there")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    # Of weights that are not used: they would not learn.
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("pooler.")}
    return _plain(model.config.to_dict()), tokenizer.read_text(encoding="utf-8"), weights


def require_fit(spec: TextSpec, weights: dict[str, Tensor]) -> None:
    """Refuse a tokenizer that knows more than its transformer, and texts longer than it can read: both before a step.

    Args:
        spec: Of a folder's transformer.
        weights: Of a `TextTransformer`; those that it lacks stay fresh.

    Raises:
        SettingsError: one of the two.
    """
    known, most = int(spec.config["vocab_size"]), spec.cut_tokenizer().get_vocab_size()
    if most > known:
        raise SettingsError(
            f"search_text.folder: its tokenizer.json has {most:,} pieces of words and its transformer knows {known:,}: "
            "the two are not of one model"
        )
    text = TextTransformer(spec)
    text.load_state_dict(weights, strict=False)
    ids = torch.full((1, spec.max_tokens), known - 1)
    try:
        with torch.inference_mode():
            text(ids, torch.ones_like(ids))
    except (IndexError, RuntimeError) as error:
        raise SettingsError(
            f"search_text.max_tokens = {spec.max_tokens}: search_text.folder's transformer cannot read a text of "
            f"so many tokens ({spec.config.get('max_position_embeddings', '?')} places); lower it"
        ) from error


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Sizes without what says where they came from, and without dropout: a resumed run must draw nothing anew."""
    kept = {name: value for name, value in config.items() if name not in _OF_A_FOLDER}
    return kept | {name: value for name, value in _WITHOUT_DROPOUT.items() if name in kept}


def _empty_transformer(config: dict[str, Any]) -> Any:
    transformers = _transformers()
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _layers(transformer: nn.Module) -> nn.ModuleList:
    """The stack of a transformer's layers: BERT calls it encoder.layer, DistilBERT transformer.layer."""
    stacks = [module for name, module in transformer.named_modules() if isinstance(module, nn.ModuleList) and name]
    return max(stacks, key=len)


def require_extra() -> None:
    """Refuse to go on without the packages transformers and tokenizers.

    Raises:
        SettingsError: one is not installed.
    """
    try:
        import tokenizers  # noqa: PLC0415, F401 (an optional extra)
        import transformers  # noqa: PLC0415, F401 (likewise, seconds to import)
    except ImportError as error:
        raise SettingsError(_EXTRA) from error


def _transformers() -> Any:
    require_extra()
    import transformers  # noqa: PLC0415 (an optional extra)

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers
