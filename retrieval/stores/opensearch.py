"""OpenSearch: files in the format of its _bulk, each push in a folder of its own, and a record that names the last one.

    <uri>/<table>.json                                   the record: what is held, and the folder that was written last
    <uri>/<table>-v17-<key>/part-00000.4096.ndjson[.gz]  index actions (all rows); the name says how many
    <uri>/<table>-v17-<key>/mapping.json                 for the index that all rows go into
    <uri>/<table>-v18-<key>/part-00000.12.ndjson[.gz]    the changes since version 17: delete and index actions
    <uri>/<table>-v18-<key>/manifest.json                last: actions, bytes, sha256 of each file; what it follows

Actions name no index; that of `curl --data-binary @part-... HOST/INDEX/_bulk` is meant. What is verified are the files,
read back from where they lie; what OpenSearch makes of them is not known here. The record is replaced in one piece, so
whoever reads it first finds whole pushes alone.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from retrieval.stores.store import EMBEDDING, ITEM_ID, Held, Kind, Plan, StoreError, VerificationError, to_rows
from schemas.plain_text import shown
from schemas.settings import PushSettings
from schemas.storage import absolute_uri, file_system, is_file, read_bytes, write_bytes
from schemas.tables import EMBEDDING_DIM

_IDS_AT_ONCE = 50_000
_ROWS_AT_ONCE = 4_096
_GZIP_LEVEL = 1
_MAPPING = {
    "settings": {"index": {"knn": True}},
    "mappings": {
        "properties": {
            ITEM_ID: {"type": "keyword"},
            EMBEDDING: {
                "type": "knn_vector",
                "dimension": EMBEDDING_DIM,
                "method": {"name": "hnsw", "engine": "faiss", "space_type": "innerproduct"},
            },
        }
    },
}
_FIELDS: Mapping[Kind, str] = {"string": "keyword", "boolean": "boolean", "integer": "long", "double": "double"}


@contextmanager
def opened(settings: PushSettings) -> Iterator[BulkFiles]:
    """A folder of bulk files, for one push.

    Raises:
        StoreError: the folder cannot be read or written.
    """
    name = shown(f"OpenSearch files {settings.table}, {settings.uri}")
    try:
        yield BulkFiles(settings, name)
    except OSError as error:
        cure = "Give room, or the right to write there, and run the push again; it goes on where it was."
        raise StoreError(name, expected="a folder to write in", found=str(error), cure=cure) from error


class BulkFiles:
    """See the module.

    Args:
        settings: Folder, table, and how files are cut and packed.
        name: What it is called in messages.
    """

    tolerance = 0.0
    rows_at_once = _ROWS_AT_ONCE
    is_log = True

    def __init__(self, settings: PushSettings, name: str) -> None:
        self.name = name
        self._root, self._table = absolute_uri(settings.uri).rstrip("/"), settings.table
        self._most_bytes, self._ending = settings.file_mb << 20, ".ndjson.gz" if settings.gzip else ".ndjson"
        self._folder = ""
        self._plan: Plan | None = None
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._waiting_actions = 0
        self._files: dict[str, dict[str, Any]] = {}
        self._removed: list[str] = []
        self._part_count = 0

    @property
    def _record(self) -> str:
        return f"{self._root}/{self._table}.json"

    def held(self) -> Held | None:
        """See `Store`."""
        if not is_file(self._record):
            return None
        text = read_bytes(self._record)
        with suppress(ValueError, KeyError, TypeError):  # `from_json` says what is wrong
            text = json.dumps(json.loads(text)["held"]).encode()
        return Held.from_json(text, self.name)

    def is_taken(self) -> bool:
        """See `Store`; without a record nobody follows the files, and each push has a folder of its own."""
        return False

    def begin(self, plan: Plan) -> int:
        """See `Store`."""
        self._plan = plan
        self._folder = f"{self._root}/{self._table}-v{plan.target.version}-{plan.key[:8]}"
        system, folder = file_system(self._folder)
        if plan.since is None and not is_file(f"{self._folder}/manifest.json"):
            parts = self._parts()
            self._part_count = len(parts)
            self._put_mapping()
            return sum(int(name.split(".")[1]) for name in parts)
        if system.get_file_info(folder).type == fs.FileType.Directory:
            system.delete_dir(folder)
        if plan.since is None:
            self._put_mapping()
        return 0

    def _put_mapping(self) -> None:
        assert self._plan
        fields = {name: {"type": _FIELDS[kind]} for name, kind in self._plan.target.columns.items()}
        mapping = json.loads(json.dumps(_MAPPING))
        mapping["mappings"]["properties"] |= fields
        write_bytes(f"{self._folder}/mapping.json", _json(mapping))

    def _parts(self) -> list[str]:
        """Names of the files, in order, up to one that is missing."""
        system, folder = file_system(self._folder)
        listed = system.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        names = sorted(one.base_name for one in listed if one.base_name.startswith("part-"))
        whole = [name for name in names if name.endswith(self._ending)]
        return [name for number, name in enumerate(whole) if name.startswith(f"part-{number:05}.")]

    def upsert(self, rows: pa.RecordBatch) -> None:
        """See `Store`."""
        assert self._plan
        for item, document in zip(rows.column(ITEM_ID).to_pylist(), documents(rows), strict=True):
            self._put(f'{{"index":{{"_id":{json.dumps(item)}}}}}\n{document}\n')

    def delete(self, item_ids: Sequence[str]) -> None:
        """See `Store`."""
        for item in item_ids:
            self._put(f'{{"delete":{{"_id":{json.dumps(item)}}}}}\n')

    def _put(self, action: str) -> None:
        if self._waiting and self._waiting_bytes + len(action) > self._most_bytes:
            self._write_part()
        self._waiting.append(action)
        self._waiting_bytes += len(action)  # JSON of ours is ASCII
        self._waiting_actions += 1

    def _write_part(self) -> None:
        content = "".join(self._waiting).encode("ascii")
        if self._ending.endswith(".gz"):
            content = gzip.compress(content, _GZIP_LEVEL, mtime=0)
        write_bytes(f"{self._folder}/part-{self._part_count:05}.{self._waiting_actions}{self._ending}", content)
        self._part_count += 1
        self._waiting, self._waiting_bytes, self._waiting_actions = [], 0, 0

    def seal(self) -> None:
        """See `Store`."""
        if self._waiting:
            self._write_part()

    def ids(self) -> Iterator[pa.Array]:
        """See `Store`; the pass over the files finds the deletes too."""
        some: list[str] = []
        self._removed = []
        for kind, item, _ in self._actions():
            (some if kind == "index" else self._removed).append(item)
            if len(some) == _IDS_AT_ONCE:
                yield pa.array(some, pa.string())
                some = []
        yield pa.array(some, pa.string())

    def removed(self) -> Iterator[pa.Array]:
        """See `Store`; as many as changes, so they are kept."""
        return iter([pa.array(self._removed, pa.string())])

    def _actions(self) -> Iterator[tuple[str, str, bytes]]:
        """(index or delete, id, document) of every action, as the files have them; their checksums on the way."""
        for name in self._parts():
            content = _packed(f"{self._folder}/{name}")
            self._files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            try:
                yield from _parsed(gzip.decompress(content) if name.endswith(".gz") else content)
            except (OSError, EOFError, zlib.error, ValueError) as error:
                raise VerificationError(
                    self.name, name, expected="the actions that were written", found=str(error),
                    cure="The record does not claim this version. Look at the disk, and push again.",
                ) from error  # fmt: skip

    def rows(self, item_ids: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See `Store`; reads all files."""
        assert self._plan
        columns, wanted = self._plan.target.columns, set(item_ids)
        found: list[dict[str, Any]] = []
        for kind, item, document in self._actions():
            if kind == "index" and item in wanted:
                found.append(json.loads(document) | {ITEM_ID: item})
            if len(found) == _ROWS_AT_ONCE:
                yield _batch(found, columns)
                found = []
        yield _batch(found, columns)

    def commit(self, held: Held) -> None:
        """See `Store`."""
        assert self._plan
        files = [{"name": name, "actions": int(name.split(".")[1]), **self._files[name]} for name in self._parts()]
        folder = self._folder.rpartition("/")[2]
        manifest = {
            "held": json.loads(held.to_json()), "follows_version": self._plan.since and self._plan.since.version,
            "actions": sum(one["actions"] for one in files), "files": files,
        }  # fmt: skip
        write_bytes(f"{self._folder}/manifest.json", _json(manifest))
        write_bytes(self._record, _json({"held": json.loads(held.to_json()), "folder": folder}))

    def discard(self) -> None:
        """See `Store`."""
        system, folder = file_system(self._folder)
        system.delete_dir(folder)


