"""Export the query side of what is published: one folder with which a service answers queries, without Spark and torch.

The folder holds the frozen text encoder and each query kind's adapter as ONNX, the words and tokens that the encoder
knows, `answer.py` (a copy of retrieval/query_service.py), `words.py` (a copy of itemsage_model/text/words.py), and a
manifest with model, spaces, and the sha256 of every file; and the published vectors of the queries that the model knows
by their id (model.query_id_rows), as no text alone tells them. Before the folder gets its name it is loaded, and its
answers are compared with those of the batch jobs.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch

import itemsage_model.text.words as words_module
from itemsage_model.encoders.frozen_text.joined import JoinedEncoder
from itemsage_model.encoders.frozen_text.lsa import LsaEncoder
from itemsage_model.encoders.frozen_text.sentence import SentenceEncoder
from itemsage_model.encoders.frozen_text.stored import load_if_saved
from itemsage_model.encoders.frozen_text.text_encoder import TextEncoder
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import SavedModel, load_model
from itemsage_model.encoders.projection import Projection, load_projection
from itemsage_model.encoders.query_adapter import QueryAdapter
from itemsage_model.serving.query_vectors import saved_adapter
from retrieval import graphs, query_service
from retrieval.query_service import MANIFEST, QuerySide, RefusedError, checksum, read_folder
from schemas.cells import to_matrix
from schemas.contracts import ITEM_TEXT
from schemas.errors import InputError
from schemas.published import Published, live, published_version
from schemas.storage import read_columns
from schemas.tables import EMBEDDING_DIM, FROZEN_ALL, ITEM_EMBEDDINGS, MAX_TEXT_CHARACTERS, QUERY_EMBEDDINGS
from schemas.warehouse import Warehouse

TOLERANCE = 1e-5
"""Most that a number of a vector may differ from that of the batch job."""

_TEXTS = (
    "red shoes", "RED  Shoes, size 42!", "Glas-Laterne für den Garten", "für mug", "ｍｕｇ №5 ½ ﬁne", "красная кружка",
    "新款跑鞋红色", "ランニングシューズ 赤い", "여성운동화", "รองเท้าวิ่งสีแดง", "الحذاء الأحمر", "लाल जूते", "ស្បែកជើង",
    "👟❤️ 👩‍👩‍👧", "", " \u200b", "no-such-word-qzx", "a" * 300, "lamp " * 400,
)  # fmt: skip
"""Texts in many scripts, and of awkward kinds, on which folder and batch job are compared."""
_KNOWN_TOKENS = 64
_RANDOM_VECTORS = 64


@dataclass(frozen=True, eq=False)
class QueryParts:
    """What turns the queries of a published version into vectors.

    Attributes:
        published: The version.
        model: The model whose adapter its queries go through.
        encoder: The frozen encoder of texts; None where no text has a vector.
        projections: Query kind -> how its vectors of another length are projected.
    """

    published: Published
    model: SavedModel[ItemTowerSpec]
    encoder: TextEncoder | None
    projections: dict[str, Projection]

    @cached_property
    def adapter(self) -> QueryAdapter | None:
        """The model's adapter without the vectors of known queries; None where queries are compared as they are."""
        adapter = None if self.published.metrics.fallback == FROZEN_ALL else saved_adapter(self.model)
        if adapter is not None:
            adapter.identity = None
        return adapter

    def adapted(self, frozen: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.float32]:
        """Frozen vectors of unit length through the adapter, as score_catalog computes them."""
        if self.adapter is None:
            return frozen
        number = torch.full((len(frozen),), self.adapter.number_of(kind))
        adapted: npt.NDArray[np.float32] = self.adapter(torch.from_numpy(frozen), number, number).numpy()
        return adapted


def load_parts(published: Published) -> QueryParts:
    """What a published version's queries were made with.

    Raises:
        InputError: the warehouse holds another encoder or projection than the version's queries were made with.
        CheckpointError: the model's files are missing or damaged.
    """
    layout, metrics = published.warehouse, published.metrics
    model = load_model(f"{layout.models}/{metrics.model_id}", ItemTowerSpec)
    name = published.note.get("made_with", {}).get(ITEM_TEXT)
    is_asked = name in metrics.spaces.values()
    encoder = None
    if is_asked:
        # Of a version of before encoders were kept, the warehouse may still have it.
        encoder = load_if_saved(layout.model_encoder(metrics.model_id)) or load_if_saved(layout.query_encoder)
    if is_asked and (encoder is None or encoder.name != name):
        raise _refitted("query encoder", layout.query_encoder, name, encoder.name if encoder else "none")
    projections = {}
    for kind, space in metrics.spaces.items():
        source = space.rpartition(f"-to-{EMBEDDING_DIM}-")[0]
        found = load_projection(layout.query_projection(source)) if source else None
        if found is not None and found.name != space:
            raise _refitted("query projection", layout.query_projection(source), space, found.name)
        if found is not None:
            projections[kind] = found
    return QueryParts(published, model, encoder, projections)


