"""Identities of keys: for those trained on alone, hidden at random in training, the same whoever asks."""

from __future__ import annotations

import pytest
import torch

from itemsage_model.encoders.identity import KeyIdentity, _hashes

KEYS = torch.randint(-(1 << 63), (1 << 63) - 1, (4_000,), generator=torch.Generator().manual_seed(1))


def identity(dropout: float = 0.0, trained: int = 1_000) -> KeyIdentity:
    torch.manual_seed(2)
    made = KeyIdentity(256, 8, dropout, trained)
    made.remember(KEYS[:trained])
    return made


def splitmix(number: int) -> int:
    """The finaliser of splitmix64 on Python's integers of any size."""
    mask = (1 << 64) - 1
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & mask
    number = (number ^ number >> 27) * 0x94D049BB133111EB & mask
    return number ^ number >> 31


def test_hashes_are_those_of_a_slow_loop_over_unsigned_numbers():
    keys = [0, 1, -1, (1 << 63) - 1, -(1 << 63), *KEYS[:50].tolist()]
    expected = [[splitmix((key + splitmix(seed + 1)) % (1 << 64)) & (1 << 63) - 1 for seed in range(3)] for key in keys]
    assert _hashes(torch.tensor(keys), range(3)).tolist() == expected


def test_every_key_trained_on_has_an_identity_and_hardly_another():
    model = identity().eval()
    assert model.is_present(KEYS[:1_000]).all()
    assert model.is_present(KEYS[1_000:]).float().mean() < 0.03
    assert not KeyIdentity(256, 8, 0.0, 1_000).is_present(KEYS).any()


def test_neighbouring_keys_are_told_apart():
    model = identity().eval()
    model.remember(torch.arange(1_000))
    assert model.is_present(torch.arange(1_000)).all()
    assert model.is_present(torch.arange(1_000, 4_000)).float().mean() < 0.03
    rows = _hashes(torch.arange(1_000), range(2)) % 256
    assert len(rows.unique()) > 240


def test_keys_remembered_before_are_forgotten():
    model = identity().eval()
    model.remember(KEYS[2_000:2_500])
    assert model.is_present(KEYS[2_000:2_500]).all()
    assert model.is_present(KEYS[:1_000]).float().mean() < 0.03


def test_in_training_some_are_hidden_others_in_the_next_step_and_none_in_scoring():
    model = identity(dropout=0.2)
    first, second = model.is_present(KEYS[:1_000]), model.is_present(KEYS[:1_000])
    assert 0.15 < 1 - first.float().mean() < 0.25
    assert 0.25 < (first != second).float().mean() < 0.4  # 2 x .2 x .8 where draws are independent
    assert model.eval().is_present(KEYS[:1_000]).all()


def test_a_resumed_run_hides_the_same_keys():
    whole, resumed = identity(dropout=0.5), identity(dropout=0.5)
    whole.is_present(KEYS[:100])
    resumed.load_state_dict(whole.state_dict())
    torch.rand(3)  # whatever random numbers were drawn meanwhile
    assert torch.equal(whole.is_present(KEYS[:100]), resumed.is_present(KEYS[:100]))


def test_a_vector_is_the_sum_of_two_rows():
    model = identity()
    rows = _hashes(KEYS[:5], range(2)) % 256
    expected = torch.stack([model.table[first] + model.table[second] for first, second in rows.tolist()])
    torch.testing.assert_close(model(KEYS[:5]), expected)
    assert model(KEYS[:0]).shape == (0, 8)


def test_with_as_many_rows_as_keys_each_has_its_own():
    torch.manual_seed(3)
    model = KeyIdentity(5_000, 8, 0.0, 1_000).eval()
    model.remember(KEYS[:1_000])
    assert model.table.shape == (1_000, 8)
    vectors = torch.randn(1_000, 8)
    model.assign(KEYS[:1_000], vectors)
    assert torch.equal(model(KEYS[:1_000]), vectors)
    order = torch.randperm(1_000)
    assert torch.equal(model(KEYS[:1_000][order]), vectors[order])
    assert model.is_known(KEYS[:1_000]).all()
    assert not model.is_known(KEYS[1_000:]).any()
    model.assign(KEYS[5:10], vectors[5:10])
    assert model.table.any(dim=1).sum() == 5


def test_fewer_keys_than_it_was_made_for_leave_rows_unused():
    model = KeyIdentity(100, 8, 0.0, 50).eval()
    assert not model.is_known(KEYS).any()
    model.remember(KEYS[:20])
    assert model.is_known(KEYS[:20]).all()
    assert not model.is_known(KEYS[20:]).any()
    assert len(model(KEYS[:20]).unique(dim=0)) == 20
    with pytest.raises(ValueError, match="51 keys for a table of 50 rows"):
        model.remember(KEYS[:51])


def test_own_rows_are_hidden_in_training_as_hashed_ones():
    own, hashed = KeyIdentity(1_000, 8, 0.3, 1_000), KeyIdentity(999, 8, 0.3, 1_000)
    for model in (own, hashed):
        model.remember(KEYS[:1_000])
    assert (own.has_own_rows, hashed.has_own_rows) == (True, False)
    assert torch.equal(own.is_present(KEYS[:1_000]), hashed.is_present(KEYS[:1_000]))


def test_keys_that_share_rows_cannot_be_given_vectors():
    with pytest.raises(ValueError, match="a table of 256 rows"):
        identity().assign(KEYS[:1_000], torch.zeros(1_000, 8))


def test_only_remembered_keys_can_be_given_vectors():
    model = KeyIdentity(10, 8, 0.0, 3)
    model.remember(torch.tensor([10, 20, 30]))
    with pytest.raises(ValueError, match="not remembered"):
        model.assign(torch.tensor([10, 25, 30]), torch.ones(3, 8))


def test_no_key_at_all_leaves_zeros():
    model = KeyIdentity(10, 8, 0.0, 0)
    model.assign(KEYS[:0], torch.zeros(0, 8))
    assert not model.table.any()
