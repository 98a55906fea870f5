"""Any local sentence-transformers folder as a frozen text encoder, projected to 256 dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from itemsage_model.encoders.frozen_text.text_encoder import Vectors, hash8, unit
from itemsage_model.encoders.projection import leading_directions
from schemas.errors import SettingsError
from schemas.tables import EMBEDDING_DIM


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A local sentence-transformers model, projected to 256 dimensions.

    Wider models are projected on the leading eigenvectors of the catalog texts' second moments (a PCA without
    centring, which keeps dot products as nearly as 256 dimensions can); narrower ones are padded with zeros.

    Attributes:
        folder: The model's local folder, which every Spark worker must see.
        projection: float32 [model width, 256].
        folder_hash: Hash of the folder's files.
        explained_variance: See `TextEncoder`.
    """

    folder: str
    projection: npt.NDArray[np.float32]
    folder_hash: str
    explained_variance: float

    @cached_property
    def name(self) -> str:
        """`st-`, the folder's name, and a hash of model files and projection."""
        return f"st-{Path(self.folder).name}-{hash8(self.folder_hash.encode(), self.projection)}"

    @cached_property
    def _model(self) -> Any:
        return _load_sentence_transformer(self.folder)

    def encode(self, texts: list[str]) -> Vectors:
        """See `TextEncoder`; only a blank text is unknown to it."""
        if not texts:
            return np.zeros((0, EMBEDDING_DIM), dtype=np.float32)
        is_known = np.array([bool(text.strip()) for text in texts], dtype=np.float32)
        return unit(_sentence_vectors(self._model, texts) @ self.projection * is_known[:, None])


def fit_sentence_encoder(folder: str, texts: list[str]) -> SentenceEncoder:
    """Project a local sentence-transformers model to 256 dimensions, on the texts' second moments where it is wider.

    Raises:
        ValueError: every text is blank.
        SettingsError: the extra is not installed or the folder is missing.
    """
    model = _load_sentence_transformer(folder)
    known = sorted({text for text in texts if text.strip()})
    if not known:
        raise ValueError("every text is blank")
    projection, explained = leading_directions(_sentence_vectors(model, known))
    return SentenceEncoder(folder, projection, _folder_hash(folder), explained)


def _folder_hash(folder: str) -> str:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return hash8(*(path.read_bytes() for path in files))


def _load_sentence_transformer(folder: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415  (an optional extra, seconds to import)
    except ImportError as error:
        raise SettingsError(
            "query_encoder.kind = 'sentence_transformers' needs an extra: run `make sentence-transformers` (pip "
            "install -r requirements-sentence-transformers.txt), or set query_encoder.kind = 'lsa'"
        ) from error
    if not Path(folder).is_dir():
        raise SettingsError(f"query_encoder.folder = {folder!r} is no folder: name a local sentence-transformers model")
    # On the CPU everywhere, so that driver and workers agree on the last bits.
    return SentenceTransformer(folder, device="cpu", local_files_only=True)


def _sentence_vectors(model: Any, texts: list[str]) -> Vectors:
    vectors: Vectors = model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_numpy=True)
    return vectors.astype(np.float32)
