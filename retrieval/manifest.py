"""What an index says of itself: one JSON file that names every other file of it, and the pointer to the one in use.

<index>/live                       which manifest is in use, and which was before
<index>/<build>/manifest.json      one manifest; `<build>` is v<version of item_embeddings>-<8 hexadecimal digits>
<index>/<build>/...                the files that this build has written; a later manifest may name them, too

Files are written first, then the manifest, then the pointer, each whole or not at all. So a reader has the former index
or the new one, and a build that was ended half-way is litter. What neither of the two manifests of the pointer names is
removed by the next build that is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from retrieval.shards import BuildSettings
from schemas.errors import InputError
from schemas.storage import file_system, read_bytes, write_bytes

FORMAT = 1
_POINTER, _MANIFEST = "live", "manifest.json"
_BUILD = re.compile(r"v\d+-[0-9a-f]{8}")
_CURE = "Build it again: `itemsage export-index --settings FILE --set index.rebuild=true`."


@dataclass(frozen=True)
class IndexFile:
    """One file: its path within the index's folder, bytes and sha256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard, and how many items it holds."""

    vectors: IndexFile
    rows: IndexFile
    items: int


@dataclass(frozen=True)
class Delta:
    """What has changed since the shards were built.

    Attributes:
        base_version: Version of item_embeddings that the shards hold.
        adds: Items that were added or have changed; None where there are none.
        removed: The ids that the shards hold and nobody finds there any more, as they are gone or among `adds`.
        tombstones: How many these are.
    """

    base_version: int
    adds: ShardFiles | None
    removed: IndexFile
    tombstones: int


@dataclass(frozen=True)
class Figure:
    """Recall@10 of one set of queries against exact search in the published table, and what a query costs.

    Attributes:
        name: Which queries, under which filter.
        queries: How many.
        recall: Mean share of the ten nearest items that the index has found, 0 to 1; items as near as the tenth count.
        lowest_tenth: Mean of the tenth of the queries with the lowest recall.
        milliseconds: Median of a query alone, on one core; of several shards one after the other.
        selectivity: Share of the items that pass the filter; 1 = no filter.
    """

    name: str
    queries: int
    recall: float
    lowest_tenth: float
    milliseconds: float
    selectivity: float = 1.0


@dataclass(frozen=True)
class Certificate:
    """What was measured before the index was published.

    Attributes:
        k: Of recall@k.
        asked: Where the queries are from: held-out pairs, or query_vectors alone.
        min_recall: What every figure had to reach.
        figures: Overall, by slice and under filters; all queries first.
    """

    k: int
    asked: str
    min_recall: float
    figures: tuple[Figure, ...] = ()

    @property
    def weakest(self) -> Figure:
        """The figure of the lowest recall."""
        return min(self.figures, key=lambda figure: figure.recall)


@dataclass(frozen=True)
class Manifest:
    """An index.

    Attributes:
        version: Version of item_embeddings that it holds.
        model_id: Of its rows.
        spaces: Query kind -> embedding space of the queries that it answers.
        adapter: Which model's query adapter these queries have been through; empty = they are the frozen vectors.
        as_of: Logical date of the version.
        dim: Numbers of a vector.
        items: Items that can be found.
        columns: Filter column -> Arrow type.
        build: What the shards were built with.
        code: The code that wrote it.
        shards: The shards.
        delta: What has changed since they were built; None = nothing.
        certificate: What was measured.
        format: Of this file.
    """

    version: int
    model_id: str
    spaces: dict[str, str]
    adapter: str
    as_of: str
    dim: int
    items: int
    columns: dict[str, str]
    build: BuildSettings
    code: str
    shards: tuple[ShardFiles, ...] = ()
    delta: Delta | None = None
    certificate: Certificate | None = None
    format: int = field(default=FORMAT)

    @property
    def files(self) -> tuple[IndexFile, ...]:
        """Every file that it names."""
        delta = self.delta
        parts = (*self.shards, *((delta.adds,) if delta and delta.adds else ()))
        of_shards = tuple(file for part in parts for file in (part.vectors, part.rows))
        return (*of_shards, *((delta.removed,) if delta else ()))


def write_file(folder: str, path: str, content: bytes) -> IndexFile:
    """Write one file of an index; no manifest names it yet."""
    write_bytes(f"{folder}/{path}", content)
    return IndexFile(path, len(content), hashlib.sha256(content).hexdigest())


def read_file(folder: str, file: IndexFile) -> bytes:
    """The content of a file that a manifest names.

    Raises:
        InputError: it is gone, truncated, or otherwise not what was written.
    """
    try:
        content = read_bytes(f"{folder}/{file.path}")
    except FileNotFoundError:
        raise _refusal(folder, file.path, f"a file of {file.bytes:,} bytes", "no such file") from None
    if len(content) != file.bytes:
        raise _refusal(folder, file.path, f"{file.bytes:,} bytes", f"{len(content):,}: it was truncated or replaced")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise _refusal(folder, file.path, f"the sha256 {file.sha256}", "another: the file was changed")
    return content


