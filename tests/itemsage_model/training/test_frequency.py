from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itemsage_model.training.frequency import CountMinSketch, ExactFrequency, log_inclusion_probability

KEYS = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None, max_examples=50)
@given(batches=st.lists(st.lists(KEYS | st.integers(0, 5), max_size=20), max_size=4), width=st.integers(1, 40))
def test_the_sketch_never_estimates_too_low(batches: list[list[int]], width: int) -> None:
    sketch = CountMinSketch(2, width)
    counts: Counter[int] = Counter()
    for keys in batches:
        sketch.update(torch.tensor(keys, dtype=torch.int64))
        counts.update(keys)
    estimates = sketch.estimate(torch.tensor(list(counts), dtype=torch.int64)).tolist()
    assert all(estimate >= count for estimate, count in zip(estimates, counts.values(), strict=True))
    assert sketch.total == counts.total()
    assert sketch.counts.sum(dim=1).tolist() == [counts.total()] * 2


@pytest.mark.parametrize("keys", [torch.arange(1_000), torch.arange(1_000) << 40, -torch.arange(1_000)])
def test_a_wide_sketch_is_nearly_exact(keys: torch.Tensor) -> None:
    sketch = CountMinSketch(2, 1 << 14)
    sketch.update(keys.repeat(2))
    assert (sketch.estimate(keys) == 2).float().mean() > 0.98
    assert (sketch.estimate(keys + (1 << 50) + 7_777) == 0).float().mean() > 0.98


def test_rows_of_the_sketch_and_seeds_hash_differently() -> None:
    slots = [CountMinSketch(2, 1 << 14, seed)._slots(torch.arange(1, 200)) for seed in (1, 2)]
    assert (slots[0][0] == slots[0][1]).float().mean() < 0.1
    assert (slots[0] == slots[1]).float().mean() < 0.1


def test_the_sketch_is_updated_by_a_batch_before_it_is_asked() -> None:
    sketch = CountMinSketch(2, 1 << 12)
    sketch.update(torch.tensor([5, 5, 6, 7]))
    sketch.update(torch.tensor([5, 8, 8, 8]))
    assert sketch.share(torch.tensor([5, 8, 6])).tolist() == [3 / 8, 3 / 8, 1 / 8]


def test_the_sketch_comes_back_from_its_state() -> None:
    sketch, other = CountMinSketch(3, 64, seed=1), CountMinSketch(3, 64, seed=9)
    sketch.update(torch.arange(100))
    other.load_state_dict(sketch.state_dict())
    keys = torch.arange(-50, 150)
    assert torch.equal(other.share(keys), sketch.share(keys))


def test_exact_shares_in_any_order_and_the_smallest_for_the_unknown() -> None:
    frequency = ExactFrequency(torch.tensor([30, -10, 20]), torch.tensor([0.5, 0.25, 0.125]))
    frequency.update(torch.tensor([30, 30]))
    found = frequency.share(torch.tensor([20, 30, -10, 30, -11, 25, 99]))
    assert found.tolist() == [0.125, 0.5, 0.25, 0.5, 0.125, 0.125, 0.125]


def test_exact_shares_come_back_from_their_state() -> None:
    frequency = ExactFrequency(torch.tensor([3, 1]), torch.tensor([0.7, 0.3]))
    other = ExactFrequency(torch.tensor([8, 9]), torch.tensor([0.5, 0.5]))
    other.load_state_dict(frequency.state_dict())
    assert torch.equal(other.share(torch.tensor([1, 3])), frequency.share(torch.tensor([1, 3])))


@pytest.mark.parametrize(("keys", "shares"), [([], []), ([4, 4], [0.5, 0.5]), ([4, 5], [1.0, 0.0])])
def test_exact_shares_refuse_what_is_no_distribution(keys: list[int], shares: list[float]) -> None:
    with pytest.raises(ValueError, match="item_counts: expected distinct items with positive shares"):
        ExactFrequency(torch.tensor(keys, dtype=torch.int64), torch.tensor(shares))


@settings(deadline=None, max_examples=50)
@given(share=st.fractions(0, 1, max_denominator=10**6), draws=st.integers(1, 400))
def test_log_inclusion_probability_equals_exact_arithmetic(share: Fraction, draws: int) -> None:
    found = log_inclusion_probability(torch.tensor([float(share)], dtype=torch.float64), draws).item()
    exact = 1 - (1 - share) ** draws
    # math.log takes the two big integers apart, so nothing is lost in the reference
    expected = math.log(exact.numerator) - math.log(exact.denominator) if exact else -708.0
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9) if exact else found < expected + 10
    assert found <= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_inclusion_probability_of_tiny_shares_and_at_the_ends(dtype: torch.dtype) -> None:
    found = log_inclusion_probability(torch.tensor([0.0, 1e-12, 1.0], dtype=dtype), 8_192)
    assert found.isfinite().all()
    assert found[1].item() == pytest.approx(math.log(8_192e-12), rel=1e-6)
    assert found[2] == 0


def test_a_batch_draws_at_least_once() -> None:
    with pytest.raises(ValueError, match="draws must be at least 1"):
        log_inclusion_probability(torch.tensor([0.5]), 0)
