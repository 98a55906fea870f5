"""Row 4: training rows from disk to tensors, shuffled, in numbers a second (image, query and token numbers).

Ours: the project's stream of packed cells through Petastorm, to the batch that the model takes. The first other: the
same rows as plain `array<float>` columns (token ids padded to one length) through Petastorm's own BatchedDataLoader,
with its default thread pool. The ceiling: pyarrow reading the files of ours into memory, and nothing else. A turn is
one epoch; of ours, which reads on into the next one, it is three, from the opening of the stream on: nothing is read
before the clock starts. Ours must bring every row exactly once in every one; of the loader it is printed how many.
For information, pyarrow also reads with the allocator and the buffers that ours has found to be the fastest.

    python -m benchmarks.training_input [--rounds N] [--small]
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.contest import Contender, Figures, Row, Turn, compete, judge, require
from benchmarks.report import Options, main, print_outcome
from benchmarks.synthetic import Catalog, write_plain, write_training_table
from itemsage_model.data.mixing import MixedBatches
from itemsage_model.data.parquet_files import open_parquet
from itemsage_model.data.pinned_files import pin_files
from itemsage_model.data.reader import PAIR_ARRAYS, RowStream, pair_format
from schemas.elements import FEATURE_CELLS, TEXT
from schemas.presets import paper
from schemas.storage import data_files, file_system
from schemas.tables import EMBEDDING_DIM

OURS, LOADER, CEILING = "the project's stream", "petastorm BatchedDataLoader", "pyarrow, reading only"
TUNED = "pyarrow, allocator and buffers as ours"
BATCH, POOL_ROWS, EPOCHS = 512, 4096, 3


def rows(options: Options) -> Iterator[Row]:
    """Write the same rows in both layouts, then read them."""
    rows_written = options.choose(49_152, 4096)
    catalog = Catalog(rows_written, paper()[1])
    packed, plain = options.scratch / "packed", options.scratch / "plain"
    write_training_table(packed, catalog, rows_written)
    write_plain(plain, catalog, rows_written, with_pairs=True)
    contenders = [
        Contender(OURS, stream_turn, (packed, catalog)),
        Contender(LOADER, loader_turn, (plain, catalog)),
        Contender(CEILING, pyarrow_turn, (packed, catalog, pq.read_table)),
        Contender(TUNED, pyarrow_turn, (packed, catalog, read_tuned)),
    ]
    outcome = compete(contenders, options.rounds or 7)
    print_outcome(f"training input, {rows_written} rows an epoch", "M numbers", outcome)
    theirs = outcome.performances[LOADER].figures
    brought = [figures["rows"] for figures in theirs]
    print(f"  rows an epoch: ours {rows_written} in every one; {LOADER} {min(brought)} to {max(brought)},")
    print(f"    and none in {sum(figures['empty'] for figures in theirs)} epochs that do not count")
    yield judge("4", "training input, numbers/s", LOADER, outcome.ratios(OURS, LOADER), at_least=3)
    yield judge("4", "training input, numbers/s", CEILING, outcome.ratios(OURS, CEILING), at_least=0.6)
    yield judge("4", "training input, numbers/s", TUNED, outcome.ratios(OURS, TUNED))


def stream_turn(table: Path, catalog: Catalog) -> Turn:
    """Batches for the model, from an endless stream."""
    files = pin_files("training_search_click", str(table), 0)
    elements = catalog.elements
    row_format = pair_format(elements)
    seeds = count(1)

    def turn() -> Figures:
        started, keys, tokens = time.perf_counter(), [], 0
        stream = RowStream(files, row_format, POOL_ROWS, seed=next(seeds), stream=1, rank=0, ranks=1)
        batches = iter(MixedBatches([stream], [BATCH], None, 0, None, elements))
        for batch in islice(batches, EPOCHS * files.row_count // BATCH):
            keys.append(batch.query_key)
            tokens += len(batch.items[TEXT.values.name].values)
        seconds = time.perf_counter() - started
        for order in torch.cat(keys).view(EPOCHS, files.row_count):
            require(bool((order.sort().values == torch.arange(len(order))).all()), "a row is missing or comes twice")
            require(bool((order[:BATCH].diff() != 1).any()), "the rows are not shuffled")
        return _figures(EPOCHS * files.row_count, tokens, catalog, seconds)

    return turn


def loader_turn(folder: Path, catalog: Catalog) -> Turn:
    """What Petastorm's documentation shows for a Parquet store."""
    warnings.simplefilter("ignore")
    from petastorm import make_batch_reader  # noqa: PLC0415 (takes seconds; only this contender needs it)
    from petastorm.pytorch import BatchedDataLoader  # noqa: PLC0415

    urls = [f"file://{file}" for file in sorted(folder.glob("*.parquet"))]

    def epoch() -> Figures:
        started, brought, tokens = time.perf_counter(), 0, 0
        reader = make_batch_reader(urls, num_epochs=1)
        with BatchedDataLoader(reader, batch_size=BATCH, shuffling_queue_capacity=POOL_ROWS) as loader:
            for batch in loader:
                brought += len(batch["query_key"])
                tokens += int(batch["text_token_counts"].sum())
        return _figures(brought, tokens, catalog, time.perf_counter() - started)

    def turn() -> Figures:
        empty = 0
        # Its pool of threads loses rows, now and then all of them: that epoch has no speed.
        while not (figures := epoch())["rows"]:
            empty += 1
        return figures | {"empty": empty}

    return turn


def pyarrow_turn(table: Path, catalog: Catalog, read: Callable[..., pa.Table]) -> Turn:
    """The same columns of the same files, read and left as they are."""
    files = data_files(str(table))
    columns = [*PAIR_ARRAYS, *FEATURE_CELLS]

    def turn() -> Figures:
        started, brought, tokens = time.perf_counter(), 0, 0
        for file in files:
            rows = read(file, columns=columns)
            brought += len(rows)
            tokens += sum(chunk.buffers()[2].size for chunk in rows["text_token_ids"].chunks) // 4
        return _figures(brought, tokens, catalog, time.perf_counter() - started)

    return turn


def read_tuned(file: str, columns: list[str]) -> pa.Table:
    """A file as ours reads it."""
    filesystem, path = file_system(file)
    with open_parquet(path, filesystem) as opened:
        return opened.read(columns)


def _figures(rows: int, tokens: int, catalog: Catalog, seconds: float) -> Figures:
    numbers = rows * (catalog.images + 1) * EMBEDDING_DIM + tokens
    return {"units": numbers / 1e6, "seconds": seconds, "rows": rows}


if __name__ == "__main__":
    main("benchmarks.training_input")
