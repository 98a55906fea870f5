from __future__ import annotations

import mmh3
import pytest
import torch

from itemsage_model.encoders.hash_embedding import HashEmbedding, hash_slots


@pytest.mark.fault("E2", "loud", "any change of the hash: each slot is compared with unsigned mmh3")
def test_slots_are_the_documented_hashes():
    slots = hash_slots(1 << 17, 100_000, 3)
    for token in (0, 1, 255, 256, 65_535, 65_536, 99_999, 131_071):
        for function in range(3):
            expected = mmh3.hash(token.to_bytes(4, "little"), function, signed=False) % 100_000
            assert slots[token, function] == expected


def test_a_text_is_the_weighted_sum_of_its_tokens_rows():
    torch.manual_seed(0)
    layer = HashEmbedding(30, 11, 6, 2)
    ids, counts = torch.tensor([3, 3, 29, 0, 7]), torch.tensor([2, 0, 1, 2])
    expected = torch.zeros(4, 6)
    position = 0
    for text, count in enumerate(counts.tolist()):
        for token in ids[position : position + count].tolist():
            for k in range(2):
                expected[text] += layer.importance[token, k] * layer.table[layer.slots[token, k]]
        position += count
    torch.testing.assert_close(layer(ids, counts), expected)
    assert (layer(ids, counts)[1] == 0).all()


def test_gradients_are_those_of_the_plain_sum():
    torch.manual_seed(0)
    layer = HashEmbedding(30, 11, 6, 3).double()
    ids = torch.tensor([3, 3, 29, 0, 7, 3, 29])
    counts = torch.tensor([2, 0, 1, 4])
    texts = torch.repeat_interleave(torch.arange(4), counts)
    upstream = torch.randn(4, 6, dtype=torch.float64)
    tokens = (layer.importance[ids][:, :, None] * layer.table[layer.slots[ids]]).sum(1)
    plain = torch.zeros(4, 6, dtype=torch.float64).index_add(0, texts, tokens)
    expected = torch.autograd.grad(plain, list(layer.parameters()), upstream)
    found = torch.autograd.grad(layer(ids, counts), list(layer.parameters()), upstream)
    for own, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-12, atol=1e-12)


def test_a_batch_without_a_token_gives_zeros_and_zero_gradients():
    layer = HashEmbedding(30, 11, 6, 2)
    vectors = layer(torch.empty(0, dtype=torch.long), torch.zeros(6, dtype=torch.long))
    vectors.sum().backward()
    assert not vectors.any()
    assert not layer.table.grad.any()
    assert not layer.importance.grad.any()
