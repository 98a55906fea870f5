"""The shop's own text encoder, trained on its log: weights and tokenizer, so that no folder is needed elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from itemsage_model.encoders.frozen_text.text_encoder import Vectors, hash8
from itemsage_model.encoders.text_transformer import TextSpec, TextTransformer, by_length
from schemas.tables import EMBEDDING_DIM


@dataclass(frozen=True, eq=False)
class TrainedEncoder:
    """A transformer with its linear layer, as train_query_encoder left it.

    Attributes:
        spec: What the weights are.
        weights: float32, by the names of `TextTransformer`.
        explained_variance: See `TextEncoder`; the linear layer was trained, not fitted, so 1.
    """

    spec: TextSpec
    weights: dict[str, npt.NDArray[np.float32]]
    explained_variance: float = 1.0

    @cached_property
    def name(self) -> str:
        """`trained-` and a hash of weights, sizes and tokenizer."""
        sizes = [self.spec.config, self.spec.tokenizer, self.spec.pooling, self.spec.max_tokens]
        parts = [part for name in sorted(self.weights) for part in (name.encode(), self.weights[name])]
        return f"trained-{hash8(json.dumps(sizes, sort_keys=True).encode(), *parts)}"

    @cached_property
    def model(self) -> TextTransformer:
        """The transformer, ready to encode."""
        model = TextTransformer(self.spec)
        model.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in self.weights.items()})
        return model.eval().requires_grad_(False)

    def encode(self, texts: list[str]) -> Vectors:
        """See `TextEncoder`; only a blank text is unknown to it."""
        vectors = np.zeros((len(texts), EMBEDDING_DIM), np.float32)
        known = np.array([row for row, text in enumerate(texts) if text.strip()], np.int64)
        if len(known):
            ids = self.spec.token_ids([texts[row] for row in known])
            with torch.inference_mode():
                for rows, padded, mask in by_length(ids):
                    vectors[known[rows]] = self.model(padded, mask).numpy()
        return vectors
