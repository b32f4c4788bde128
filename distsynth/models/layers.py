"""Layers for 2 or 3 spatial dims: the only place that chooses between torch's 2D and 3D classes.

`dims` is always the number of spatial dims, `len(patch_size)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "instance", "layer", "none"]
"""Normalisation of feature maps: over the batch, within each image, over the channels of each voxel
(all with learnt scale and shift), or none."""

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED_CONV = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_CORRELATE = {2: F.conv2d, 3: F.conv3d}


def conv(
    dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = True
) -> nn.Module:
    """A convolution that keeps the sides (odd kernel, stride 1) or halves them (stride 2)."""
    padding = (kernel - 1) // 2
    return _CONV[dims](inputs, outputs, kernel, stride, padding, bias=bias)


def zero_conv(dims: int, inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution whose weights start at zero, whatever the initialisation of the network."""
    layer: nn.Module = conv(dims, inputs, outputs, kernel)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    layer.starts_at_zero = True  # type: ignore[assignment]
    return layer


def depthwise_conv(dims: int, channels: int, kernel: int) -> nn.Module:
    """A convolution of each channel by itself that keeps the sides."""
    return _CONV[dims](channels, channels, kernel, padding=kernel // 2, groups=channels)


def space_to_depth(image: Tensor, cell: int) -> Tensor:
    """Turn cells of voxels into channels, without any loss.

    Args:
        image: Shape (batch, channels, *spatial), sides divisible by `cell`.
        cell: Voxels along each side of a cell.

    Returns:
        Shape (batch, channels * cell^dims, *spatial / cell).
    """
    dims = image.dim() - 2
    for axis in range(dims):
        image = image.unflatten(2 + 2 * axis, (-1, cell))
    offsets = range(3, 3 + 2 * dims, 2)
    sides = range(2, 2 + 2 * dims, 2)
    return image.permute(0, 1, *offsets, *sides).flatten(1, 1 + dims)


def depth_to_space(features: Tensor, cell: int) -> Tensor:
    """Inverse of space_to_depth.

    Args:
        features: Shape (batch, channels * cell^dims, *spatial).
        cell: Voxels along each side of a cell.

    Returns:
        Shape (batch, channels, *spatial * cell).
    """
    dims = features.dim() - 2
    image = features.unflatten(1, (-1, *[cell] * dims))
    order = [axis for side in range(dims) for axis in (2 + dims + side, 2 + side)]
    image = image.permute(0, 1, *order)
    for axis in range(dims):
        image = image.flatten(2 + axis, 3 + axis)
    return image


def transposed_conv(dims: int, inputs: int, outputs: int, *, bias: bool = True) -> nn.Module:
    """A transposed convolution that doubles the sides: kernel 4, stride 2, padding 1."""
    return _TRANSPOSED_CONV[dims](inputs, outputs, 4, 2, 1, bias=bias)


def max_pool(dims: int) -> nn.Module:
    """Max-pooling that halves the sides."""
    return _MAX_POOL[dims](2)


def normalisation(norm: Norm, dims: int, channels: int) -> nn.Module:
    """The configured norm; for "none" a layer that does nothing."""
    if norm == "batch":
        return _BATCH_NORM[dims](channels)
    if norm == "instance":
        return _INSTANCE_NORM[dims](channels, affine=True)
    return ChannelNorm(dims, channels) if norm == "layer" else nn.Identity()


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, added to the input; a norm follows each convolution.

    Args:
        dims: 2 or 3.
        features: Channels in and out.
        kernel: Side of the kernels.
        norm: The norm.
        scale: Factor on what is added.
        zero_start: Start the second convolution at zero, and so the block as the identity.
    """

    def __init__(
        self,
        dims: int,
        features: int,
        kernel: int,
        norm: Norm,
        scale: float = 1.0,
        zero_start: bool = False,
    ) -> None:
        super().__init__()
        last = zero_conv if zero_start else conv
        self.layers = nn.Sequential(
            conv(dims, features, features, kernel),
            normalisation(norm, dims, features),
            nn.ReLU(),
            last(dims, features, features, kernel),
            normalisation(norm, dims, features),
        )
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(batch, features, *spatial), keeping the shape."""
        return features + self.scale * self.layers(features)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel."""

    def __init__(self, dims: int, channels: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self._shape, self._epsilon = (-1, *[1] * dims), epsilon

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, *spatial) -> the same shape."""
        centred = features - features.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        scale = torch.rsqrt(variance + self._epsilon) * self.weight.view(self._shape)
        return centred * scale + self.bias.view(self._shape)


def reach(norm: Norm, kernels: Iterable[int]) -> int | None:
    """How far layers of stride 1 look, all kernels together.

    Returns:
        Voxels on each side of a voxel that its output depends on; None with instance norm, which
        depends on all that the network is shown.
    """
    return None if norm == "instance" else sum(kernel // 2 for kernel in kernels)


def correlate(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter an image with a fixed odd kernel, the border replicated.

    Args:
        image: Shape (batch, 1, *spatial).
        kernel: One odd side for each spatial dim of the image.

    Returns:
        The filtered image, same shape.
    """
    padding = [side // 2 for side in reversed(kernel.shape) for _ in range(2)]
    padded = F.pad(image, padding, mode="replicate")
    return _CORRELATE[kernel.ndim](padded, kernel[None, None].to(image.dtype))


def kernel_sizes(kernels: Sequence[int], layers: int) -> tuple[int, ...]:
    """One kernel size a layer; a single configured value serves them all."""
    return tuple(kernels) * layers if len(kernels) == 1 else tuple(kernels)


class WidthsLabel:
    """A configuration whose label is its family and the widths of its layers."""

    family: Any  # the literal of each family
    channels: tuple[int, ...]

    @property
    def label(self) -> str:
        """The family and its widths, such as "unet 16-32-64"."""
        return f"{self.family} {'-'.join(map(str, self.channels))}"
