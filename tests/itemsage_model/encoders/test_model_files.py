"""Model files: what comes back is what was saved, of the kind that was asked for, and undamaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from itemsage_model.encoders.item_tower import ItemTowerSpec
from itemsage_model.encoders.model_files import CheckpointError, load_model, save_model
from schemas.storage import read_bytes, write_bytes
from tests.itemsage_model.factories import SPEC


@dataclass(frozen=True)
class OtherSpec:
    kind: ClassVar[str] = "query_tower"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> OtherSpec:
        return cls()


def test_a_model_comes_back_with_its_weights_spec_and_facts(tmp_path: Path):
    tower = SPEC.build(seed=5)
    uri, identity = save_model(str(tmp_path), tower, SPEC, {"trained_on": [1]})
    model = load_model(uri, ItemTowerSpec)
    assert (model.model_id, model.spec, model.facts) == (identity, SPEC, {"trained_on": [1]})
    assert uri == f"{tmp_path}/{identity}"
    for name, tensor in model.build().state_dict().items():
        assert torch.equal(tensor, tower.state_dict()[name]), name


@pytest.mark.fault("D6", "loud", "a model of another kind in the place of the item tower")
def test_a_model_of_another_kind_is_refused_by_name(tmp_path: Path):
    uri, _ = save_model(str(tmp_path), SPEC.build(), SPEC, {})
    assert json.loads(read_bytes(f"{uri}/model.json"))["kind"] == "item_tower"
    with pytest.raises(CheckpointError, match=r"a model of kind query_tower; found item_tower"):
        load_model(uri, OtherSpec)


def changed(uri: str, change: Any) -> None:
    values = json.loads(read_bytes(f"{uri}/model.json"))
    del values["checksum"]  # as before version 0.2
    change(values)
    write_bytes(f"{uri}/model.json", json.dumps(values).encode())


@pytest.mark.fault("D6", "loud", "one field of a model's description changed")
def test_weights_under_another_description_are_refused(tmp_path: Path):
    uri, _ = save_model(str(tmp_path), SPEC.build(), SPEC, {})
    changed(uri, lambda values: values["model"].update(heads=2))
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_model(uri, ItemTowerSpec)


def test_a_model_from_before_a_setting_existed_keeps_its_id(tmp_path: Path):
    """As version 0.1 wrote it: no kind, no image_length; its id is the hash of what stands there."""
    uri, _ = save_model(str(tmp_path), SPEC.build(), SPEC, {})

    def age(values: dict[str, Any]) -> None:
        del values["kind"], values["model"]["image_length"]
        described = {key: value for key, value in values.items() if key not in ("model_id", "facts", "sha256")}
        digest = hashlib.sha256(read_bytes(f"{uri}/model.safetensors"))
        digest.update(json.dumps(described, sort_keys=True).encode())
        values["model_id"] = digest.hexdigest()[:32]

    changed(uri, age)
    assert load_model(uri, ItemTowerSpec).spec == SPEC
