"""Two gloo processes against one. The same file is the program that each process runs: see `main`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from itemsage_model.data.batch import Buckets, ItemBatch, PairBatch
from itemsage_model.training import distributed
from itemsage_model.training.frequency import CountMinSketch, log_inclusion_probability
from itemsage_model.training.loss import Columns, Form, pair_losses, weighted_mean
from itemsage_model.training.masks import first_rows, same_item_mask, same_query_mask
from itemsage_model.training.objective import Objective
from itemsage_model.training.ranks import MEETING_PLACE
from schemas.errors import DeadlineError
from schemas.settings import LossSettings

ROOT = Path(__file__).resolve().parents[3]
FORMS: tuple[Form, ...] = ("sum", "literal", "mixed", "corrected", "full")

# One batch of 7 pairs and 5 random negatives, and how many of them rank 0 has. Item 11 is a positive on both ranks
# and item 13 a negative on both; query 1 occurs on both; item 12, a negative, is shown by a query of the other rank.
ITEMS = (11, 12, 13, 11, 14, 15, 11)
QUERIES = (1, 2, 3, 3, 1, 4, 5)
SHOWN = (0, 13, 0, 0, 12, 0, 0)
WEIGHTS = (1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 0.25)
NEGATIVES = (13, 16, 12, 13, 17)
PAIRS_OF_RANK = (slice(0, 3), slice(3, None))
NEGATIVES_OF_RANK_0 = 1


class Tower(nn.Module):
    """A toy item tower over item keys, with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4, dtype=torch.float64)
        self.log_temperature = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, item_keys: Tensor) -> Tensor:
        features = torch.sin(item_keys[:, None] * torch.arange(1, 7, dtype=torch.float64))
        return F.normalize(self.linear(features), dim=1)


def global_loss(tower: nn.Module, temperature: Tensor, form: Form, pairs: slice, negatives: slice) -> Tensor:
    """The trainer's composition: encode distinct items, gather, count, mask, loss."""
    item_keys, query_keys, shown, others = (torch.tensor(x) for x in (ITEMS, QUERIES, SHOWN, NEGATIVES))
    item_keys, query_keys, shown, others = item_keys[pairs], query_keys[pairs], shown[pairs], others[negatives]
    queries = torch.cos(query_keys[:, None] * torch.arange(1, 5, dtype=torch.float64))
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[pairs]

    own_keys = torch.unique(torch.cat([item_keys, others]))
    vectors = distributed.gather_rows_with_gradient(tower(own_keys))
    keys = distributed.gather_rows(own_keys)
    drawn, random = distributed.gather_rows(item_keys), distributed.gather_rows(others)
    columns, counts = torch.unique(keys if form == "full" else drawn, return_counts=True)
    sketch = CountMinSketch(2, 1 << 10)
    sketch.update(drawn)
    share = sketch.share(columns)
    log_probability = share.log() if form == "literal" else log_inclusion_probability(share, len(drawn))
    in_batch = Columns(
        vectors[first_rows(keys, columns)],
        torch.zeros_like(share) if form == "full" else log_probability,
        same_query_mask(
            query_keys, distributed.gather_rows(query_keys), torch.searchsorted(columns, drawn), len(columns)
        )
        | same_item_mask(shown, columns),
        counts,
    )
    random_columns, random_counts = torch.unique(random, return_counts=True)
    random_negatives = Columns(
        vectors[first_rows(keys, random_columns)],
        torch.full(random_columns.shape, -0.7, dtype=torch.float64),
        same_item_mask(item_keys, random_columns) | same_item_mask(shown, random_columns),
        random_counts,
    )
    losses = pair_losses(
        queries,
        torch.searchsorted(columns, item_keys),
        in_batch,
        None if form == "full" else random_negatives,
        temperature,
        form,
    )
    weight_sum = distributed.sum_over_ranks(weights.sum())
    return weighted_mean(losses, weights, weight_sum, distributed.world_size())


