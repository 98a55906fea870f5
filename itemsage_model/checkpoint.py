"""Checkpoints: safetensors for numbers, JSON for the rest, each file's sha256 checked whenever it is loaded.

A checkpoint is a folder; its JSON is written last, by rename, so a folder without it is an unfinished one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from pyarrow import fs
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from itemsage_model.item_tower import ItemTower
from schemas.records import file_system, read_bytes, write_bytes
from schemas.settings import FeatureSettings, LossSettings, ModelSettings


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged, or belongs to another configuration."""


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
    _save(f"{folder}/{identity}", {"model.safetensors": weights}, "model.json", values)
    return f"{folder}/{identity}", identity


def load_model(uri: str) -> tuple[bytes, ModelSpec, dict[str, Any]]:
    """Weights, spec and the whole JSON of a saved model.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    files, values = _load(uri, "model.json")
    spec = ModelSpec.from_json(values)
    if model_id(files["model.safetensors"], spec) != values["model_id"]:
        raise CheckpointError(f"{uri}: weights and model.json do not belong together; train again")
    return files["model.safetensors"], spec, values


def build_tower(weights: bytes, spec: ModelSpec) -> ItemTower:
    """A tower with the given weights, ready to score."""
    tower = spec.build()
    tower.load_state_dict(load_tensors(weights))
    return tower.eval().requires_grad_(False)


def save_checkpoint(
    folder: str, step: int, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write the state after `step` steps to `<folder>/step_<step>/`; keeps the two newest.

    Args:
        folder: Folder of all checkpoints of a run.
        step: Steps taken.
        tensors: Weights and buffers by name.
        optimizer: Its state is stored by parameter number.
        facts: Plain values to check when resuming, such as the settings.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files = {"weights.safetensors": save_tensors(plain)}
    state = {
        f"{parameter}.{name}": value.cpu().contiguous()
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    files["optimizer.safetensors"] = save_tensors(state)
    _save(f"{folder}/step_{step:09d}", files, "checkpoint.json", {"step": step, "facts": facts})
    for old in checkpoint_steps(folder)[:-2]:
        system, path = file_system(f"{folder}/step_{old:09d}")
        system.delete_dir(path)


def checkpoint_steps(folder: str) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending."""
    system, path = file_system(folder)
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    complete = [info.path.split("/")[-2] for info in found if info.base_name == "checkpoint.json"]
    return sorted(int(name.removeprefix("step_")) for name in complete)


def load_checkpoint(
    folder: str, step: int, optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> dict[str, Tensor]:
    """The weights of a checkpoint; the optimiser gets its state back.

    Raises:
        CheckpointError: a file is damaged, or `facts` differ from those it was saved with.
    """
    files, values = _load(f"{folder}/step_{step:09d}", "checkpoint.json")
    for key, value in facts.items():
        if values["facts"].get(key) != value:
            raise CheckpointError(
                f"{folder}/step_{step:09d} was made with another {key}: {values['facts'].get(key)!r}, now {value!r}. "
                "Remove the folder to start anew, or put the settings back."
            )
    state: dict[int, dict[str, Any]] = {}
    for name, value in load_tensors(files["optimizer.safetensors"]).items():
        parameter, _, key = name.partition(".")
        state.setdefault(int(parameter), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return load_tensors(files["weights.safetensors"])  # type: ignore[no-any-return]


def _save(uri: str, files: dict[str, bytes], json_name: str, values: dict[str, Any]) -> None:
    for name, content in files.items():
        write_bytes(f"{uri}/{name}", content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_bytes(f"{uri}/{json_name}", json.dumps({**values, "sha256": hashes}, indent=2).encode())


def _load(uri: str, json_name: str) -> tuple[dict[str, bytes], dict[str, Any]]:
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
