from __future__ import annotations

import mmh3
import torch

from itemsage_model.hash_embedding import HashEmbedding, hash_slots


def test_slots_are_the_documented_hashes():
    slots = hash_slots(1000, 97, 2)
    for token in (0, 1, 255, 256, 999):
        for function in range(2):
            expected = mmh3.hash(token.to_bytes(4, "little"), function, signed=False) % 97
            assert slots[token, function] == expected


def test_a_text_is_the_weighted_sum_of_its_tokens_rows():
    torch.manual_seed(0)
    layer = HashEmbedding(30, 11, 6, 2, is_sparse=False)
    ids, counts = torch.tensor([3, 3, 29, 0, 7]), torch.tensor([[2, 0], [1, 2]])
    expected = torch.zeros(2, 2, 6)
    position = 0
    for item in range(2):
        for text in range(2):
            for token in ids[position : position + counts[item, text]].tolist():
                for k in range(2):
                    expected[item, text] += (
                        layer.importance.weight[token, k] * layer.table.weight[layer.slots[token, k]]
                    )
            position += counts[item, text]
    torch.testing.assert_close(layer(ids, counts), expected)
    assert (layer(ids, counts)[0, 1] == 0).all()


def test_sparse_and_dense_gradients_are_equal():
    ids, counts = torch.tensor([3, 3, 29, 0, 7]), torch.tensor([[2, 0], [1, 2]])
    gradients = []
    for is_sparse in (False, True):
        torch.manual_seed(0)
        layer = HashEmbedding(30, 11, 6, 2, is_sparse=is_sparse)
        layer(ids, counts).square().sum().backward()
        gradients.append([p.grad.to_dense() for p in layer.parameters()])
        assert layer.table.weight.grad.is_sparse == is_sparse
    for dense, sparse in zip(*gradients, strict=True):
        torch.testing.assert_close(dense, sparse)
