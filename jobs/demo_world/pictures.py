"""Small product pictures of the demo shop: what an item's hidden vector says of it, drawn. numpy and Pillow only.

The outline follows the category, the colour is the colour, stripes follow the style, and where it is warmer or colder
follows the look: what `make_images` puts into a vector, a picture encoder has to find in pixels. Brand and material do
not show. The ground, place and brightness are each photograph's own.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from jobs.demo_world.shop import BLOCKS, Floats, Ints, Items, generator, image_counts
from jobs.demo_world.words import COLORS

SIDE = 96
MAX_PICTURES = 2
"""Most pictures of one item: encoding one costs a core some ten milliseconds."""

_HARMONICS = 10
_NAMED = {"burgundy": "#6d1a36"}
_QUALITY = 85


def make_pictures(items: Items, seed: int) -> tuple[Ints, Ints, list[bytes]]:
    """Photograph the items: row of the item, position, JPEG. As many items as in `make_images` have none."""
    rng = generator(seed, "pictures")
    count = np.minimum(image_counts(items, seed), MAX_PICTURES)
    item = np.repeat(np.arange(len(items.ids)), count)
    position = np.arange(len(item)) - np.repeat(np.cumsum(count) - count, count)
    easel, colors = _Easel(), [_rgb(name) for name in COLORS]
    drawn = [easel.draw(items.hidden[row], colors[items.attributes[row].color], rng) for row in item]
    return item, position, drawn


def _rgb(name: str) -> NDArray[np.float64]:
    return np.array(ImageColor.getrgb(_NAMED.get(name, name.replace(" ", ""))), np.float64)


class _Easel:
    """What every picture is put together from: functions on its pixels, [function, y, x]."""

    def __init__(self) -> None:
        y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
        angle, orders = np.arctan2(y, x), np.arange(1, _HARMONICS + 1)[:, None, None]
        waves = np.concatenate([np.cos(orders * angle), np.sin(orders * angle)]) / np.sqrt(np.tile(orders, (2, 1, 1)))
        self.x, self.y, self.distance, self.waves = x, y, np.hypot(x, y), waves
        centres = [(row, column) for row in np.linspace(-0.6, 0.6, 4) for column in np.linspace(-0.5, 0.5, 3)]
        self.spots = np.stack([np.exp(-8 * ((y - row) ** 2 + (x - column) ** 2)) for row, column in centres])

    def draw(self, hidden: Floats, color: NDArray[np.float64], rng: np.random.Generator) -> bytes:
        """One photograph of one item, as JPEG.

        Args:
            hidden: The item's six blocks, side by side.
            color: Red, green, blue, 0 to 255.
            rng: Of the ground, the place and the brightness.
        """
        ends = np.cumsum([dims for dims, _, _ in BLOCKS.values()])[:-1]
        block = dict(zip(BLOCKS, np.split(hidden.astype(np.float64), ends), strict=True))
        outline = 0.6 * np.exp(0.8 * np.tensordot(block["category"], self.waves, 1))
        is_inside = (self.distance < outline)[..., None]
        style = block["style"]
        stripes = np.sin(9 * (style[0] * self.x + style[1] * self.y)) * style[2]
        stripes += np.sin(18 * (style[3] * self.x + style[4] * self.y)) * style[5]
        checks = np.sign(np.sin(14 * style[6] * self.x) * np.sin(14 * style[7] * self.y))
        warmth = np.tensordot(block["look"], self.spots, 1)[..., None] * np.array([90.0, 0.0, -90.0])
        product = color * (1 + 0.5 * stripes + 0.15 * checks)[..., None] + warmth
        ground = rng.uniform(150, 250, 3) + rng.uniform(-30, 30, 3) * self.y[..., None]
        whole = np.where(is_inside, product, ground) * rng.uniform(0.9, 1.1) + rng.normal(0, 3, (SIDE, SIDE, 1))
        moved = np.roll(whole, tuple(rng.integers(-4, 5, 2)), axis=(0, 1))
        file = BytesIO()
        Image.fromarray(moved.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()
