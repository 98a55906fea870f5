"""The GPU paragraph: a training step in bfloat16 at 8,192 pairs + 8,192 negatives, and scoring, folded and plain.

The paper's sizes; batches lie on the device, so that the device's own limits are what is met, and what it takes to
bring one there is printed apart. Printed with each rate is the limit that binds: the step's arithmetic (matrix
products, as torch's counter counts them) over what a large bfloat16 product reaches here, or its least traffic over
what a large copy reaches here, whichever takes longer; and that time as a share of the time taken. Traffic is counted
from the batch, the same for both: the items' images read in forward and backward; for every token one float32 vector
read forward and the gradient of its text backward (a token's rows of the table need be merged only once, as tokens
repeat); for every weight the gradient written and read, the weight and both of Adam's moments read and written, and
the weight read in forward. Scoring: images once, and a bfloat16 vector for every token. Repeated vectors come from
the cache, so this is no strict bound. Bars: none.

Without a GPU nothing is run, and the rows say so; --small then tries the code on the CPU.

    python -m benchmarks.gpu_training [--rounds N] [--small]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contest import CannotRun, Contender, Figures, Outcome, Row, Turn, compete, judge, repeat, require
from benchmarks.encoder import cast
from benchmarks.plain_encoder import plain_tower
from benchmarks.report import Options, main, print_outcome
from benchmarks.synthetic import Catalog
from itemsage_model.data.batch import ItemBatch, PairBatch
from itemsage_model.data.mixing import collate
from itemsage_model.data.ragged import ItemRows
from itemsage_model.data.reader import CatalogItems, Pairs
from itemsage_model.encoders.item_tower import ItemTower
from itemsage_model.training.frequency import CountMinSketch
from itemsage_model.training.objective import Objective
from itemsage_model.training.trainer import Trainer
from schemas.elements import IMAGES, TEXT
from schemas.presets import paper
from schemas.settings import LossSettings, TrainSettings
from schemas.tables import EMBEDDING_DIM

FOLDED, PLAIN = "folded", "nn.TransformerEncoderLayer"
_COMPARED = 64


def rows(options: Options) -> Iterator[Row]:
    """Time both, on the GPU where there is one."""
    works = {"training step, pairs/s": training_turn, "scoring, items/s": scoring_turn}
    if not torch.cuda.is_available() and not options.small:
        for name in works:
            yield Row("gpu", f"{name}, bfloat16", PLAIN, None, None, None, "", None, "no GPU that CUDA finds here")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = options.choose(8192, 8)
    limits = measure_limits(device)
    print(f"{device}: large product {limits[0] / 1e12:.1f} TFLOP/s in bfloat16, large copy {limits[1] / 1e9:.0f} GB/s")
    if device == "cuda":
        print_transfer(make_batch(pairs))
    for name, enter in works.items():
        contenders = [Contender(kind, enter, (kind, device, pairs)) for kind in (FOLDED, PLAIN)]
        outcome = compete(contenders, options.rounds or 6)
        print_outcome(f"{name}, {pairs} + {pairs}, bfloat16, {device}", "units", outcome)
        print_limits(outcome, limits)
        if len(outcome.performances) == 2:
            check_equal(outcome)
            yield judge("gpu", f"{name}, bfloat16", PLAIN, outcome.ratios(FOLDED, PLAIN))
        for kind, reason in outcome.absent.items():
            yield Row("gpu", f"{name}, bfloat16", kind, None, None, None, "", None, reason)


def training_turn(kind: str, device: str, pairs: int) -> Turn:
    """Whole steps of the project's trainer: encode, count, loss, backward, update."""
    tower, batch = make_tower(kind, device), make_batch(pairs).to(torch.device(device))
    loss = LossSettings()
    objective = Objective(loss, CountMinSketch(loss.sketch_depth, loss.sketch_width), 0.1).to(device)
    settings = TrainSettings(batch_size=pairs, negative_count=pairs, precision="bfloat16", warmup_steps=0)
    trainer = Trainer(tower, objective, settings, 1)
    traffic = 2 * _image_bytes(batch.items) + 2 * _token_bytes(batch.items, 4)
    traffic += 9 * sum(parameter.numel() * parameter.element_size() for parameter in tower.parameters())

    @torch.no_grad()
    def embed() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            embeddings: Tensor = tower(batch.items)
        return embeddings[:_COMPARED]

    return _turn(lambda: float(trainer.train_step(batch)[0].mean()), embed, pairs, traffic, device)


def scoring_turn(kind: str, device: str, pairs: int) -> Turn:
    """Vectors of a batch's items with frozen weights."""
    tower = make_tower(kind, device).eval().requires_grad_(False)
    fold = cast(tower.fold(), torch.bfloat16) if kind == FOLDED else None
    tower, items = tower.to(torch.bfloat16), cast(make_batch(pairs).items.to(torch.device(device)), torch.bfloat16)

    def score() -> Tensor:
        with torch.inference_mode():
            embeddings: Tensor = tower(items, fold)
        return embeddings[:_COMPARED].cpu()

    return _turn(score, score, len(items), _image_bytes(items) + _token_bytes(items, 2), device)


def make_tower(kind: str, device: str) -> ItemTower:
    """The paper's tower, ours or plain."""
    sizes, features = paper()
    torch.manual_seed(0)
    tower = ItemTower(sizes, LossSettings(), Catalog(1, features).elements)
    return (plain_tower(tower) if kind == PLAIN else tower).to(device)


