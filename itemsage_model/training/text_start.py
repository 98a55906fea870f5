"""What a text encoder begins with: the shop's own of before, a pretrained one, or nothing but its texts' words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itemsage_model.encoders.frozen_text.sentence import SentenceEncoder
from itemsage_model.encoders.frozen_text.stored import load_recorded
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from itemsage_model.encoders.model_folder import folder_sha256
from itemsage_model.encoders.projection import leading_directions
from itemsage_model.encoders.text_transformer import (
    TextSpec,
    TextTransformer,
    by_length,
    read_folder,
    require_extra,
    require_fit,
)
from schemas.metrics import QueryMetrics
from schemas.records import RunRecord
from schemas.settings import Settings
from schemas.settings.search_text import SearchTextSettings

SCRATCH = "scratch"
_FIT_TEXTS = 20_000
"""Most texts that the linear layer is fitted on."""
_COMPARED_TEXTS, _ALIKE = 64, 1e-3
"""Texts on which a folder's encoder must come to the frozen vectors, and how nearly, to be taken for that encoder."""
_SCRATCH_LETTERS, _MOST_COUNTED = 2_000, 1_000
_SCRATCH_WORDS, _SCRATCH_WIDTH, _SCRATCH_LAYERS = 8_000, 256, 2
_UNKNOWN = "[UNK]"
_SPECIAL = ("[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class TextStart:
    """What a text encoder begins with.

    Attributes:
        name: Of the encoder whose weights it has; see `QueryTowerSpec.base`.
        spec: What the weights are.
        weights: By the names of `TextTransformer`; empty = fresh ones.
        is_one_space: Whether it gives texts the frozen vectors that the pairs' texts and items have.
    """

    name: str
    spec: TextSpec
    weights: dict[str, Tensor]
    is_one_space: bool

    def put_into(self, text: TextTransformer) -> None:
        """Give a transformer these weights."""
        if self.weights:
            text.load_state_dict(self.weights)


def text_start(settings: Settings, queries: RunRecord[QueryMetrics], space: str, texts: Sequence[str]) -> TextStart:
    """What training begins with.

    The encoder that the frozen vectors came from, where it was trained before; else the folder's transformer with a
    linear layer fitted on the texts, or as embed_queries has fitted it; without a folder, fresh weights.

    Args:
        settings: [search_text].
        queries: The record of embed_queries.
        space: That of the frozen vectors of texts and items; empty = two.
        texts: Distinct texts, sorted.

    Raises:
        SettingsError: the extra is not installed, or the folder holds no transformer.
        InputError: the warehouse holds another encoder than the record says.
    """
    wanted = settings.search_text
    frozen = load_recorded(settings.layout, queries.metrics.encoder)
    is_its_space = frozen is not None and frozen.name == space
    if isinstance(frozen, TrainedEncoder):
        _say_what_stays(frozen, wanted)
        weights = {name: torch.from_numpy(values.copy()) for name, values in frozen.weights.items()}
        return TextStart(frozen.name, frozen.spec, weights, is_its_space)
    if not wanted.folder:
        return _from_scratch(wanted, texts)
    config, tokenizer, plain = read_folder(wanted.folder)
    spec = TextSpec(config, tokenizer, wanted.pooling, wanted.max_tokens)
    weights = {f"transformer.{name}": tensor for name, tensor in plain.items()}
    require_fit(spec, weights)
    if isinstance(frozen, SentenceEncoder) and frozen.folder_hash == folder_sha256(wanted.folder):
        own = weights | _linear(torch.from_numpy(frozen.projection.copy()))
        if _comes_to(frozen, spec, own, texts):
            return TextStart(frozen.name, spec, own, is_its_space)
    projection, name = _fitted_projection(spec, weights, texts), f"folder-{folder_sha256(wanted.folder)[:8]}"
    return TextStart(name, spec, weights | _linear(projection), False)


def _linear(projection: Tensor) -> dict[str, Tensor]:
    """The linear layer of a projection [width, dim]."""
    return {"projection.weight": projection.T.contiguous(), "projection.bias": torch.zeros(projection.shape[1])}


def _say_what_stays(frozen: TrainedEncoder, wanted: SearchTextSettings) -> None:
    """That training goes on from a trained encoder with its own sizes, where the settings ask for others."""
    for name, own in (("pooling", frozen.spec.pooling), ("max_tokens", frozen.spec.max_tokens)):
        if getattr(wanted, name) != own:
            print(f"  warning: training goes on from {frozen.name}, which keeps its {name} of {own}: "
                  f"search_text.{name} = {getattr(wanted, name)} is not used.", flush=True)  # fmt: skip


def _comes_to(frozen: SentenceEncoder, spec: TextSpec, weights: dict[str, Tensor], texts: Sequence[str]) -> bool:
    """Whether weights give some texts, of those that are not cut, the vectors of the frozen encoder; said if not.

    A folder may pool otherwise than search_text.pooling, or have a layer of its own behind its transformer.
    """
    lengths = map(len, spec.token_ids(texts))
    whole = [text for text, length in zip(texts, lengths, strict=True) if length < spec.max_tokens and text.strip()]
    sample = whole[:: max(1, len(whole) // _COMPARED_TEXTS)][:_COMPARED_TEXTS]
    found = TrainedEncoder(spec, {name: values.numpy() for name, values in weights.items()}).encode(sample)
    apart = float(np.abs(found - frozen.encode(sample)).max(initial=0.0))
    if apart <= _ALIKE:
        return True
    print(f"  warning: with search_text.pooling = {spec.pooling!r}, search_text.folder's transformer does not come to "
          f"the vectors of {frozen.name} (up to {apart:.2f} apart): training begins farther from them.",
          flush=True)  # fmt: skip
    return False


def _fitted_projection(spec: TextSpec, weights: dict[str, Tensor], texts: Sequence[str]) -> Tensor:
    """The directions that keep most of the pooled vectors of some texts [width, dim]; see `leading_directions`."""
    text = TextTransformer(spec)
    text.load_state_dict(weights, strict=False)
    width = text.projection.in_features
    text.projection = torch.nn.Linear(width, width)
    with torch.inference_mode():
        text.projection.weight.copy_(torch.eye(width))
        text.projection.bias.zero_()
        sample = list(texts)[:: max(1, -(-len(texts) // _FIT_TEXTS))]
        parts = [text.eval()(padded, mask) for _, padded, mask in by_length(spec.token_ids(sample))]
    return torch.from_numpy(leading_directions(torch.cat(parts).numpy())[0])


def _from_scratch(wanted: SearchTextSettings, texts: Sequence[str]) -> TextStart:
    """Fresh weights, and a tokenizer of the texts' own pieces of words; said loudly."""
    print("  warning: search_text.folder names no pretrained encoder, so this one begins with random weights and knows "
          "no word that the log does not have. Name a local folder, such as that of MiniLM, for a far better one.",
          flush=True)  # fmt: skip
    tokenizer = word_pieces(texts)
    config: dict[str, Any] = {
        "model_type": "bert", "vocab_size": _SCRATCH_WORDS, "hidden_size": _SCRATCH_WIDTH,
        "num_hidden_layers": _SCRATCH_LAYERS, "num_attention_heads": 4, "intermediate_size": 4 * _SCRATCH_WIDTH,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return TextStart(SCRATCH, TextSpec(config, tokenizer, wanted.pooling, wanted.max_tokens), {}, False)


def word_pieces(texts: Sequence[str]) -> str:
    """A WordPiece tokenizer of the most frequent words of some texts, and of their characters for all others, as JSON.

    Counted here, as the trainer of the package tokenizers gives another vocabulary in every process.
    """
    require_extra()
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    split = (splitter.pre_tokenize_str(normalizer.normalize_str(text)) for text in texts)
    words = Counter(word for of_text in split for word, _ in of_text)
    letters = Counter(letter for word, count in words.items() for letter in word * min(count, _MOST_COUNTED))
    known = _by_frequency(letters)[:_SCRATCH_LETTERS]
    pieces = [*_SPECIAL, *known, *(f"##{letter}" for letter in known), *_by_frequency(words)]
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(pieces)) if number < _SCRATCH_WORDS}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token=_UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    ends = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return str(tokenizer.to_str())


def _by_frequency(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))
