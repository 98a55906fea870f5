"""A trained text encoder as a frozen one: any text has a vector, it is stored whole, and its name is its content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from itemsage_model.encoders.frozen_text.stored import from_bytes, load, save, to_bytes
from itemsage_model.encoders.frozen_text.trained import TrainedEncoder
from schemas.errors import InputError
from tests.itemsage_model.texts import TEXT_SPEC, TEXTS, TOWER_SPEC


@pytest.fixture(scope="module")
def encoder() -> TrainedEncoder:
    text = TOWER_SPEC.build(seed=5).text
    return TrainedEncoder(TEXT_SPEC, {name: tensor.numpy() for name, tensor in text.state_dict().items()})


def test_any_text_has_a_vector_of_unit_length_and_a_blank_one_zeros(encoder: TrainedEncoder) -> None:
    texts = [*TEXTS, "", "  ", "\t", "\u200b", "no-such-word-qzx", "\x00", "é" * 400]
    vectors = encoder.encode(texts)
    is_blank = [not text.strip() for text in texts]
    assert sum(is_blank) == 3
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(
        np.linalg.norm(vectors, axis=1), [0.0 if blank else 1.0 for blank in is_blank], atol=1e-5
    )
    assert encoder.encode([]).shape == (0, 256)


def test_the_order_of_the_texts_does_not_matter(encoder: TrainedEncoder) -> None:
    texts = list(TEXTS) * 20
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = encoder.encode([texts[row] for row in order])
    np.testing.assert_allclose(shuffled, encoder.encode(texts)[order], atol=1e-6)


def test_it_is_stored_with_all_that_it_needs(encoder: TrainedEncoder, tmp_path: Path) -> None:
    save(encoder, str(tmp_path))
    again = load(str(tmp_path))
    assert again.name == encoder.name
    assert again.name.startswith("trained-")
    assert np.array_equal(again.encode(list(TEXTS)), encoder.encode(list(TEXTS)))
    content = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"encoder\.safetensors"):
        load(str(tmp_path))


def test_its_name_follows_from_weights_sizes_and_tokenizer(encoder: TrainedEncoder) -> None:
    weights = encoder.weights | {"projection.bias": encoder.weights["projection.bias"] + 1}
    others = [
        TrainedEncoder(TEXT_SPEC, weights),
        TrainedEncoder(replace(TEXT_SPEC, max_tokens=31), encoder.weights),
        TrainedEncoder(replace(TEXT_SPEC, pooling="cls"), encoder.weights),
        TrainedEncoder(replace(TEXT_SPEC, tokenizer=TEXT_SPEC.tokenizer + " "), encoder.weights),
    ]
    assert len({encoder.name, *(other.name for other in others)}) == 5


def test_two_halves_of_different_encoders_are_refused(encoder: TrainedEncoder) -> None:
    other = TrainedEncoder(replace(TEXT_SPEC, max_tokens=31), encoder.weights)
    from_bytes.cache_clear()
    assert from_bytes(*to_bytes(encoder)).name == encoder.name
    changed = {name: values + 1 for name, values in encoder.weights.items()}
    with pytest.raises(ValueError, match="come from different runs"):
        from_bytes(to_bytes(other)[0], to_bytes(TrainedEncoder(TEXT_SPEC, changed))[1])
