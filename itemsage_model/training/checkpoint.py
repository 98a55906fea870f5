"""Checkpoints of a run: weights, optimiser and counts, to go on from.

A checkpoint is a folder; its JSON is written last, by rename, so a folder without it is an unfinished one.
"""

from __future__ import annotations

from typing import Any

import torch
from pyarrow import fs
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from itemsage_model.encoders.model_files import CheckpointError, load_folder, save_folder
from schemas.storage import file_system


def save_checkpoint(
    folder: str, step: int, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write the state after `step` steps to `<folder>/step_<step>/`; keeps the two newest.

    What was written is read back and compared with its checksums before an older checkpoint is removed.

    Args:
        folder: Folder of all checkpoints of a run.
        step: Steps taken.
        tensors: Weights and buffers by name.
        optimizer: Its state is stored by parameter number.
        facts: Plain values to check when resuming, such as the settings.

    Raises:
        OSError: it could not be written, as on a full disk; the older checkpoints are as they were.
        CheckpointError: what was read back is not what was written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files = {"weights.safetensors": save_tensors(plain)}
    state = {
        f"{parameter}.{name}": value.cpu().contiguous()
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    files["optimizer.safetensors"] = save_tensors(state)
    save_folder(f"{folder}/step_{step:09d}", files, "checkpoint.json", {"step": step, "facts": facts})
    load_folder(f"{folder}/step_{step:09d}", "checkpoint.json")
    for old in checkpoint_steps(folder)[:-2]:
        system, path = file_system(f"{folder}/step_{old:09d}")
        system.delete_dir(path)


def checkpoint_steps(folder: str) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending."""
    system, path = file_system(folder)
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    complete = [info.path.split("/")[-2] for info in found if info.base_name == "checkpoint.json"]
    return sorted(int(name.removeprefix("step_")) for name in complete)


def remove_checkpoints(folder: str) -> None:
    """Delete the checkpoints of a run that has ended."""
    system, path = file_system(folder)
    if system.get_file_info(path).type == fs.FileType.Directory:
        system.delete_dir(path)


def load_checkpoint(
    folder: str, step: int, optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> dict[str, Tensor]:
    """The weights of a checkpoint; the optimiser gets its state back.

    Raises:
        CheckpointError: a file is damaged, or `facts` differ from those it was saved with.
    """
    files, values = load_folder(f"{folder}/step_{step:09d}", "checkpoint.json")
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
