"""The frozen text encoder: text of a query or an item -> 256-d vectors. It stands where the paper has SearchSage.

Four kinds behind one interface: latent semantic analysis fitted on the catalog's own text (offline, deterministic),
any local sentence-transformers folder, both joined, and one that was trained on the shop's own log. Saved as JSON and
safetensors, never as a pickle.

Differs from the paper: SearchSage is trained on engagement; of these encoders only the trained one sees any.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from itemsage_model.encoders.frozen_text.joined import JoinedEncoder, fit_joined
from itemsage_model.encoders.frozen_text.lsa import LsaEncoder, fit_lsa
from itemsage_model.encoders.frozen_text.sentence import (
    SentenceEncoder,
    fit_sentence_encoder,
)
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from itemsage_model.encoders.projection import Projection
from itemsage_model.encoders.text_transformer import TextSpec
from schemas.contracts import run_again
from schemas.errors import InputError
from schemas.settings import QueryEncoderSettings
from schemas.stages import EMBED_QUERIES
from schemas.storage import read_bytes, write_bytes
from schemas.warehouse import ENCODER_FILES, Warehouse

*_FILES, _HASHES = ENCODER_FILES

# ---------------------------------------------------------------- fitting


def fit_encoder(settings: QueryEncoderSettings, texts: list[str]) -> TextEncoder:
    """Fit the encoder that the settings name on catalog text, one text per item; "trained" is not fitted.

    The result depends on the order of the texts: sort them by item_id.

    Raises:
        ValueError: no text holds a word.
        SettingsError: the sentence-transformers extra or folder is missing.
    """
    if settings.kind == "joined":
        return fit_joined(settings.folder, texts, vocabulary_size=settings.lsa_vocabulary, lsa_dims=settings.lsa_dims)
    if settings.kind == "sentence_transformers":
        return fit_sentence_encoder(settings.folder, texts)
    return fit_lsa(texts, vocabulary_size=settings.lsa_vocabulary)


# ---------------------------------------------------------------- storing


def to_bytes(encoder: TextEncoder) -> tuple[bytes, bytes]:
    """Write the encoder as (JSON description, safetensors arrays)."""
    described, arrays = _described(encoder)
    # safetensors writes memory as it lies, so it must lie row by row.
    stored = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return json.dumps(described).encode(), stored


def _described(encoder: TextEncoder) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """What is stored of an encoder: plain values, and arrays by name; those of a part are named <part>.<array>."""
    described: dict[str, Any]
    if isinstance(encoder, LsaEncoder):
        described = {"kind": "lsa", "tokens": encoder.tokens}
        arrays = {"idf": encoder.inverse_document_frequencies, "components": encoder.components}
    elif isinstance(encoder, SentenceEncoder):
        described = {"kind": "sentence_transformers", "folder": encoder.folder, "folder_hash": encoder.folder_hash}
        arrays = {"projection": encoder.projection}
    elif isinstance(encoder, TrainedEncoder):
        described, arrays = {"kind": "trained", "spec": asdict(encoder.spec)}, encoder.weights
    elif isinstance(encoder, JoinedEncoder):
        described, arrays = {"kind": "joined"}, {"projection": encoder.projection.matrix}
        for name, part in (("lsa", encoder.lsa), ("sentence", encoder.sentence)):
            described[name], own = _described(part)
            arrays |= {f"{name}.{key}": array for key, array in own.items()}
    else:
        raise TypeError(f"no stored form for a {type(encoder).__name__}")
    return described | {"name": encoder.name, "explained_variance": encoder.explained_variance}, arrays


@lru_cache(maxsize=1)
def from_bytes(description: bytes, arrays: bytes) -> TextEncoder:
    """Rebuild the encoder of `to_bytes`; kept, so that a Spark worker builds it once.

    Raises:
        ValueError: the two parts do not belong together.
    """
    described, tensors = json.loads(description), safetensors.numpy.load(arrays)
    encoder = _rebuilt(described, tensors)
    if encoder.name != described["name"]:
        raise ValueError(
            f"stored query encoder: the description says {described['name']}, the arrays make it {encoder.name}. "
            "Its two files come from different runs: run embed_queries again."
        )
    return encoder


def _rebuilt(described: dict[str, Any], arrays: dict[str, npt.NDArray[np.float32]]) -> TextEncoder:
    """The encoder of `_described`."""
    explained = described["explained_variance"]
    if described["kind"] == "lsa":
        return LsaEncoder(tuple(described["tokens"]), arrays["idf"], arrays["components"], explained)
    if described["kind"] == "sentence_transformers":
        return SentenceEncoder(described["folder"], arrays["projection"], described["folder_hash"], explained)
    if described["kind"] == "trained":
        return TrainedEncoder(TextSpec(**described["spec"]), arrays, explained)
    lsa, sentence = (_rebuilt(described[part], _own(arrays, part)) for part in ("lsa", "sentence"))
    assert isinstance(lsa, LsaEncoder)
    assert isinstance(sentence, SentenceEncoder)
    return JoinedEncoder(lsa, sentence, Projection("joined", arrays["projection"], explained))


def _own(arrays: dict[str, npt.NDArray[np.float32]], part: str) -> dict[str, npt.NDArray[np.float32]]:
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}


def save(encoder: TextEncoder, uri: str) -> None:
    """Write `<uri>/encoder.safetensors`, `<uri>/encoder.json` and, last, `<uri>/sha256.json` with the hash of each."""
    files = dict(zip(_FILES, to_bytes(encoder), strict=True))
    for name, content in reversed(files.items()):
        write_bytes(f"{uri}/{name}", content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_bytes(f"{uri}/{_HASHES}", json.dumps(hashes, indent=2).encode())


def load(uri: str) -> TextEncoder:
    """Read what `save` wrote, checked by its sha256.

    Raises:
        FileNotFoundError: there is no encoder at `uri`.
        InputError: one of its files is absent or damaged.
        ValueError: its two files come from different runs.
    """
    description = read_bytes(f"{uri}/encoder.json")
    try:
        arrays = read_bytes(f"{uri}/encoder.safetensors")
        hashes = json.loads(read_bytes(f"{uri}/{_HASHES}"))
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(uri, "(files)", f"one absent or damaged: {error}") from error
    for name, content in zip(_FILES, (description, arrays), strict=True):
        found = hashlib.sha256(content).hexdigest()
        if found != hashes.get(name):
            raise _damaged(uri, name, f"sha256 {found}")
    return from_bytes(description, arrays)


def _damaged(uri: str, name: str, found: str) -> InputError:
    expected = f"the file as embed_queries wrote it, by the sha256 in {_HASHES}"
    cure = "Restore the folder, or run embed_queries and all stages after it again."
    return InputError(f"query encoder {uri}", name, expected=expected, found=found, cure=cure)


def load_if_saved(uri: str) -> TextEncoder | None:
    """Read what `save` wrote; None where nothing had a text, and so nothing was saved."""
    try:
        return load(uri)
    except FileNotFoundError:
        return None


def load_recorded(warehouse: Warehouse, recorded: str | None) -> TextEncoder | None:
    """The encoder of the recorded run of embed_queries; None where that run made none.

    Args:
        warehouse: Where it lies.
        recorded: Its name in that run's record.

    Raises:
        InputError: the warehouse holds another one, as a run leaves it that ended before its tables were written.
    """
    encoder = load_if_saved(warehouse.query_encoder) if recorded else None
    if recorded and (encoder is None or encoder.name != recorded):
        raise InputError(
            "query encoder",
            warehouse.query_encoder,
            expected=f"{recorded}, as embed_queries recorded",
            found=encoder.name if encoder else "none",
            cure=run_again([EMBED_QUERIES.name]),
        )
    return encoder
