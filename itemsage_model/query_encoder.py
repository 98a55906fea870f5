"""The frozen text encoder: query text -> 256-d vectors. It stands where the paper has SearchSage.

Two kinds behind one interface: latent semantic analysis fitted on the catalog's own text (offline, deterministic), and
any local sentence-transformers folder. Saved as JSON and safetensors, never as a pickle.

Differs from the paper: SearchSage is trained on engagement; this encoder never sees any.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from schemas.records import read_bytes, write_bytes
from schemas.settings import QueryEncoderSettings, SettingsError
from schemas.tables import EMBEDDING_DIM

Vectors = npt.NDArray[np.float32]
"""One row a text, float32 [text, 256] where nothing else is said."""


class TextEncoder(Protocol):
    """A frozen text encoder."""

    @property
    def explained_variance(self) -> float:
        """Share of the fitted texts' squared length that the 256 dimensions keep, 0 to 1."""

    @property
    def name(self) -> str:
        """The embedding space: kind and content hash, equal only where every vector is equal."""

    def encode(self, texts: list[str]) -> Vectors:
        """Vectors of unit length, one row a text; a zero row where the encoder knows nothing of the text."""


@dataclass(frozen=True, eq=False)
class LsaEncoder:
    """Latent semantic analysis: tf-idf of words, word pairs and letter trigrams, times the leading singular vectors.

    Attributes:
        tokens: The vocabulary, in column order.
        inverse_document_frequencies: float32 [token].
        components: float32 [token, 256]; columns past the rank of the fitted matrix are zero.
        explained_variance: See `TextEncoder`.
    """

    tokens: tuple[str, ...]
    inverse_document_frequencies: npt.NDArray[np.float32]
    components: npt.NDArray[np.float32]
    explained_variance: float

    @cached_property
    def name(self) -> str:
        """`lsa-` and a hash of vocabulary and weights."""
        content = (json.dumps(self.tokens).encode(), self.inverse_document_frequencies, self.components)
        return f"lsa-{_hash8(*content)}"

    @cached_property
    def _vectorizer(self) -> TfidfVectorizer:
        vectorizer = _tfidf(self.tokens)
        vectorizer.idf_ = self.inverse_document_frequencies
        return vectorizer

    def encode(self, texts: list[str]) -> Vectors:
        """See `TextEncoder`."""
        if not texts:
            return np.zeros((0, EMBEDDING_DIM), dtype=np.float32)
        return _unit(self._vectorizer.transform(texts) @ self.components)


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
        return f"st-{Path(self.folder).name}-{_hash8(self.folder_hash.encode(), self.projection)}"

    @cached_property
    def _model(self) -> Any:
        return _load_sentence_transformer(self.folder)

    def encode(self, texts: list[str]) -> Vectors:
        """See `TextEncoder`; only a blank text is unknown to it."""
        if not texts:
            return np.zeros((0, EMBEDDING_DIM), dtype=np.float32)
        is_known = np.array([bool(text.strip()) for text in texts], dtype=np.float32)
        return _unit(_sentence_vectors(self._model, texts) @ self.projection * is_known[:, None])


# ---------------------------------------------------------------- fitting


def fit_encoder(settings: QueryEncoderSettings, texts: list[str]) -> TextEncoder:
    """Fit the encoder that the settings name on catalog text, one text per item.

    The result depends on the order of the texts: sort them by item_id.

    Raises:
        ValueError: no text holds a word.
        SettingsError: the sentence-transformers extra or folder is missing.
    """
    if settings.kind == "sentence_transformers":
        return fit_sentence_encoder(settings.folder, texts)
    return fit_lsa(texts, vocabulary_size=settings.lsa_vocabulary)


def fit_lsa(texts: list[str], *, vocabulary_size: int) -> LsaEncoder:
    """Fit latent semantic analysis on the `vocabulary_size` most frequent tokens, ties broken by token.

    Raises:
        ValueError: no text holds a word.
    """
    tokens, counts = _frequent_tokens(texts, vocabulary_size)
    transformer = TfidfTransformer(sublinear_tf=True)
    weights = transformer.fit_transform(counts)
    rank = min(EMBEDDING_DIM, *weights.shape)
    # One thread: the order of a threaded sum, and with it the last bits, may change from run to run.
    with threadpool_limits(limits=1):
        _, singular_values, directions = randomized_svd(weights, n_components=rank, random_state=0)
    components = np.zeros((len(tokens), EMBEDDING_DIM), dtype=np.float32)
    # Directions past the matrix's rank are rounding noise.
    real = singular_values > 1e-5 * singular_values[0]
    components[:, : real.sum()] = directions[real].T
    explained = float(np.sum(singular_values.astype(np.float64) ** 2) / weights.power(2).sum(dtype=np.float64))
    return LsaEncoder(tokens, transformer.idf_.astype(np.float32), components, min(explained, 1.0))


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
    vectors = _sentence_vectors(model, known).astype(np.float64)
    width = vectors.shape[1]
    projection, explained = np.eye(width, EMBEDDING_DIM), 1.0
    if width > EMBEDDING_DIM:
        with threadpool_limits(limits=1):
            moments, axes = np.linalg.eigh(vectors.T @ vectors)
        leading = axes[:, ::-1][:, :EMBEDDING_DIM]
        # An eigenvector's sign is arbitrary: make its largest entry positive.
        largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None], axis=0)
        projection, explained = leading * np.sign(largest), float(moments[::-1][:EMBEDDING_DIM].sum() / moments.sum())
    return SentenceEncoder(folder, projection.astype(np.float32), _folder_hash(folder), min(explained, 1.0))


