"""A trained model as files: safetensors for numbers, JSON for the rest, each file checked by its sha256 when loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from itemsage_model.encoders.item_tower import ItemTower
from schemas.errors import EXIT_INPUT
from schemas.settings import FeatureSettings, LossSettings, ModelSettings
from schemas.storage import read_bytes, write_bytes


class CheckpointError(RuntimeError):
    """A saved model or a checkpoint that is damaged, or belongs to another configuration."""

    exit_code = EXIT_INPUT


@dataclass(frozen=True)
class ModelSpec:
    """What one must know to read a model's weights, and what its embeddings may be compared with.

    Attributes:
        model: Sizes of the tower.
        loss: The loss it was trained with.
        features: Text features and vocabulary limits.
        vocabulary_size: Number of token ids.
        embedding_spaces: Query kind -> frozen query space that the embeddings were fitted to.
    """

    model: ModelSettings
    loss: LossSettings
    features: FeatureSettings
    vocabulary_size: int
    embedding_spaces: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "model": self.model.model_dump(mode="json"),
            "loss": self.loss.model_dump(mode="json"),
            "features": self.features.model_dump(mode="json"),
            "vocabulary_size": self.vocabulary_size,
            "embedding_spaces": self.embedding_spaces,
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_json`."""
        return ModelSpec(
            ModelSettings.model_validate(values["model"]),
            LossSettings.model_validate(values["loss"]),
            FeatureSettings.model_validate(values["features"]),
            int(values["vocabulary_size"]),
            dict(values["embedding_spaces"]),
        )

    def build(self, *, seed: int = 1) -> ItemTower:
        """A tower of these sizes with fresh weights, the same for the same seed."""
        torch.manual_seed(seed)
        return ItemTower(self.model, self.loss, self.vocabulary_size)


def model_bytes(tower: ItemTower) -> bytes:
    """The tower's weights as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tower.state_dict().items()}
    content: bytes = save_tensors(tensors)
    return content


def model_id(weights: bytes, spec: ModelSpec) -> str:
    """Identity of an embedding space: hash of weights, feature spec and query spaces."""
    digest = hashlib.sha256(weights)
    digest.update(json.dumps(spec.to_json(), sort_keys=True).encode())
    return digest.hexdigest()[:32]


def save_model(folder: str, tower: ItemTower, spec: ModelSpec, facts: dict[str, Any]) -> tuple[str, str]:
    """Write `model.safetensors` and `model.json` to `<folder>/<model_id>`; returns that URI and the model_id.

    Args:
        folder: Folder of all models; none is ever overwritten by another.
        tower: The trained tower.
        spec: What it is.
        facts: Further plain values to keep beside it, such as the table versions it was trained on.
    """
    weights = model_bytes(tower)
    identity = model_id(weights, spec)
    values = {"model_id": identity, **spec.to_json(), "facts": facts}
    save_folder(f"{folder}/{identity}", {"model.safetensors": weights}, "model.json", values)
    return f"{folder}/{identity}", identity


def load_model(uri: str) -> tuple[bytes, ModelSpec, dict[str, Any]]:
    """Weights, spec and the whole JSON of a saved model.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    files, values = load_folder(uri, "model.json")
    spec = ModelSpec.from_json(values)
    if model_id(files["model.safetensors"], spec) != values["model_id"]:
        raise CheckpointError(f"{uri}: weights and model.json do not belong together; train again")
    return files["model.safetensors"], spec, values


def build_tower(weights: bytes, spec: ModelSpec) -> ItemTower:
    """A tower with the given weights, ready to score."""
    tower = spec.build()
    tower.load_state_dict(load_tensors(weights))
    return tower.eval().requires_grad_(False)


def save_folder(uri: str, files: dict[str, bytes], json_name: str, values: dict[str, Any]) -> None:
    """Write files and, last, the JSON that holds `values` and the sha256 of each of them."""
    for name, content in files.items():
        write_bytes(f"{uri}/{name}", content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_bytes(f"{uri}/{json_name}", json.dumps({**values, "sha256": hashes}, indent=2).encode())


def load_folder(uri: str, json_name: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files and the JSON of `save_folder`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        values: dict[str, Any] = json.loads(read_bytes(f"{uri}/{json_name}"))
        files = {name: read_bytes(f"{uri}/{name}") for name in values["sha256"]}
    except FileNotFoundError as error:
        raise CheckpointError(f"{uri} holds no complete checkpoint: {error}. Train first.") from error
    except ValueError as error:
        raise CheckpointError(f"{uri}/{json_name} is damaged: {error}. Restore or train again.") from error
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != values["sha256"][name]:
            raise CheckpointError(f"{uri}/{name} is damaged (sha256 differs). Restore it or train again.")
    return files, values