def bucketed_loss(tower: nn.Module, temperature: Tensor, rank: int) -> Tensor:
    """The trainer's composition for a rank's pairs and the bucket that it chose, of which the other has no item."""
    pairs = PAIRS_OF_RANK[rank]
    item_keys, query_keys, shown = (torch.tensor(numbers)[pairs] for numbers in (ITEMS, QUERIES, SHOWN))
    columns = torch.tensor([[11, 13, 16], [12, 14, 17]][rank])
    keys = torch.unique(torch.cat([item_keys, columns]))
    batch = PairBatch(
        ItemBatch({}),
        keys,
        torch.searchsorted(keys, item_keys),
        torch.empty(0, dtype=torch.int64),
        torch.cos(query_keys[:, None] * torch.arange(1, 5, dtype=torch.float64)),
        query_keys,
        shown,
        torch.tensor(WEIGHTS, dtype=torch.float64)[pairs],
        torch.zeros_like(item_keys),
        buckets=Buckets(
            torch.zeros_like(item_keys),
            torch.searchsorted(keys, columns)[None],
            torch.tensor([[0.0, -0.7, -0.7]], dtype=torch.float64),
        ),
    )
    objective = Objective(LossSettings(form="bucketed"), CountMinSketch(2, 1 << 10), 1.0)
    return objective(batch.query_embedding, tower(keys), batch, temperature)[1]


def loss_and_gradients(form: Form, pairs: slice, negatives: slice) -> dict[str, Tensor]:
    return gradients_of(lambda tower, temperature: global_loss(tower, temperature, form, pairs, negatives))


