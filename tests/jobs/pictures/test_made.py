"""Distinct pictures of a batch: what is seen, what has changed, what cannot be read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from itemsage_model.encoders.pictures.picture_encoder import PictureEncoder
from itemsage_model.encoders.pictures.preprocessing import Preprocessing
from jobs.pictures.made import distinct, embedded
from jobs.runtime.picture_files import PictureFiles
from schemas.settings import PictureSettings
from tests.itemsage_model.encoders.pictures.drawn import jpeg


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_picture_that_is_not_what_it_was_has_no_row(tmp_path: Path) -> None:
    for name in ("kept", "changed", "seen"):
        (tmp_path / name).write_bytes(name.encode())
    hashes = [name_of(one) for one in (b"inline", b"kept", b"before", b"gone", b"seen")]
    uris = [None, *(str(tmp_path / name) for name in ("kept", "changed", "gone", "seen"))]
    batch = pa.RecordBatch.from_pydict(
        {"picture_hash": hashes, "picture": pa.array([b"inline", None, None, None, None], pa.binary()), "uri": uris}
    )
    files = PictureFiles(PictureSettings(roots=(str(tmp_path),)))
    assert distinct(batch, {name_of(b"seen")}, files) == {name_of(one): one for one in (b"inline", b"kept")}


def test_a_picture_without_a_direction_and_a_broken_one_say_so() -> None:
    def forward(pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        is_red = pixels[:, 0, :2, :2].mean((1, 2)) > 0.9
        return np.stack([is_red * 3.0, is_red * 4.0], axis=1).astype(np.float32)

    encoder = PictureEncoder("red", Preprocessing(8, 8, (0, 0, 0), (1, 1, 1)), forward, 2)
    green = jpeg(size=(4, 3))[:-300] + b""
    contents = {"a": jpeg(), "b": green, "c": _black(), "d": jpeg(1)}
    rows = embedded(contents, encoder, 50_000_000, "me").to_pylist()
    assert [row["picture_hash"] for row in rows] == list("abcd")
    assert [row["fault"] for row in rows][2] == "no_vector"
    assert rows[1]["fault"] in ("truncated", "broken_header")
    assert rows[1]["image_embedding"] is rows[2]["image_embedding"] is None
    np.testing.assert_allclose([rows[0]["image_embedding"], rows[3]["image_embedding"]], [[0.6, 0.8]] * 2, rtol=1e-6)
    assert {row["made_by"] for row in rows} == {"me"}
    assert (rows[0]["fault"], rows[0]["found"]) == (None, None)


def _black() -> bytes:
    from PIL import Image

    from tests.itemsage_model.encoders.pictures.drawn import saved

    return saved(Image.new("RGB", (20, 20)), "PNG")