def make_batch(pairs: int) -> PairBatch:
    """Pairs and negatives, all of different items."""
    catalog = Catalog(2 * pairs, paper()[1])
    items = catalog.first_items(2 * pairs)
    keys, random = np.arange(1, 2 * pairs + 1), np.random.default_rng(1)
    queries = random.standard_normal((pairs, EMBEDDING_DIM)).astype("<f2")
    zeros, ones = np.zeros(pairs, np.int64), np.ones(pairs, np.float32)
    first, second = np.arange(pairs), np.arange(pairs, 2 * pairs)
    block = Pairs(keys[first], keys[first], zeros, ones, queries, ItemRows([items], first))
    negatives = CatalogItems(keys[second], ItemRows([items], second))
    batch = collate([block], negatives, catalog.elements)
    length = batch.query_embedding.norm(dim=1, keepdim=True)
    return replace(batch, query_embedding=batch.query_embedding / length)


def measure_limits(device: str) -> tuple[float, float]:
    """Operations a second of a large bfloat16 product, and bytes a second of a large copy."""
    size, numbers = (8192, 1 << 28) if device == "cuda" else (512, 1 << 22)
    matrix = torch.randn(size, size, device=device).to(torch.bfloat16)
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    rates = []
    for step, work in ((lambda: matrix @ matrix, 2.0 * size**3), (lambda: target.copy_(source), 8.0 * numbers)):
        run = _synchronised(step)
        run()
        figures = repeat(run, 1)
        rates.append(work * figures["units"] / figures["seconds"])
    return rates[0], rates[1]


def print_transfer(batch: PairBatch) -> None:
    """What the trainer's data thread and its main thread have to do to bring a batch to the GPU."""
    seconds = {}
    for name in ("page-locking", "copying"):
        for _ in range(3):
            torch.cuda.synchronize()
            started = time.perf_counter()
            if name == "page-locking":
                locked = batch.pin_memory()
            else:
                locked.to(torch.device("cuda"))
            torch.cuda.synchronize()
            seconds[name] = time.perf_counter() - started
    tensors = [tensor for element in batch.items.elements.values() for tensor in (element.values, element.counts)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    shares = ", ".join(f"{name} {1e3 * taken:.1f} ms" for name, taken in seconds.items())
    print(f"bringing a batch of {size / 1e6:.0f} MB to the GPU: {shares}")


def check_equal(outcome: Outcome) -> None:
    """Both compute the same embeddings, as far as bfloat16 goes."""
    folded, plain = (outcome.performances[name].figures[0]["first"] for name in (FOLDED, PLAIN))
    difference = float(np.abs(folded - plain).max())
    require(difference <= 0.02, f"embeddings of the two differ by {difference:.3f}")
    print(f"  embeddings of the first {len(folded)} items agree within {difference:.4f}")


def print_limits(outcome: Outcome, limits: tuple[float, float]) -> None:
    """Which limit binds each contender, and how near it came."""
    for name, performance in outcome.performances.items():
        last = performance.figures[-1]
        times = {"arithmetic": last["flops"] / limits[0], "traffic": last["bytes"] / limits[1]}
        binding = max(times, key=lambda limit: times[limit])
        taken = last["seconds"] / last["steps"]
        work = f"{last['flops'] / 1e12:.2f} TFLOP and {last['bytes'] / 1e9:.2f} GB a step of {taken * 1e3:.1f} ms"
        memory = f"at most {last['device_bytes'] / 1e9:.1f} GB allocated"
        print(f"  {name}: {work}; {binding} binds, {times[binding] / taken:.0%} of that limit reached; {memory}")


def _turn(step: Callable[[], object], embed: Callable[[], Tensor], units: int, traffic: int, device: str) -> Turn:
    """A turn of at least a second of steps; a first one counts their operations, and `embed` gives what is compared."""
    # The library's fused inference layer is one operation, of which the counter knows nothing.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        first = embed().float().cpu().numpy()
        with FlopCounterMode(display=False, custom_mapping=_PRODUCTS) as counter:
            step()
    except torch.OutOfMemoryError as error:
        raise CannotRun(f"out of memory: {str(error)[:120]}") from error
    torch.backends.mha.set_fastpath_enabled(True)
    counted = {"flops": counter.get_total_flops(), "bytes": traffic, "first": first}

    def turn() -> Figures:
        # A step ends with a number that the CPU reads, so with all that the GPU had to do for it.
        figures = repeat(step, units, 1.0)
        allocated = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        return {**figures, **counted, "steps": figures["units"] // units, "device_bytes": allocated}

    return turn


def _flops(left: Tensor, right: Tensor, *_: object, **__: object) -> int:
    """Operations of a matrix product; of a sparse one, which the counter would take for a dense one, by its numbers."""
    numbers = left._nnz() if left.layout == torch.sparse_csr else left.numel()
    return 2 * numbers * right.shape[1]


def _flops_with_addend(_: Tensor, left: Tensor, right: Tensor, *__: object, **___: object) -> int:
    return _flops(left, right)


_flops._get_raw = _flops_with_addend._get_raw = True  # type: ignore[attr-defined]  # tensors, not their shapes
_PRODUCTS = {torch.ops.aten.mm: _flops, torch.ops.aten.addmm: _flops_with_addend}


def _synchronised(step: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _image_bytes(items: ItemBatch) -> int:
    images = items[IMAGES.values.name].values
    return images.numel() * images.element_size()


def _token_bytes(items: ItemBatch, size: int) -> int:
    return items[TEXT.values.name].values.numel() * EMBEDDING_DIM * size


if __name__ == "__main__":
    main("benchmarks.gpu_training")