def _refitted(subject: str, uri: str, expected: str, found: str) -> InputError:
    cure = "It was fitted anew since: publish what was made with it, and export then; or restore the folder."
    return InputError(subject, uri, expected=f"{expected}, as the published version names it", found=found, cure=cure)


def folder_files(parts: QueryParts) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of the folder but for the manifest, and the manifest's values but for the checksums."""
    metrics, adapter, encoder = parts.published.metrics, parts.adapter, parts.encoder
    files = {}
    for kind in metrics.spaces:
        learned = None
        if adapter is not None:
            number = adapter.number_of(kind)
            learned = adapter.weight[number].numpy(), adapter.bias[number].numpy()
        files[f"adapter-{kind}.onnx"] = graphs.adapter_graph(learned)
        if kind in parts.projections:
            files[f"projection-{kind}.onnx"] = graphs.scaled_graph(parts.projections[kind].matrix, 1e-12)
    if encoder is not None:
        files |= _encoder_files(encoder)
    files |= _known_files(parts)
    files["answer.py"] = Path(query_service.__file__).read_bytes()
    values = {
        "model_id": parts.published.model_id,
        "version": parts.published.version,
        "as_of": parts.published.as_of,
        "spaces": metrics.spaces,
        "adapter_of": metrics.model_id if adapter is not None else "",
        "text_encoder": encoder.name if encoder is not None else "",
        "projections": {
            kind: {"takes": one.source_space, "length": one.length} for kind, one in parts.projections.items()
        },
        "dim": EMBEDDING_DIM,
        "max_characters": MAX_TEXT_CHARACTERS,
        "unicode": unicodedata.unidata_version,
    }
    return files, values


def _known_files(parts: QueryParts) -> dict[str, bytes]:
    """The ids and published vectors of the queries that have another vector than the adapter gives their frozen one.

    Raises:
        InputError: there are more of them than the model was trained on.
    """
    most = parts.model.spec.trained_queries if parts.adapter is not None else 0
    if not most:
        return {}
    layout, version = parts.published.warehouse, parts.published.note["made_of"][QUERY_EMBEDDINGS.name]
    columns = ["query_id", "query_kind", "query_embedding"]
    frozen = read_columns(layout.table(QUERY_EMBEDDINGS.name), version, columns)
    row_of = {query_id: row for row, query_id in enumerate(frozen["query_id"].to_pylist())}
    vectors, known, own, compared = to_matrix(frozen["query_embedding"]), [], [], 0
    for batch in parts.published.queries(["query_id", "query_kind", "query_vector"]):
        for kind in batch.column("query_kind").unique().to_pylist():
            rows = batch.filter(pc.equal(batch.column("query_kind"), kind))
            ids, published = rows.column("query_id").to_pylist(), to_matrix(rows.column("query_vector"))
            adapted = parts.adapted(vectors[[row_of[query_id] for query_id in ids]], kind)
            differs = np.abs(adapted - published).max(axis=1) > TOLERANCE
            known += [query_id for query_id, is_own in zip(ids, differs, strict=True) if is_own]
            own.append(published[differs])
            compared += len(ids)
    # Where known keys share the rows of a table, a Bloom filter takes 1 % of the others for known.
    if len(known) > most + 0.02 * compared:
        raise InputError(
            "exported queries",
            "query_vectors",
            expected=f"vectors of the model's adapter, but for {most} queries of its training",
            found=f"others in {len(known)} of {compared} rows",
            cure="Run score_catalog again: query_vectors was not made by this model.",
        )
    content = io.BytesIO()
    np.save(content, np.concatenate([np.zeros((0, EMBEDDING_DIM), np.float32), *own]))
    return {"known_ids.json": json.dumps(known).encode(), "known_vectors.npy": content.getvalue()}


def _encoder_files(encoder: TextEncoder) -> dict[str, bytes]:
    if isinstance(encoder, JoinedEncoder):
        joined = graphs.scaled_graph(encoder.projection.matrix, 1e-6)
        return {**_encoder_files(encoder.lsa), **_encoder_files(encoder.sentence), "join.onnx": joined}
    files = {"join.onnx": graphs.scaled_graph(None, 1e-6)}
    if isinstance(encoder, LsaEncoder):
        files["lsa.onnx"] = graphs.lsa_graph(encoder.inverse_document_frequencies, encoder.components)
        files["tokens.json"] = json.dumps(encoder.tokens).encode()
        files["words.py"] = Path(words_module.__file__).read_bytes()
        return files
    if isinstance(encoder, TrainedEncoder):
        files["transformer.onnx"] = graphs.transformer_graph(encoder.model)
        files["tokenizer.json"] = str(encoder.spec.cut_tokenizer().to_str()).encode()
        return files
    assert isinstance(encoder, SentenceEncoder)
    model = encoder.model
    files["transformer.onnx"] = graphs.transformer_graph(graphs.Projected(model, encoder.projection))
    files["tokenizer.json"] = _tokenizer_json(model)
    return files


def _tokenizer_json(model: Any) -> bytes:
    """The tokenizer of a sentence-transformers model, cut at its longest sequence and without padding."""
    from tokenizers import Tokenizer  # noqa: PLC0415 (an optional extra)

    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    if model.max_seq_length:
        tokenizer.enable_truncation(model.max_seq_length)
    return str(tokenizer.to_str()).encode()