def publish(folder: str, build: str, manifest: Manifest) -> None:
    """Make an index the one in use, once all of its files are written; what no reader needs any more is removed."""
    values = json.loads(json.dumps(asdict(manifest)))
    content = (json.dumps(values | {"sha256": _checksum(values)}, indent=2) + "\n").encode()
    write_bytes(f"{folder}/{build}/{_MANIFEST}", content)
    kept = [build, *_readable_before(folder)]
    write_bytes(f"{folder}/{_POINTER}", (json.dumps({"live": kept[0], "before": kept[1:]}) + "\n").encode())
    _remove_litter(folder, kept)


def _readable_before(folder: str) -> list[str]:
    """The build in use, if there is one whose manifest is whole: what is damaged is nothing to keep."""
    try:
        build = live_build(folder)
        if build is None:
            return []
        read_manifest(folder, build)
    except InputError:
        return []
    return [build]


def find_manifest(folder: str) -> Manifest | None:
    """The manifest of the index in use; None where there is no index.

    Raises:
        InputError: it is damaged.
    """
    build = live_build(folder)
    return read_manifest(folder, build) if build else None


def read_manifest(folder: str, build: str) -> Manifest:
    """The manifest of a build.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = f"{build}/{_MANIFEST}"
    try:
        values = json.loads(read_bytes(f"{folder}/{path}"))
        sha256 = values.pop("sha256", "")
        if sha256 != _checksum(values):
            raise ValueError("its sha256 differs")
        if values["format"] != FORMAT:
            raise ValueError(f"it is of format {values['format']}, of another version of this code")
        return TypeAdapter(Manifest).validate_python(values)
    except FileNotFoundError:
        raise _refusal(folder, path, "the manifest that `live` names", "no such file") from None
    except (ValueError, KeyError, AttributeError, TypeError, ValidationError) as error:
        found = f"a damaged one: {' '.join(str(error).split())[:200]}"
        raise _refusal(folder, path, f"a manifest of format {FORMAT}", found) from error


def live_build(folder: str) -> str | None:
    """The name of the build in use; None where there is no index.

    Raises:
        InputError: the pointer is damaged.
    """
    return next(iter(_pointer(folder)), None)


def is_there(folder: str, manifest: Manifest) -> bool:
    """Whether every file of an index is there in its length; `read_file` looks at the content, too."""
    system, root = file_system(folder)
    infos = system.get_file_info([f"{root}/{file.path}" for file in manifest.files])
    return all(info.size == file.bytes for info, file in zip(infos, manifest.files, strict=True))


def discard(folder: str, build: str) -> None:
    """Remove the files of a build that is not published."""
    if not _BUILD.fullmatch(build):
        raise ValueError(f"{build!r} is the name of no build")
    system, root = file_system(folder)
    if system.get_file_info(f"{root}/{build}").type == fs.FileType.Directory:
        system.delete_dir(f"{root}/{build}")


def _pointer(folder: str) -> list[str]:
    """The builds that the pointer names, the one in use first; none where there is no pointer."""
    try:
        values = json.loads(read_bytes(f"{folder}/{_POINTER}"))
        return [str(values["live"]), *map(str, values["before"])]
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        cure = "Name another folder by index.folder."
        raise InputError(f"index {folder}", "", expected="a folder", found="a file", cure=cure) from None
    except (ValueError, KeyError, TypeError) as error:
        raise _refusal(folder, _POINTER, "the name of a build", f"a damaged file: {error}") from error


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _remove_litter(folder: str, builds: list[str]) -> None:
    """Remove the files that the manifests of none of these builds name, from folders that are called as builds are."""
    named = {f"{build}/{_MANIFEST}" for build in builds}
    for build in builds:
        named |= {file.path for file in read_manifest(folder, build).files}
    system, root = file_system(folder)
    for found in system.get_file_info(fs.FileSelector(root)):
        if found.type != fs.FileType.Directory or not _BUILD.fullmatch(found.base_name):
            continue  # not ours: somebody has named a folder that was in use
        files = system.get_file_info(fs.FileSelector(found.path, recursive=True))
        kept = [file for file in files if f"{found.base_name}/{file.base_name}" in named]
        if not kept:
            system.delete_dir(found.path)
        for file in files if kept else ():
            if file not in kept:
                system.delete_file(file.path)


def _refusal(folder: str, part: str, expected: str, found: str) -> InputError:
    return InputError(f"index {folder}", part, expected=expected, found=found, cure=_CURE)
