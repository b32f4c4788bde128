"""Fixed sharpening kernels on the generator's output (model 6, section 6.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distsynth.models.layers import correlate


class Sharpen(nn.Module):
    """Filter an image with a fixed kernel; a constant image passes unchanged, borders included."""

    kernel: Tensor

    def __init__(self, name: str, dims: int) -> None:
        super().__init__()
        self.register_buffer("kernel", sharpening_kernel(name, dims), persistent=False)

    @property
    def reach(self) -> int:
        """Voxels on each side of a voxel that it is filtered from."""
        return self.kernel.shape[0] // 2

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, *spatial) -> same shape; the border is replicated (ours)."""
        return correlate(image, self.kernel)


def sharpening_kernel(name: str, dims: int) -> Tensor:
    """The paper's kernels, and their like in 3D (ours); each sums to 1.

    Args:
        name: "3x3" subtracts the discrete Laplacian; "5x5" is the unsharp mask, twice the image
            minus its binomial blur.
        dims: Spatial dims.

    Returns:
        Kernel of shape (3,) * dims or (5,) * dims. In 2D the paper's matrices, with the `c` of its
        3x3 read as 0.
    """
    if name == "3x3":
        kernel = torch.zeros((3,) * dims)
        centre = (1,) * dims
        for axis in range(dims):
            for neighbour in (0, 2):
                kernel[(*centre[:axis], neighbour, *centre[axis + 1 :])] = -1
        kernel[centre] = 1 + 2 * dims
        return kernel
    if name == "5x5":
        line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        blur = line
        for _ in range(dims - 1):
            blur = blur[..., None] * line
        kernel = -blur
        kernel[(2,) * dims] += 2
        return kernel
    raise ValueError(f"sharpening kernel must be 3x3 or 5x5, got {name}")