def documents(rows: pa.RecordBatch) -> list[str]:
    """Each row as a JSON object; a number of a vector in as few digits as give the same float32 again."""
    lists = rows.column(EMBEDDING)
    numbers = lists.flatten().cast(pa.string())
    offsets = pa.array(range(0, len(numbers) + 1, EMBEDDING_DIM), pa.int32())
    vectors = pc.binary_join(pa.ListArray.from_arrays(offsets, numbers), ",").to_pylist()
    others = [name for name in rows.schema.names if name != EMBEDDING]
    values = zip(*(rows.column(name).to_pylist() for name in others), strict=True)
    found = []
    for vector, row in zip(vectors, values, strict=True):
        fields = json.dumps({name: value for name, value in zip(others, row, strict=True) if value is not None})
        found.append(f'{fields[:-1]}, "{EMBEDDING}": [{vector}]}}')
    return found


def _packed(uri: str) -> bytes:
    """The bytes of a file as they lie there; pyarrow unpacks what is called .gz unless told."""
    system, path = file_system(uri)
    with system.open_input_stream(path, compression=None) as stream:
        content: bytes = stream.read()
    return content


def _parsed(content: bytes) -> Iterator[tuple[str, str, bytes]]:
    lines = iter(content.splitlines())
    for line in lines:
        [(kind, of)] = json.loads(line).items()
        yield kind, of["_id"], next(lines, b"") if kind == "index" else b""


def _batch(found: list[dict[str, Any]], columns: Mapping[str, Kind]) -> pa.RecordBatch:
    filters = {name: [one.get(name) for one in found] for name in columns}
    return to_rows(columns, [one[ITEM_ID] for one in found], [one[EMBEDDING] for one in found], filters)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
