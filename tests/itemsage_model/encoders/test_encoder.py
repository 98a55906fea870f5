"""The folded encoder against PyTorch's own transformer layer with the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from itemsage_model.data.batch import to_item_batch
from itemsage_model.data.ragged import PackedItems, Ragged
from itemsage_model.encoders.encoder import Encoder, Tokens
from itemsage_model.encoders.item_tower import ItemTower, parameter_counts
from schemas.elements import IMAGES, SizedElement
from schemas.presets import demo, paper
from schemas.settings import LossSettings, ModelSettings, item_elements
from tests.itemsage_model.factories import ELEMENTS, packed_items

DIM = 16
LENGTHS = {"text": 16, "images": 24}
SLOTS = {"text": 5, "images": 7}
SMALL = ModelSettings(width=32, heads=4, feed_forward_width=48, head_width=24, hash_rows=40)


def make_encoder(layers: int = 1) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(LENGTHS, 32, layers, 4, 48, 24, DIM).double()
    for parameter in encoder.parameters():  # biases and norms away from their trivial start values
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def make_sequence(masks: str) -> dict[str, Tokens]:
    torch.manual_seed(1)
    sequence = {}
    for name, slots in SLOTS.items():
        present = torch.rand(9, slots) < {"some": 0.6, "none": -1.0, "all": 2.0}[masks]
        if masks == "some":
            present[0] = False
        features = torch.randn(int(present.sum()), LENGTHS[name], dtype=torch.double, requires_grad=True)
        sequence[name] = Tokens(features, present)
    return sequence


def reference(encoder: Encoder, sequence: dict[str, Tokens]) -> torch.Tensor:
    """What a user would write: nn.TransformerEncoderLayer over the whole sequence, then the head at [CLS]."""
    hidden = torch.cat(
        [encoder.cls.expand(9, 1, -1), *(encoder.projections[n](t.padded()) for n, t in sequence.items())], dim=1
    )
    missing = torch.cat([torch.zeros(9, 1, dtype=torch.bool), *(~t.is_present for t in sequence.values())], dim=1)
    for block in encoder.blocks:
        layer = nn.TransformerEncoderLayer(
            32, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.double
        )
        weights = {
            "self_attn.in_proj_weight": torch.cat([block.query.weight, block.key.weight, block.value.weight]),
            "self_attn.in_proj_bias": torch.cat(
                [block.query.bias, torch.zeros(32, dtype=torch.double), block.value.bias]
            ),
            "self_attn.out_proj.weight": block.output.weight,
            "self_attn.out_proj.bias": block.output.bias,
            "linear1.weight": block.feed_forward[0].weight,
            "linear1.bias": block.feed_forward[0].bias,
            "linear2.weight": block.feed_forward[2].weight,
            "linear2.bias": block.feed_forward[2].bias,
            "norm1.weight": block.attention_norm.weight,
            "norm1.bias": block.attention_norm.bias,
            "norm2.weight": block.feed_forward_norm.weight,
            "norm2.bias": block.feed_forward_norm.bias,
        }
        hidden = torch.func.functional_call(layer, weights, (hidden,), {"src_key_padding_mask": missing})
    return nn.functional.normalize(encoder.head(hidden[:, 0]), dim=-1)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("masks", ["some", "none", "all"])
def test_outputs_and_every_gradient_equal_the_library_layer(masks: str, layers: int):
    encoder, sequence = make_encoder(layers), make_sequence(masks)
    inputs = [*encoder.parameters(), *(tokens.features for tokens in sequence.values())]
    target = torch.randn(9, DIM, dtype=torch.double)
    results = []
    for function in (lambda: encoder(sequence), lambda: reference(encoder, sequence)):
        output = function()
        gradients = torch.autograd.grad((output * target).sum(), inputs, allow_unused=True, materialize_grads=True)
        results.append((output.detach(), gradients))
    (folded, folded_gradients), (plain, plain_gradients) = results
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)
    for ours, theirs in zip(folded_gradients, plain_gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-9 * (1 + theirs.norm())


def test_a_fold_made_once_gives_the_same_outputs():
    encoder, sequence = make_encoder(), make_sequence("some")
    torch.testing.assert_close(encoder(sequence, encoder.fold()), encoder(sequence), rtol=0, atol=0)


def test_outputs_have_unit_length_and_do_not_depend_on_the_order_of_slots():
    encoder, sequence = make_encoder(), make_sequence("some")
    order = torch.randperm(SLOTS["images"])
    images = sequence["images"]
    is_present = images.is_present[:, order]
    moved = sequence | {"images": Tokens(images.padded()[:, order][is_present], is_present)}
    torch.testing.assert_close(encoder(moved), encoder(sequence))
    torch.testing.assert_close(encoder(sequence).norm(dim=-1), torch.ones(9, dtype=torch.double))


def test_features_are_padded_at_their_own_slots():
    text = make_sequence("some")["text"]
    assert len(text.features) < text.is_present.numel()
    assert torch.equal(text.padded()[text.is_present], text.features)
    assert not text.padded()[~text.is_present].any()


def elements(image_slots: int = 4) -> list[SizedElement]:
    return [replace(element, slots=image_slots) if element.element is IMAGES else element for element in ELEMENTS]


def tower(settings: ModelSettings = SMALL) -> ItemTower:
    torch.manual_seed(2)
    return ItemTower(settings, LossSettings(), elements(settings.max_images))


def test_every_parameter_gets_a_gradient_and_every_tensor_is_a_parameter_or_buffer():
    model = tower()
    (model(to_item_batch(packed_items(12), elements(4)))[:, 0].sum() * model.temperature()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    held = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    for module in model.modules():
        assert all(id(value) in held for value in vars(module).values() if isinstance(value, torch.Tensor))


def test_an_item_does_not_depend_on_its_neighbours_in_the_batch():
    model, items = tower(), packed_items(12)
    whole = model(to_item_batch(items, elements(4)))
    alone = torch.cat([model(to_item_batch(items.take(np.array([i])), elements(4))) for i in range(12)])
    torch.testing.assert_close(whole, alone)


def test_missing_features_as_zeros_attend_to_every_slot():
    zeros = SMALL.model_copy(update={"missing": "zeros", "max_images": 4})
    model, items = tower(zeros), packed_items(12)
    output = model(to_item_batch(items, elements(4)))
    assert not torch.allclose(output, tower()(to_item_batch(items, elements(4))))
    few = np.flatnonzero(items["image_embeddings"].counts < 3)
    torch.testing.assert_close(model(to_item_batch(items.take(few), elements(4))), output[few])


def test_images_beyond_the_limit_are_left_out():
    model, items = tower(), packed_items(6, most_images=4)
    cut = model(to_item_batch(items, elements(2)))
    first = [items.take(np.array([i])) for i in range(6)]
    for place, item in enumerate(first):
        images = item["image_embeddings"]
        two = Ragged(images.values[:2], np.minimum(images.counts, 2))
        kept = PackedItems(item.elements | {"image_embeddings": two})
        torch.testing.assert_close(model(to_item_batch(kept, elements(4)))[0], cut[place])


def test_the_papers_model_has_the_papers_size():
    model, features = paper()
    vocabulary = features.char_trigrams + features.word_unigrams + features.word_bigrams
    counts = parameter_counts(ItemTower(model, LossSettings(), item_elements(model, features, vocabulary)))
    assert counts == {
        "log_temperature": 1,
        "hash_embedding.table": 25_600_000,
        "hash_embedding.importance": 2_528_000,
        "encoder.cls": 512,
        "encoder.projections": 2 * (256 * 512 + 512),
        "encoder.blocks": 4 * 512 * 512 + 3 * 512 + (512 * 2048 + 2048) + (2048 * 512 + 512) + 4 * 512,
        "encoder.head": 2 * 512 + (512 * 1024 + 1024) + (1024 * 256 + 256),
        "total": 32_332_289,
    }


def test_the_demos_model_is_the_same_but_narrower():
    assert demo()[0].sequence == paper()[0].sequence
    assert demo()[0].layers == 1