def export_published(warehouse: Warehouse, folder: Path, version: int | None = None) -> list[str]:
    """Export what is live, or a named version; returns lines that say what the folder answers.

    Raises:
        InputError: nothing is published, or no such version; and as of `export_queries`.
    """
    published = live(warehouse) if version is None else published_version(warehouse, version)
    if published is None:
        cure = "Run the pipeline first, or `itemsage publish` the candidate."
        raise InputError(ITEM_EMBEDDINGS.name, "", expected="a published version", found="none", cure=cure)
    manifest = export_queries(published, folder)
    lines = [f"queries of version {published.version}, model {published.model_id}: {folder}"]
    for kind, space in manifest["spaces"].items():
        takes = [f"vectors of {space}"]
        takes += ["texts"] if space == manifest["text_encoder"] else []
        takes += [f"vectors of {manifest['projections'][kind]['takes']}"] if kind in manifest["projections"] else []
        lines.append(f"  {kind}: {', '.join(takes)}")
    return lines


def export_queries(published: Published, folder: Path) -> dict[str, Any]:
    """Write the folder of a published version, whole or not at all; returns its manifest.

    A folder of the same version that is there, undamaged, stays as it is.

    Args:
        published: The version.
        folder: Where; a local path that does not exist yet.

    Raises:
        InputError: the folder is damaged or of another version, the warehouse's encoder is another, or the folder's
            answers are not those of the batch jobs.
        SettingsError: the package onnx is not installed.
        CheckpointError: the model's files are missing or damaged.
    """
    if folder.exists():
        return require_folder(folder, published)
    parts = load_parts(published)
    files, values = folder_files(parts)
    values["sha256"] = {name: sha256(content).hexdigest() for name, content in sorted(files.items())}
    manifest: dict[str, Any] = json.loads(json.dumps(values))
    manifest["checksum"] = checksum(manifest)
    staged = folder.with_name(f"{folder.name}.{uuid4().hex}.staged")
    staged.mkdir(parents=True)
    try:
        for name, content in (*files.items(), (MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())):
            _write(staged / name, content)
        require_equal_answers(staged, parts)
        _sync(staged)
        os.rename(staged, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return manifest


def require_folder(folder: Path, published: Published) -> dict[str, Any]:
    """The manifest of an exported folder, if it is undamaged and of the published version.

    Raises:
        InputError: it is damaged, no such folder, or of another version or model.
    """
    expected = f"an export of version {published.version}, model {published.model_id}"
    try:
        manifest, _ = read_folder(folder)
    except (RefusedError, OSError) as error:
        cure = "Nothing was written. Name a folder that does not exist."
        raise InputError("exported queries", str(folder), expected=expected, found=str(error), cure=cure) from error
    if (manifest["version"], manifest["model_id"]) != (published.version, published.model_id):
        found = f"version {manifest['version']}, model {manifest['model_id']}"
        cure = "Name another folder, such as one for each version, and point the services there."
        raise InputError("exported queries", str(folder), expected=expected, found=found, cure=cure)
    return manifest


def require_equal_answers(folder: Path, parts: QueryParts) -> float:
    """The largest difference of a number between the folder's answers and those of the batch jobs.

    Compared are texts of many scripts and some of the encoder's own tokens, and random vectors of each kind.

    Raises:
        InputError: it is above TOLERANCE.
    """
    service = QuerySide(folder)
    spaces, found = parts.published.metrics.spaces, {}
    random = np.random.default_rng(0)
    if parts.encoder is not None:
        texts = [*_TEXTS, *_some_tokens(parts.encoder)]
        frozen = parts.encoder.encode(texts)
        found["texts"] = float(np.abs(service.encode(texts) - frozen).max())
    for kind, space in spaces.items():
        projection = parts.projections.get(kind)
        given = random.normal(size=(_RANDOM_VECTORS, projection.length if projection else EMBEDDING_DIM))
        vectors: npt.NDArray[np.float32] = given.astype(np.float32)
        exact = projection.apply(vectors) if projection else vectors.astype(np.float64)
        unit = (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float32)
        takes = projection.source_space if projection else space
        found[f"{kind} vectors"] = float(
            np.abs(service.vectors(vectors, kind, takes) - parts.adapted(unit, kind)).max()
        )
    for name, difference in found.items():
        if not difference <= TOLERANCE:
            raise InputError(
                "exported queries",
                name,
                expected=f"the batch jobs' vectors, to {TOLERANCE}",
                found=f"a difference of {difference:.2g}",
                cure="The encoder does something that its export does not: use another encoder for the services.",
            )
    return max(found.values(), default=0.0)


def _some_tokens(encoder: TextEncoder) -> list[str]:
    tokens = encoder.tokens if isinstance(encoder, LsaEncoder) else ()
    if isinstance(encoder, JoinedEncoder):
        tokens = encoder.lsa.tokens
    return list(tokens[:: max(1, len(tokens) // _KNOWN_TOKENS)])


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Without it, a power cut may undo the names in the folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
