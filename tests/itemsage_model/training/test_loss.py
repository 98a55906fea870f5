from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from itemsage_model.training.loss import Columns, Form, OwnColumn, distillation_losses, pair_losses, weighted_mean
from itemsage_model.training.masks import first_rows, same_item_mask, same_query_mask

FORMS: tuple[Form, ...] = ("sum", "literal", "mixed", "corrected", "full")
SAMPLED: tuple[Form, ...] = ("sum", "literal", "mixed", "corrected")


@dataclass
class World:
    """Six items (keys 1 to 6), five pairs, four random negatives; every mask occurs.

    Pair 1 repeats pair 0's item; pairs 0 and 2 share a query; pair 3's query shows item 1, which is in the batch,
    and pair 4's shows its own positive. Item 6 is only a negative.
    """

    query_keys = (7, 8, 7, 9, 10)
    items = (1, 1, 2, 3, 4)
    query_items = (0, 0, 0, 1, 4)
    negatives: tuple[int, ...] = (6, 1, 3, 5)
    shares = (0.4, 0.2, 0.2, 0.2, 0.1, 0.05)
    negative_probability = 0.7
    explicit: tuple[tuple[int, float], ...] = ()
    """Of each pair, the item and the weight of its explicit negative; weight 0 = it has none."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.vectors = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        self.queries = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        self.temperature = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.vectors, self.queries, self.temperature]

    def candidates(self, form: Form) -> tuple[Tensor, Columns, Columns | None]:
        """What the trainer makes of a batch: positive columns, in-batch items (or catalog), random negatives."""
        items, query_keys = torch.tensor(self.items), torch.tensor(self.query_keys)
        keys, positive, counts = torch.unique(items, return_inverse=True, return_counts=True)
        if form == "full":
            keys, positive, counts = torch.arange(1, 7), items - 1, torch.ones(6, dtype=torch.int64)
        shown = torch.tensor(self.query_items)
        shares = torch.tensor(self.shares, dtype=torch.float64)[keys - 1]
        log_probability = {"full": 0 * shares, "literal": shares.log()}.get(form, (1 - (1 - shares) ** 5).log())
        is_masked = same_query_mask(query_keys, query_keys, positive, len(keys)) | same_item_mask(shown, keys)
        own = None
        if self.explicit:
            weights = torch.tensor([weight for _, weight in self.explicit], dtype=torch.float64)
            own = OwnColumn(self.vectors[torch.tensor([item for item, _ in self.explicit]) - 1], weights.log())
        in_batch = Columns(self.vectors[keys - 1], log_probability, is_masked, counts, own)
        if form == "full" or not self.negatives:
            return positive, in_batch, None
        others = torch.tensor(self.negatives)
        negatives = Columns(
            self.vectors[others - 1],
            torch.full((4,), self.negative_probability, dtype=torch.float64).log(),
            same_item_mask(shown, others) | same_item_mask(items, others),
        )
        return positive, in_batch, negatives


def slow_losses(
    world: World,
    vectors: list[list[float]],
    queries: list[list[float]],
    temperature: float,
    form: Form,
    weights: list[float] | None = None,
) -> tuple[list[float], list[float]]:
    """The formulas of `pair_losses`, one number at a time; the weights of "corrected" may be held fixed."""
    losses, wrong = [], []
    for row, own in enumerate(world.items):
        logit = {
            item: temperature * sum(q * v for q, v in zip(queries[row], vectors[item - 1], strict=True))
            for item in range(1, 7)
        }
        s = logit[own]
        explicit, weight = world.explicit[row] if world.explicit else (1, 0.0)
        if form == "literal":
            total = sum(math.exp(logit[y]) / world.shares[y - 1] for y in world.items)
            total += weight * math.exp(logit[explicit])
            losses.append(-math.log(math.exp(s) / world.shares[own - 1] / total))
            if world.negatives:
                losses[-1] -= math.log(math.exp(s) / sum(math.exp(logit[n]) for n in world.negatives))
            continue
        in_batch = weight * math.exp(logit[explicit])
        for item in range(1, 7) if form == "full" else sorted(set(world.items)):
            same_query = any(
                world.query_keys[other] == world.query_keys[row] and world.items[other] == item for other in range(5)
            )
            if item != own and item != world.query_items[row] and not same_query:
                probability = 1.0 if form == "full" else 1 - (1 - world.shares[item - 1]) ** 5
                in_batch += math.exp(logit[item]) / probability
        random = 0.0
        for item in world.negatives:
            if item not in (own, world.query_items[row]):
                random += math.exp(logit[item]) / world.negative_probability
        e = math.exp(s)
        if form == "full":
            losses.append(-math.log(e / (e + in_batch)))
        elif form == "sum":
            losses.append(-math.log(e / (e + in_batch)) - math.log(e / (e + random)))
        elif form == "mixed":
            losses.append(-math.log(e / (e + in_batch + random)))
        else:
            pooled = (in_batch + random) / (2 if world.negatives else 1)
            wrong.append(1 - e / (e + pooled))
            losses.append((weights or wrong)[row] * (math.log(pooled) - s))
    return losses, wrong


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("negatives", [World.negatives, ()])
@pytest.mark.parametrize("explicit", [(), ((6, 1.0), (5, 0.0), (1, 0.3), (6, 20.0), (3, 2.0))])
def test_equals_a_slow_loop_in_values_and_gradients(
    form: Form, negatives: tuple[int, ...], explicit: tuple[tuple[int, float], ...]
) -> None:
    world = World()
    world.negatives, world.explicit = negatives, explicit
    positive, in_batch, random = world.candidates(form)
    losses = pair_losses(world.queries, positive, in_batch, random, world.temperature, form)
    vectors, queries, temperature = (p.tolist() for p in world.parameters)
    expected, weights = slow_losses(world, vectors, queries, temperature, form)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)

    pair_weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    gradients = torch.autograd.grad((losses * pair_weights).sum(), world.parameters)
    step = 1e-6

    def slope(change: tuple[str, int, int]) -> float:
        totals = []
        for sign in (1, -1):
            moved = {"v": [list(x) for x in vectors], "q": [list(x) for x in queries], "t": [[temperature]]}
            moved[change[0]][change[1]][change[2]] += sign * step
            found, _ = slow_losses(world, moved["v"], moved["q"], moved["t"][0][0], form, weights)
            totals.append(sum(w * x for w, x in zip(pair_weights.tolist(), found, strict=True)))
        return (totals[0] - totals[1]) / (2 * step)

    for name, gradient in zip("vqt", gradients, strict=True):
        table = gradient.reshape(-1, gradient.shape[-1] if gradient.ndim else 1)
        slopes = [[slope((name, i, j)) for j in range(table.shape[1])] for i in range(table.shape[0])]
        torch.testing.assert_close(table, torch.tensor(slopes, dtype=torch.float64), rtol=1e-6, atol=1e-8)


def test_the_corrected_form_on_one_sample_has_the_gradient_of_the_sum_form() -> None:
    world = World()
    positive, in_batch, _ = world.candidates("corrected")
    gradients = [
        torch.autograd.grad(
            pair_losses(world.queries, positive, in_batch, None, world.temperature, form).sum(),
            world.parameters,
            retain_graph=True,
        )
        for form in ("corrected", "sum")
    ]
    for corrected, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(corrected, summed, rtol=1e-12, atol=1e-12)


def test_full_without_masks_is_cross_entropy_over_the_catalog() -> None:
    world = World()
    positive, catalog, _ = world.candidates("full")
    catalog = replace(catalog, is_masked=torch.zeros(5, 6, dtype=torch.bool))
    losses = pair_losses(world.queries, positive, catalog, None, world.temperature, "full")
    logits = world.queries @ world.vectors.T * world.temperature
    torch.testing.assert_close(losses, F.cross_entropy(logits, positive, reduction="none"))


def test_full_with_each_query_once_equals_a_row_a_pair() -> None:
    world = World()
    positive, catalog, _ = world.candidates("full")
    catalog = replace(catalog, is_masked=same_item_mask(torch.tensor([1, 2, 0]), torch.arange(1, 7)))
    rows = torch.tensor([0, 2, 2, 1, 0])  # row 0 shows item 1, which is also the item of one of its pairs
    positive = torch.tensor([0, 3, 4, 2, 5])
    repeated = replace(catalog, is_masked=catalog.is_masked[rows])
    results = []
    for queries, columns, of_pair in ((world.queries[:3], catalog, rows), (world.queries[:3][rows], repeated, None)):
        losses = pair_losses(queries, positive, columns, None, world.temperature, "full", of_pair)
        results.append(
            (losses, *torch.autograd.grad((losses * torch.arange(1, 6)).sum(), world.parameters, retain_graph=True))
        )
    for once, each in zip(*results, strict=True):
        torch.testing.assert_close(once, each, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="query_of_pair"):
        pair_losses(world.queries[:3], positive, catalog, None, world.temperature, "sum", rows)


def test_full_takes_no_random_negatives() -> None:
    world = World()
    positive, in_batch, negatives = world.candidates("sum")
    with pytest.raises(ValueError, match="takes no random negatives"):
        pair_losses(world.queries, positive, in_batch, negatives, world.temperature, "full")


def shuffled(candidates: Columns, order: Tensor) -> Columns:
    counts = None if candidates.counts is None else candidates.counts[order]
    return Columns(candidates.vectors[order], candidates.log_probability[order], candidates.is_masked[:, order], counts)


@settings(deadline=None, max_examples=30)
@given(
    form=st.sampled_from(SAMPLED),
    columns=st.permutations(range(4)),
    others=st.permutations(range(4)),
    rows=st.permutations(range(5)),
)
def test_order_of_columns_and_rows_does_not_matter(
    form: Form, columns: list[int], others: list[int], rows: list[int]
) -> None:
    world = World()
    positive, in_batch, negatives = world.candidates(form)
    assert negatives is not None
    expected = pair_losses(world.queries, positive, in_batch, negatives, world.temperature, form)
    order = torch.tensor(columns)
    place = torch.argsort(order)
    row = torch.tensor(rows)
    in_batch, negatives = shuffled(in_batch, order), shuffled(negatives, torch.tensor(others))
    found = pair_losses(
        world.queries[row],
        place[positive][row],
        replace(in_batch, is_masked=in_batch.is_masked[row]),
        replace(negatives, is_masked=negatives.is_masked[row]),
        world.temperature,
        form,
    )
    torch.testing.assert_close(found, expected[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", SAMPLED)
def test_equal_input_gives_equal_loss(form: Form) -> None:
    world = World()
    positive, in_batch, negatives = world.candidates(form)
    first, second = (
        pair_losses(world.queries, positive, in_batch, negatives, world.temperature, form) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("form", ["sum", "mixed", "corrected"])
def test_a_masked_column_gets_no_gradient(form: Form) -> None:
    world = World()
    positive, in_batch, negatives = world.candidates(form)
    assert negatives is not None
    vectors = in_batch.vectors.detach().clone().requires_grad_()
    random = negatives.vectors.detach().clone().requires_grad_()
    # Row 1 alone (item 1, column 0): column 2 and negative 3 are masked for it.
    is_masked, random_masked = torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    is_masked[0, 2] = random_masked[0, 3] = True
    losses = pair_losses(
        world.queries[1:2],
        positive[1:2],
        replace(in_batch, vectors=vectors, is_masked=is_masked),
        replace(negatives, vectors=random, is_masked=random_masked),
        world.temperature,
        form,
    )
    losses.sum().backward()
    assert vectors.grad is not None
    assert random.grad is not None
    assert vectors.grad.any(dim=1).tolist() == [True, True, False, True]
    assert random.grad.any(dim=1).tolist() == [True, True, True, False]


@pytest.mark.parametrize("form", ["sum", "mixed", "corrected"])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_a_masked_column_is_as_good_as_absent(form: Form, scale: float) -> None:
    world = World()
    positive, in_batch, negatives = world.candidates(form)
    assert negatives is not None
    is_masked = torch.zeros(5, 4, dtype=torch.bool)
    is_masked[:, 2] = True
    masked = replace(negatives, is_masked=is_masked)
    absent = shuffled(negatives, torch.tensor([0, 1, 3]))
    absent = replace(absent, is_masked=torch.zeros(5, 3, dtype=torch.bool))
    temperature = torch.tensor(scale, dtype=torch.float64)
    found, expected = (
        pair_losses(world.queries, positive, in_batch, others, temperature, form) for others in (masked, absent)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_masked", [False, True])
def test_large_logits_stay_finite(form: Form, is_masked: bool) -> None:
    world = World()
    positive, in_batch, negatives = world.candidates(form)
    queries = world.queries.detach().float().requires_grad_()
    scale = torch.tensor(1e5, requires_grad=True)

    def extreme(candidates: Columns) -> Columns:
        return replace(
            candidates,
            log_probability=torch.full_like(candidates.log_probability, -700),
            is_masked=torch.full_like(candidates.is_masked, is_masked),
        )

    in_batch, negatives = extreme(in_batch), None if negatives is None else extreme(negatives)
    losses = pair_losses(queries, positive, in_batch, negatives, scale, form)
    gradients = torch.autograd.grad(losses.sum(), [queries, scale, world.vectors])
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("form", ["sum", "mixed", "corrected"])
@pytest.mark.parametrize("negatives_are", ["masked", "none left"])
def test_a_pair_without_negatives_costs_nothing(form: Form, negatives_are: str) -> None:
    world = World()
    positive, in_batch, negatives = world.candidates(form)
    assert negatives is not None
    in_batch = replace(in_batch, is_masked=torch.ones(5, 4, dtype=torch.bool))
    negatives = replace(negatives, is_masked=torch.ones(5, 4, dtype=torch.bool))
    if negatives_are == "none left":
        nobody = torch.zeros(0, dtype=torch.int64)
        negatives = shuffled(negatives, nobody)
    losses = pair_losses(world.queries, positive, in_batch, negatives, world.temperature, form)
    assert not losses.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(losses.sum(), world.parameters))


def test_autocast_does_not_lower_the_precision() -> None:
    world = World()
    positive, in_batch, negatives = world.candidates("sum")
    arguments = (world.queries.float(), positive, in_batch, negatives, world.temperature.float(), "sum")
    expected = pair_losses(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pair_losses(*arguments), expected)


def test_weighted_mean_over_ranks() -> None:
    losses, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 4.0])
    parts = [weighted_mean(losses[rows], weights[rows], weights.sum(), 2) for rows in (slice(0, 1), slice(1, 3))]
    assert torch.stack(parts).mean() == (losses * weights).sum() / 8


@settings(deadline=None, max_examples=30)
@given(
    pairs=st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3)), min_size=1, max_size=8),
    first=st.integers(0, 7),
    rows=st.integers(1, 8),
)
def test_same_query_mask_equals_a_loop(pairs: list[tuple[int, int]], first: int, rows: int) -> None:
    own = pairs[first % len(pairs) :][:rows]
    keys, columns = torch.tensor([query for query, _ in pairs]), torch.tensor([column for _, column in pairs])
    found = same_query_mask(torch.tensor([query for query, _ in own]), keys, columns, 4)
    assert found.tolist() == [[(query, column) in pairs for column in range(4)] for query, _ in own]


@settings(deadline=None, max_examples=30)
@given(items=st.lists(st.integers(-2, 2), min_size=1, max_size=6), columns=st.permutations([-2, -1, 1, 3, 0]))
def test_same_item_mask_equals_a_loop(items: list[int], columns: list[int]) -> None:
    for count in range(len(columns) + 1):
        found = same_item_mask(torch.tensor(items), torch.tensor(columns[:count], dtype=torch.int64))
        assert found.tolist() == [[item == column and item != 0 for column in columns[:count]] for item in items]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_first_rows_finds_the_first_copy(keys: list[int]) -> None:
    wanted = sorted(set(keys))
    assert first_rows(torch.tensor(keys), torch.tensor(wanted)).tolist() == [keys.index(key) for key in wanted]


def distilled() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, items, frozen queries, frozen items; unit length."""
    generator = torch.Generator().manual_seed(7)
    made = [F.normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64), dim=1) for rows in (3, 5, 3, 5)]
    return made[0], made[1], made[2], made[3]