# ---------------------------------------------------------------- storing


def encoder_uri(warehouse: str) -> str:
    """Where embed_queries leaves the encoder for evaluate."""
    return f"{warehouse.rstrip('/')}/query_encoder"


def to_bytes(encoder: TextEncoder) -> tuple[bytes, bytes]:
    """Write the encoder as (JSON description, safetensors arrays)."""
    if isinstance(encoder, LsaEncoder):
        described: dict[str, Any] = {"kind": "lsa", "tokens": encoder.tokens}
        arrays = {"idf": encoder.inverse_document_frequencies, "components": encoder.components}
    elif isinstance(encoder, SentenceEncoder):
        described = {"kind": "sentence_transformers", "folder": encoder.folder, "folder_hash": encoder.folder_hash}
        arrays = {"projection": encoder.projection}
    else:
        raise TypeError(f"no stored form for a {type(encoder).__name__}")
    described |= {"name": encoder.name, "explained_variance": encoder.explained_variance}
    # safetensors writes memory as it lies, so it must lie row by row.
    stored = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return json.dumps(described).encode(), stored


@lru_cache(maxsize=1)
def from_bytes(description: bytes, arrays: bytes) -> TextEncoder:
    """Rebuild the encoder of `to_bytes`; kept, so that a Spark worker builds it once.

    Raises:
        ValueError: the two parts do not belong together.
    """
    described, tensors = json.loads(description), safetensors.numpy.load(arrays)
    explained = described["explained_variance"]
    encoder: TextEncoder
    if described["kind"] == "lsa":
        encoder = LsaEncoder(tuple(described["tokens"]), tensors["idf"], tensors["components"], explained)
    else:
        encoder = SentenceEncoder(described["folder"], tensors["projection"], described["folder_hash"], explained)
    if encoder.name != described["name"]:
        raise ValueError(
            f"stored query encoder: the description says {described['name']}, the arrays make it {encoder.name}. "
            "Its two files come from different runs: run embed_queries again."
        )
    return encoder


def save(encoder: TextEncoder, uri: str) -> None:
    """Write `<uri>/encoder.json` and `<uri>/encoder.safetensors`."""
    description, arrays = to_bytes(encoder)
    write_bytes(f"{uri}/encoder.safetensors", arrays)
    write_bytes(f"{uri}/encoder.json", description)


def load(uri: str) -> TextEncoder:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: there is no encoder at `uri`.
        ValueError: its two files come from different runs.
    """
    return from_bytes(read_bytes(f"{uri}/encoder.json"), read_bytes(f"{uri}/encoder.safetensors"))


def load_if_saved(uri: str) -> TextEncoder | None:
    """Read what `save` wrote; None where no query had a text, and so nothing was saved."""
    try:
        return load(uri)
    except FileNotFoundError:
        return None


# ---------------------------------------------------------------- parts


def _tokens(text: str) -> list[str]:
    """Words, pairs of neighbouring words, and the letter trigrams of each word with its blanks, marked by #."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    padded = [f" {word} " for word in words]
    return words + pairs + [f"#{word[i : i + 3]}" for word in padded for i in range(len(word) - 2)]


def _tfidf(tokens: tuple[str, ...]) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer=_tokens, vocabulary=tokens, sublinear_tf=True, dtype=np.float32)


def _frequent_tokens(texts: list[str], size: int) -> tuple[tuple[str, ...], csr_matrix]:
    """The most frequent tokens, and how often each text has each of them [text, token]."""
    counter = CountVectorizer(analyzer=_tokens, dtype=np.float32)
    try:
        counts = counter.fit_transform(texts)
    except ValueError as error:  # scikit-learn's word for "empty vocabulary"
        raise ValueError("no text holds a word") from error
    names = counter.get_feature_names_out()
    totals = np.asarray(counts.sum(axis=0)).ravel()
    # The names are sorted, so a stable sort breaks ties by token.
    kept = np.sort(np.argsort(-totals, kind="stable")[:size])
    return tuple(str(name) for name in names[kept]), counts[:, kept]


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-6)


def _hash8(*parts: bytes | Vectors) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.tobytes())
    return digest.hexdigest()[:8]


def _folder_hash(folder: str) -> str:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return _hash8(*(path.read_bytes() for path in files))


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
