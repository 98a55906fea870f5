"""The query side of a service: texts, or frozen vectors, to the vectors that item_embeddings is compared with.

`itemsage export-queries` copies this file as answer.py into the folder that it writes. It stands on numpy and
onnxruntime, and on tokenizers where a transformer encodes the texts; on nothing of ours, neither Spark nor torch.

    from answer import QuerySide
    queries = QuerySide("/models/queries")
    queries.require(index_manifest)                       # the same model and spaces, or a RefusedError
    vectors = queries.texts(["red shoes"], "search")      # float32 [text, 256] of unit length; zeros = an unknown text
    vectors = queries.vectors(image_vectors, "closeup", "my-image-encoder-1")

    python answer.py "red shoes"                          # the vector, and milliseconds a query
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import runpy
import sys
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Vectors = npt.NDArray[np.float32]

MANIFEST = "manifest.json"
_WARM, _TIMED = 20, 200


class RefusedError(ValueError):
    """A damaged folder, another model's index, or queries that the folder cannot answer; the message says which."""

    exit_code = 3


def checksum(values: Mapping[str, Any]) -> str:
    """sha256 of the manifest's own values, without the checksum itself."""
    kept = {name: value for name, value in values.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the files of an exported folder, each compared with its sha256.

    Raises:
        RefusedError: a file is missing or not as it was written.
    """
    place = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((place / MANIFEST).read_bytes())
        if manifest["checksum"] != checksum(manifest):
            raise RefusedError(f"{place / MANIFEST} is damaged: its checksum differs. Copy the folder anew.")
        files = {name: (place / name).read_bytes() for name in manifest["sha256"]}
    except FileNotFoundError as error:
        raise RefusedError(f"{place} is no complete export of queries: {error.filename} is missing.") from error
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RefusedError(f"{place / MANIFEST} is damaged: {error!r}. Copy the folder anew.") from error
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
            raise RefusedError(f"{place / name} is damaged: its sha256 differs. Copy the folder anew.")
    return manifest, files


class QuerySide:
    """What answers the queries of one published model.

    Args:
        folder: What `itemsage export-queries` wrote, or a copy of it.
        threads: Threads that compute one query; the graphs of an LSA encoder are too small for more than one.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.manifest, files = read_folder(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._graphs = {
            name: onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            for name, content in files.items()
            if name.endswith(".onnx")
        }
        if "tokens.json" in files:
            self._row_of = {token: row for row, token in enumerate(json.loads(files["tokens.json"]))}
            self._split = runpy.run_path(str(Path(folder) / "words.py"))["words_and_parts"]
            if unicodedata.unidata_version != self.manifest["unicode"]:
                made, own = self.manifest["unicode"], unicodedata.unidata_version
                warnings.warn(f"made with Unicode {made}, read with {own}: letters new in one differ", stacklevel=2)
        self._known: dict[str, int] = {}
        if "known_ids.json" in files:
            self._known = {query_id: row for row, query_id in enumerate(json.loads(files["known_ids.json"]))}
            self._known_vectors: Vectors = np.load(io.BytesIO(files["known_vectors.npy"]), allow_pickle=False)
        if "tokenizer.json" in files:
            from tokenizers import Tokenizer  # noqa: PLC0415 (only a transformer needs it)

            self._tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])

    def require(self, index: Mapping[str, Any]) -> None:
        """Refuse an index, or a table's version, of another model or of other query spaces.

        Args:
            index: Its `model_id`, and its `spaces` by query kind.

        Raises:
            RefusedError: one of the two is another, or is not said.
        """
        own = self.manifest["spaces"]
        others = index.get("spaces") or {}
        found = {"model_id": index.get("model_id"), "spaces": {kind: others.get(kind) for kind in own}}
        for name, value in found.items():
            if value != self.manifest[name]:
                raise RefusedError(
                    f"the index's {name}: expected {self.manifest[name]}, as this folder of queries has it; found "
                    f"{value}. Export the queries of the index's version, or load the index of this model."
                )

    def texts(self, texts: Sequence[str], kind: str, query_ids: Sequence[str] = ()) -> Vectors:
        """Vectors [text, 256] of texts; a row of zeros where no word of the text is known, which nothing answers.

        Args:
            texts: Any texts.
            kind: Query kind.
            query_ids: The query_id of each, where they have one; a query of the training log has a vector of its own.

        Raises:
            RefusedError: queries of this kind are not made of texts; or one text stands in place of a list of them.
        """
        if isinstance(texts, str):
            raise RefusedError(
                f"texts: expected a list of them, such as [{texts!r}]; found one, whose letters are none."
            )
        encoder = self.manifest["text_encoder"]
        if self._space(kind) != encoder:
            made = f"texts become vectors of {encoder}" if encoder else "no text encoder is here"
            raise RefusedError(f"{kind} queries are vectors of {self._space(kind)}, and {made}: give vectors.")
        return self._with_known(self._run(f"adapter-{kind}.onnx", vector=self.encode(texts)), query_ids)

    def vectors(
        self, vectors: npt.NDArray[Any], kind: str, embedding_space: str, query_ids: Sequence[str] = ()
    ) -> Vectors:
        """Vectors [row, 256] of frozen ones, such as those of an item's image; zero rows stay zero.

        Args:
            vectors: Of the kind's space, or of the space that its projection takes [row, length].
            kind: Query kind.
            embedding_space: The encoder that made them.
            query_ids: As of `texts`.

        Raises:
            RefusedError: they are of another space or length, or not finite.
        """
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            found = f"the shape {list(vectors.shape)}" if vectors.ndim != 2 else "NaN or infinite ones"
            raise RefusedError(f"{kind} queries: expected finite numbers, [row, length]; found {found}.")
        space, projection = self._space(kind), self.manifest["projections"].get(kind)
        known = {space: self.manifest["dim"]} | ({projection["takes"]: projection["length"]} if projection else {})
        if known.get(embedding_space) != vectors.shape[1]:
            wanted = " or ".join(f"{length} numbers of {name}" for name, length in known.items())
            raise RefusedError(f"{kind} queries: {wanted}; found {vectors.shape[1]} of {embedding_space}.")
        if embedding_space != space:
            vectors = self._run(f"projection-{kind}.onnx", vector=vectors)
        return self._with_known(self._run(f"adapter-{kind}.onnx", vector=vectors), query_ids)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Frozen vectors of texts [text, 256], which no item is compared with as they are."""
        if not texts:
            return np.zeros((0, self.manifest["dim"]), np.float32)
        cut = [text[: self.manifest["max_characters"]] for text in texts]
        parts = {"lsa.onnx": self._lsa, "transformer.onnx": self._transformer}
        vectors = [np.concatenate([part(text) for name, part in parts.items() if name in self._graphs]) for text in cut]
        return self._run("join.onnx", vector=np.stack(vectors))

    def _lsa(self, text: str) -> Vectors:
        counts = Counter(self._row_of[token] for token in self._split(text) if token in self._row_of)
        rows, repeated = np.array([*counts], np.int64), np.array([*counts.values()], np.float32)
        # Not every version of onnxruntime multiplies what is empty.
        token, count = (rows, repeated) if counts else ([0], [1])
        vector: Vectors = self._run("lsa.onnx", token=token, count=count)[0]
        return vector if counts else np.zeros_like(vector)

    def _transformer(self, text: str) -> Vectors:
        found = self._tokenizer.encode(text)
        ids, mask = [found.ids or [0]], [found.attention_mask or [1]]  # as `TextSpec.token_ids`
        vector: Vectors = self._run("transformer.onnx", input_ids=ids, attention_mask=mask)[0]
        return vector if text.strip() else np.zeros_like(vector)

    def _with_known(self, vectors: Vectors, query_ids: Sequence[str]) -> Vectors:
        for row, query_id in enumerate(query_ids):
            if query_id in self._known:
                vectors[row] = self._known_vectors[self._known[query_id]]
        return vectors

    def _space(self, kind: str) -> str:
        spaces: dict[str, str] = self.manifest["spaces"]
        if kind not in spaces:
            raise RefusedError(f"{kind} queries: this folder answers {', '.join(spaces)}.")
        return spaces[kind]

    def _run(self, graph: str, **inputs: Any) -> Vectors:
        session = self._graphs[graph]
        types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
        cast = {one.name: np.asarray(inputs[one.name], types[one.type]) for one in session.get_inputs()}
        vectors: Vectors = session.run(None, cast)[0]
        return vectors


def main() -> None:
    """Answer one text, and say how long it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--kind", default="", help="query kind; by default the first that is made of texts")
    parser.add_argument("--folder", default=str(Path(__file__).parent), help="by default where this file lies")
    arguments = parser.parse_args()
    try:
        queries = QuerySide(arguments.folder)
        spaces, encoder = queries.manifest["spaces"], queries.manifest["text_encoder"]
        kind = arguments.kind or next((kind for kind, space in spaces.items() if space == encoder), next(iter(spaces)))
        seconds = []
        for _ in range(_WARM + _TIMED):
            started = time.perf_counter()
            [vector] = queries.texts([arguments.text], kind)
            seconds.append(time.perf_counter() - started)
    except RefusedError as error:
        print(f"error: {error}")
        sys.exit(RefusedError.exit_code)
    said = " ".join(f"{number:.4f}" for number in vector[:6]) if vector.any() else "no word of it is known: zeros"
    print(f"{kind} query, model {queries.manifest['model_id']}, space {spaces[kind]}: {said} ...")
    print(f"{1_000 * median(seconds[_WARM:]):.3f} ms a query, the median of {_TIMED}")


if __name__ == "__main__":
    main()