def test_the_distillation_is_the_divergence_of_a_slow_loop():
    queries, items, frozen_queries, frozen_items = distilled()
    found = distillation_losses(queries, items, frozen_queries, frozen_items, 3.0)
    for row in range(3):
        wanted = [math.exp(3.0 * float(frozen_queries[row] @ item)) for item in frozen_items]
        given = [math.exp(3.0 * float(queries[row] @ item)) for item in items]
        expected = sum(
            p / sum(wanted) * (math.log(p / sum(wanted)) - math.log(q / sum(given)))
            for p, q in zip(wanted, given, strict=True)
        )
        assert float(found[row]) == pytest.approx(expected, rel=1e-12)
        assert expected > 0.01


def test_the_distillation_is_zero_and_flat_at_the_frozen_vectors():
    _, _, frozen_queries, frozen_items = distilled()
    queries, items = frozen_queries.clone().requires_grad_(), frozen_items.clone().requires_grad_()
    losses = distillation_losses(queries, items, frozen_queries, frozen_items, 20.0)
    losses.sum().backward()
    assert losses.abs().max() < 1e-12
    assert queries.grad is not None
    assert items.grad is not None
    assert max(float(queries.grad.abs().max()), float(items.grad.abs().max())) < 1e-12


def test_the_distillation_pulls_an_item_back_to_where_its_query_had_it():
    _, _, frozen_queries, frozen_items = distilled()
    query = frozen_queries[:1]
    for sign in (1, -1):
        moved = frozen_items.clone()
        moved[2] += sign * 0.1 * query[0]  # nearer to the query than in the frozen space, or farther from it
        moved.requires_grad_()
        distillation_losses(query, moved, query, frozen_items, 5.0).sum().backward()
        assert moved.grad is not None
        assert sign * float(moved.grad[2] @ query[0]) > 1e-3


def test_the_distillations_gradient_is_that_of_its_formula_and_none_flows_to_the_frozen():
    queries, items, frozen_queries, frozen_items = (part.requires_grad_() for part in distilled())
    assert torch.autograd.gradcheck(
        lambda q, v: distillation_losses(q, v, frozen_queries, frozen_items, 2.0), (queries, items)
    )
    distillation_losses(queries, items, frozen_queries, frozen_items, 2.0).sum().backward()
    assert frozen_queries.grad is None
    assert frozen_items.grad is None
