"""A picture model of torch as an ONNX graph, which onnxruntime computes in about half the time on a CPU.

    python -m itemsage_model.encoders.pictures.as_onnx FOLDER NEW_FOLDER

The new folder is one that `stored` opens: the graph, with its weights inside, and preprocessor_config.json.
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from itemsage_model.encoders.pictures.picture_encoder import BATCH
from itemsage_model.encoders.pictures.preprocessing import Preprocessing
from itemsage_model.encoders.pictures.stored import TorchForward, open_encoder
from schemas.command_line import exit_code_of_errors
from schemas.errors import SettingsError

_OPSET = 17


class _Pixels(nn.Module):
    """The model as a module with one input and one output, vectors."""

    def __init__(self, forward: TorchForward) -> None:
        super().__init__()
        self.vectors = forward.vectors

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.vectors(pixel_values)


def write_onnx(folder: str, target: Path) -> None:
    """Write a model as ONNX.

    Args:
        folder: A folder whose model torch computes.
        target: A folder that does not exist yet.

    Raises:
        SettingsError: the target exists, the model is ONNX already, or the extra is not installed.
        InputError: as of `open_encoder`.
    """
    if target.exists():
        raise SettingsError(f"{target} exists; name a folder that does not")
    encoder = open_encoder(folder)
    if not isinstance(encoder.forward, TorchForward):
        raise SettingsError(f"{folder} holds an ONNX graph already")
    side, file = encoder.preprocessing.side, io.BytesIO()
    pixels = torch.zeros(BATCH, 3, side, side)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # It warns of shapes that become constants, as all batches have one shape.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Pixels(encoder.forward), (pixels,), file, dynamo=False, opset_version=_OPSET,  # type: ignore[arg-type]
                input_names=["pixel_values"], output_names=["image_embeds"],
            )  # fmt: skip
    except ImportError as error:
        raise SettingsError("an ONNX graph is written by an extra: pip install 'itemsage-open[onnx]'") from error
    target.mkdir(parents=True)
    (target / "vision_model.onnx").write_bytes(file.getvalue())
    (target / "preprocessor_config.json").write_text(json.dumps(described(encoder.preprocessing), indent=2) + "\n")


def described(preprocessing: Preprocessing) -> dict[str, object]:
    """What `from_transformers` reads."""
    return {
        "size": {"shortest_edge": preprocessing.shorter_side},
        "crop_size": {"height": preprocessing.side, "width": preprocessing.side},
        "do_center_crop": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.deviation),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a model folder")
    parser.add_argument("target", type=Path, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    with exit_code_of_errors():
        write_onnx(arguments.folder, arguments.target)
        print(f"wrote {arguments.target}")


if __name__ == "__main__":
    main()
