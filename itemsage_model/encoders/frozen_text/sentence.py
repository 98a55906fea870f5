"""Any local sentence-transformers folder as a frozen text encoder, projected to 256 dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from itemsage_model.encoders.frozen_text.text_encoder import Vectors, hash8, unit
from itemsage_model.encoders.model_folder import folder_sha256
from itemsage_model.encoders.projection import leading_directions
from schemas.errors import InputError, SettingsError


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A local sentence-transformers model, projected to 256 dimensions; to none less, as a part of a joined encoder.

    Wider models are projected on the leading eigenvectors of the catalog texts' second moments (a PCA without
    centring, which keeps dot products as nearly as 256 dimensions can); narrower ones are padded with zeros.

    Attributes:
        folder: The model's local folder, which every Spark worker must see.
        projection: float32 [model width, dimension].
        folder_hash: sha256 of the folder's files and their names; each process that loads the model compares it.
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
    def model(self) -> Any:
        """The loaded model; refused where the folder holds other files than it was fitted with."""
        found = folder_sha256(self.folder)
        if found != self.folder_hash:
            raise InputError(
                f"query encoder {self.folder}",
                "(files)",
                expected=f"the files it was fitted with (sha256 {self.folder_hash})",
                found=f"others (sha256 {found})",
                cure="Give every machine the same folder, or run embed_queries and all stages after it again.",
            )
        return _load_sentence_transformer(self.folder)

    def encode(self, texts: list[str]) -> Vectors:
        """See `TextEncoder`; only a blank text is unknown to it."""
        if not texts:
            return np.zeros((0, self.projection.shape[1]), dtype=np.float32)
        is_known = np.array([bool(text.strip()) for text in texts], dtype=np.float32)
        return unit(_sentence_vectors(self.model, texts) @ self.projection * is_known[:, None])


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
    return SentenceEncoder(folder, projection, folder_sha256(folder), explained)


def whole_sentence_encoder(folder: str) -> SentenceEncoder:
    """A local sentence-transformers model at its own width.

    Raises:
        SettingsError: the extra is not installed or the folder is missing.
    """
    width = _sentence_vectors(_load_sentence_transformer(folder), ["width"]).shape[1]
    return SentenceEncoder(folder, np.eye(width, dtype=np.float32), folder_sha256(folder), 1.0)


def _load_sentence_transformer(folder: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415  (an optional extra, seconds to import)
    except ImportError as error:
        raise SettingsError(
            "query_encoder.kind = 'sentence_transformers' and 'joined' need an extra: run `make sentence-transformers` "
            "(pip install -r requirements-sentence-transformers.txt), or set query_encoder.kind = 'lsa'"
        ) from error
    if not Path(folder).is_dir():
        raise SettingsError(f"query_encoder.folder = {folder!r} is no folder: name a local sentence-transformers model")
    # On the CPU everywhere, so that driver and workers agree on the last bits.
    return SentenceTransformer(folder, device="cpu", local_files_only=True)


def _sentence_vectors(model: Any, texts: list[str]) -> Vectors:
    vectors: Vectors = model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_numpy=True)
    return vectors.astype(np.float32)
