"""How a picture becomes the numbers that a vision model was trained on: scaled, cut out of the middle, shifted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from itemsage_model.encoders.pictures.decoding import decode

Pixels = npt.NDArray[np.float32]
"""Normalised numbers, float32 [3, side, side] of a picture, [picture, 3, side, side] of several."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture.

    Attributes:
        side: Pixels of the square that enters the model.
        shorter_side: Pixels of the shorter side before the square is cut out of the middle.
        mean: Of red, green and blue, 0 to 1; subtracted.
        deviation: Of the same; divided by.
    """

    side: int
    shorter_side: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    def __call__(self, content: bytes, max_pixels: int) -> Pixels:
        """Decode and prepare one picture.

        Raises:
            UnusablePicture: as of `decode`.
        """
        picture = decode(content, self.shorter_side, max_pixels)
        left, top = (picture.width - self.side) // 2, (picture.height - self.side) // 2
        square = np.asarray(picture.crop((left, top, left + self.side, top + self.side)), np.float32)
        normal = (square / 255 - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))


def from_transformers(text: bytes) -> Preprocessing:
    """Read a preprocessor_config.json, as CLIP, SigLIP, ViT, DINOv2 and ConvNeXt folders have it.

    Raises:
        ValueError: it leaves open what is needed, or asks for what is not done here.
    """
    said: dict[str, Any] = json.loads(text)
    if not said.get("do_normalize", True) or not said.get("do_resize", True):
        raise ValueError("do_resize and do_normalize must not be false")
    if abs(float(said.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor {said['rescale_factor']} is not 1/255")
    size = said["size"]
    resized = _side(size)
    side = _side(said["crop_size"]) if said.get("do_center_crop", "crop_size" in said) else resized
    if "crop_pct" in said and "shortest_edge" in size and side == resized:
        resized = int(side / float(said["crop_pct"]))
    mean, deviation = (tuple(map(float, said[key])) for key in ("image_mean", "image_std"))
    if len(mean) != 3 or len(deviation) != 3:
        raise ValueError("image_mean and image_std must have three numbers")
    return Preprocessing(side, max(side, resized), (mean[0], mean[1], mean[2]), tuple(deviation))  # type: ignore[arg-type]


def _side(size: int | dict[str, int]) -> int:
    if isinstance(size, int):
        return size
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    if size["height"] != size["width"]:
        raise ValueError(f"a square is expected; found {size}")
    return int(size["height"])


def from_timm(config: dict[str, Any]) -> Preprocessing:
    """Read the `pretrained_cfg` of a timm folder's config.json.

    Raises:
        KeyError: it lacks what is needed.
    """
    said = config["pretrained_cfg"]
    side = int(said["input_size"][1])
    mean, deviation = (tuple(map(float, said[key])) for key in ("mean", "std"))
    shorter_side = int(side / float(said.get("crop_pct", 1.0)))
    return Preprocessing(side, shorter_side, (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2]))