def gradients_of(compute: Callable[[nn.Module, Tensor], Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    tower = Tower()
    model = DistributedDataParallel(tower) if distributed.world_size() > 1 else tower
    loss = compute(model, tower.log_temperature.exp())
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in tower.named_parameters() if parameter.grad is not None}
    return {"loss": distributed.sum_over_ranks(loss) / distributed.world_size()} | gradients


def main(folder: str) -> None:
    """What each of the two processes does."""
    device = distributed.start(timeout_seconds=60)
    rank = distributed.rank()
    found: dict[str, Any] = {"device": str(device), "rank": rank, "world_size": distributed.world_size()}
    own = PAIRS_OF_RANK[rank]
    own_negatives = (slice(0, NEGATIVES_OF_RANK_0), slice(NEGATIVES_OF_RANK_0, None))[rank]
    for form in FORMS:
        found[form] = loss_and_gradients(form, own, own_negatives)
    found["bucketed"] = gradients_of(lambda tower, temperature: bucketed_loss(tower, temperature, rank))

    rows = torch.arange(6).view(3, 2)
    found["rows"] = distributed.gather_rows(rows[: 1 + rank] + 10 * rank)
    found["one empty"] = distributed.gather_rows(rows[: 2 * rank])
    found["all empty"] = distributed.gather_rows(rows[:0])
    found["bool"] = distributed.gather_rows(torch.tensor([rank == 0]))
    numbers = torch.tensor([1.0 + rank, 5.0 - rank])
    found["total"], found["min"] = distributed.sum_over_ranks(numbers), distributed.min_over_ranks(numbers)
    found["max"], found["numbers"] = distributed.max_over_ranks(numbers), numbers
    distributed.same_on_all_ranks("settings", "the same")
    try:
        distributed.same_on_all_ranks("settings", f"of rank {rank}")
    except RuntimeError as error:
        found["error"] = str(error)
    distributed.barrier()
    distributed.stop()
    found["after"] = distributed.world_size()
    torch.save(found, Path(folder) / f"{rank}.pt")


def environment_of_two(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        MEETING_PLACE: str(folder / "store"),
        "WORLD_SIZE": "2",
    }


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("two_ranks")
    environment = environment_of_two(folder)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_equal_one_in_loss_and_gradients(two_ranks: list[dict[str, Any]], form: Form) -> None:
    expected = loss_and_gradients(form, slice(None), slice(None))
    assert set(expected) == {"loss", "linear.weight", "linear.bias", "log_temperature"}
    assert all(value.abs().max() > 1e-3 for value in expected.values())
    for found in two_ranks:
        for name, value in expected.items():
            torch.testing.assert_close(found[form][name], value.detach(), rtol=1e-10, atol=1e-12, msg=f"{form} {name}")


def test_two_ranks_with_buckets_of_their_own_add_up(two_ranks: list[dict[str, Any]]) -> None:
    shares = [sum(WEIGHTS[pairs]) / sum(WEIGHTS) for pairs in PAIRS_OF_RANK]

    def both(tower: nn.Module, temperature: Tensor) -> Tensor:
        parts = [share * bucketed_loss(tower, temperature, rank) for rank, share in enumerate(shares)]
        return torch.stack(parts).sum()

    expected = gradients_of(both)
    assert all(value.abs().max() > 1e-3 for value in expected.values())
    for found in two_ranks:
        for name, value in expected.items():
            torch.testing.assert_close(found["bucketed"][name], value.detach(), rtol=1e-10, atol=1e-12, msg=name)


def test_ranks_gather_different_numbers_of_rows(two_ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(two_ranks):
        assert (found["rank"], found["world_size"], found["device"]) == (rank, 2, "cpu")
        assert found["rows"].tolist() == [[0, 1], [10, 11], [12, 13]]
        assert found["one empty"].tolist() == [[0, 1], [2, 3]]
        assert found["all empty"].shape == (0, 2)
        assert found["bool"].tolist() == [True, False]


def test_reductions_leave_their_argument_alone(two_ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(two_ranks):
        assert found["total"].tolist() == [3, 9]
        assert found["min"].tolist() == [1, 4]
        assert found["max"].tolist() == [2, 5]
        assert found["numbers"].tolist() == [1 + rank, 5 - rank]


@pytest.mark.fault("D8", "loud", "another manifest on one rank of two")
def test_a_difference_between_ranks_is_named_on_every_rank(two_ranks: list[dict[str, Any]]) -> None:
    for found in two_ranks:
        assert "settings: expected the same on all 2 processes" in found["error"]
        assert "ranks [1]" in found["error"]
        assert found["after"] == 1


def test_a_single_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.start()
    rows = torch.arange(4.0).view(2, 2).requires_grad_()
    assert not dist.is_initialized()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert torch.equal(distributed.gather_rows(rows), rows)
    assert not distributed.gather_rows(rows).requires_grad
    assert distributed.gather_rows_with_gradient(rows).requires_grad
    for reduce in (distributed.sum_over_ranks, distributed.min_over_ranks, distributed.max_over_ranks):
        assert torch.equal(reduce(rows), rows)
    distributed.same_on_all_ranks("settings", "mine")
    distributed.barrier()
    distributed.stop()


@pytest.mark.parametrize("timeout_seconds", [0, 3601])
def test_nobody_waits_longer_than_an_hour(timeout_seconds: int) -> None:
    with pytest.raises(ValueError, match="timeout_seconds must be above 0 and at most 3600"):
        distributed.start(timeout_seconds)


def wait_for_a_frozen_rank() -> None:
    """Rank 1 stops as a hung machine does; rank 0 waits for it, and prints the error."""
    distributed.start(timeout_seconds=3)
    distributed.barrier()
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    distributed._SIGN_SECONDS = 0.5
    try:
        with distributed.naming_silent_ranks(3):
            distributed.sum_over_ranks(torch.ones(1))
    except DeadlineError as error:
        print(error, flush=True)
        os._exit(7)


@pytest.mark.fault("D7", "loud", "a frozen rank (SIGSTOP) and a deadline of 3 s")
def test_a_frozen_rank_is_named_within_the_deadline(tmp_path: Path) -> None:
    environment = environment_of_two(tmp_path)
    command = [sys.executable, __file__, "frozen"]
    frozen = subprocess.Popen(command, env=environment | {"RANK": "1"})
    try:
        waiting = subprocess.run(
            command, env=environment | {"RANK": "0"}, capture_output=True, text=True, timeout=100, check=False
        )
    finally:
        frozen.kill()
        frozen.wait()
    assert waiting.returncode == 7, waiting.stderr[-2000:]
    assert "rank 0 of 2: expected the other processes within 3 s (deadlines.rank_seconds)" in waiting.stdout
    assert "no sign of rank 1" in waiting.stdout


if __name__ == "__main__":
    wait_for_a_frozen_rank() if sys.argv[1] == "frozen" else main(sys.argv[1])
