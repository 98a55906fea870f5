"""The frozen text encoder: query text -> 256-d vectors. It stands where the paper has SearchSage.

Two kinds behind one interface: latent semantic analysis fitted on the catalog's own text (offline, deterministic), and
any local sentence-transformers folder. Saved as JSON and safetensors, never as a pickle.

Differs from the paper: SearchSage is trained on engagement; this encoder never sees any.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors.numpy

from itemsage_model.encoders.frozen_text.lsa import LsaEncoder, fit_lsa
from itemsage_model.encoders.frozen_text.sentence import (
    SentenceEncoder,
    fit_sentence_encoder,
)
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from schemas.settings import QueryEncoderSettings
from schemas.storage import read_bytes, write_bytes

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


# ---------------------------------------------------------------- storing


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
