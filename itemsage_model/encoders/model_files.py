"""A trained model as files: safetensors for numbers, JSON for the rest, each file checked by its sha256 when loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from itemsage_model.encoders.tower import Tower, TowerSpec
from schemas.errors import EXIT_INPUT
from schemas.storage import read_bytes, write_bytes


class CheckpointError(RuntimeError):
    """A saved model or a checkpoint that is damaged, or belongs to another configuration."""

    exit_code = EXIT_INPUT


Spec = TypeVar("Spec", bound=TowerSpec)

_NO_IDENTITY = ("model_id", "facts", "sha256", "checksum")
"""Keys of model.json that do not make one model another."""


@dataclass(frozen=True)
class SavedModel(Generic[Spec]):
    """A trained tower as it was saved.

    Attributes:
        model_id: Identity of its embedding space: hash of weights and spec.
        weights: safetensors.
        spec: What they are.
        facts: Further plain values kept beside it, such as the table versions it was trained on.
    """

    model_id: str
    weights: bytes
    spec: Spec
    facts: dict[str, Any]

    def build(self) -> Any:
        """The tower with its weights, ready to score."""
        return build_tower(self.weights, self.spec)


def model_bytes(tower: Tower) -> bytes:
    """The tower's weights as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tower.state_dict().items()}
    content: bytes = save_tensors(tensors)
    return content


def build_tower(weights: bytes, spec: TowerSpec) -> Any:
    """A tower with the given weights, ready to score."""
    tower = spec.build()
    tower.load_state_dict(load_tensors(weights))
    return tower.eval().requires_grad_(False)


def save_model(folder: str, tower: Tower, spec: TowerSpec, facts: dict[str, Any]) -> tuple[str, str]:
    """Write `model.safetensors` and `model.json` to `<folder>/<model_id>`; returns that URI and the model_id.

    Args:
        folder: Folder of all models; none is ever overwritten by another.
        tower: The trained tower.
        spec: What it is.
        facts: Further plain values to keep beside it.
    """
    weights, values = model_bytes(tower), {"kind": spec.kind, **spec.to_json()}
    identity = _model_id(weights, values)
    stored = {"model_id": identity, **values, "facts": facts}
    save_folder(f"{folder}/{identity}", {"model.safetensors": weights}, "model.json", stored)
    return f"{folder}/{identity}", identity


def load_model(uri: str, spec_type: type[Spec]) -> SavedModel[Spec]:
    """A saved model of the kind that `spec_type` describes.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is of another kind.
    """
    files, values = load_folder(uri, "model.json")
    weights = files["model.safetensors"]
    described = {key: value for key, value in values.items() if key not in _NO_IDENTITY}
    if _model_id(weights, described) != values["model_id"]:
        raise CheckpointError(f"{uri}: weights and model.json do not belong together; train again")
    # Models of version 0.1 do not say their kind; there was one.
    kind = described.pop("kind", "item_tower")
    if kind != spec_type.kind:
        raise CheckpointError(f"{uri}: expected a model of kind {spec_type.kind}; found {kind}. Name another model.")
    return SavedModel(values["model_id"], weights, spec_type.from_json(described), values["facts"])


def _model_id(weights: bytes, values: dict[str, Any]) -> str:
    """Hash of weights and of what model.json says they are, so that a new setting leaves an old model's id alone."""
    digest = hashlib.sha256(weights)
    digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def save_folder(uri: str, files: dict[str, bytes], json_name: str, values: dict[str, Any]) -> None:
    """Write files and, last, the JSON that holds `values`, the sha256 of each of them, and that of itself."""
    for name, content in files.items():
        write_bytes(f"{uri}/{name}", content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    described = json.loads(json.dumps({**values, "sha256": hashes}))
    stored = {**described, "checksum": _checksum(described)}
    write_bytes(f"{uri}/{json_name}", json.dumps(stored, indent=2).encode())


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_folder(uri: str, json_name: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files and the JSON of `save_folder`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        values: dict[str, Any] = json.loads(read_bytes(f"{uri}/{json_name}"))
        # Absent in what was saved before version 0.2.
        if (checksum := values.pop("checksum", None)) and checksum != _checksum(values):
            raise ValueError("its checksum differs")
        files = {name: read_bytes(f"{uri}/{name}") for name in values["sha256"]}
    except FileNotFoundError as error:
        raise CheckpointError(f"{uri} holds no complete checkpoint: {error}. Train first.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{uri}/{json_name} is damaged: {error}. Restore or train again.") from error
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != values["sha256"][name]:
            raise CheckpointError(f"{uri}/{name} is damaged (sha256 differs). Restore it or train again.")
    return files, values
