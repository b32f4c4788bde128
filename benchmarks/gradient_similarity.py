"""How alike the edges of two volumes are, and how sharp one is beside the other."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve1d

from distsynth.metrics.image import Array, Mask, check_same_shapes, masked_parts

STABILITY = 170 / 255**2
"""The constant of Xue et al. (2014), who take images of 8 bits, on the scale of [0, 1]."""


def gradient_magnitude(volume: Array, dims: int = 3, axis: int = 2) -> Array:
    """Length of the gradient at each voxel, by Prewitt's filter.

    Along each axis the central difference (-1, 0, 1) / 2, averaged over the 3 voxels across each
    other axis; faces are replicated. Xue et al. have a difference without the half: theirs is twice
    as large (ours: so that a ramp of 1 a voxel gives 1, and the constant is theirs over 4).

    Args:
        volume: Shape (x, y, z), any unit.
        dims: 3 for gradients in space, 2 for those in slices.
        axis: Slicing axis for dims 2.

    Returns:
        Same shape, >= 0, in units of the volume a voxel.

    Raises:
        ValueError: If dims is neither 2 nor 3.
    """
    if dims not in (2, 3):
        raise ValueError(f"dims must be 2 or 3, got {dims}")
    axes = [other for other in range(3) if dims == 3 or other != axis]
    total = np.zeros(volume.shape, np.float32)
    for along in axes:
        slope = convolve1d(volume.astype(np.float32), [0.5, 0.0, -0.5], along, mode="nearest")
        for across in axes:
            if across != along:
                slope = convolve1d(slope, [1 / 3] * 3, across, mode="nearest")
        total += slope**2
    return np.sqrt(total)


def gradient_similarity_deviation(
    synthetic: Array, target: Array, mask: Mask | None = None, dims: int = 3, axis: int = 2
) -> float:
    """Gradient magnitude similarity deviation (Xue, Zhang, Mou and Bovik, IEEE TIP 2014).

    At each voxel the similarity of the gradients' lengths s and t is (2 s t + c) / (s² + t² + c),
    1 where they are equal; the measure is its standard deviation over voxels. Xue et al. define it
    for images of 8 bits that are first halved in resolution, as they are seen from some distance;
    nothing is halved here, and windows may reach out of the mask (ours). By default gradients are
    those in space (ours); dims 2 has those of slices, as published.

    Args:
        synthetic: Shape (x, y, z), on the scale on which the target is [0, 1].
        target: Same shape and scale.
        mask: Voxels to look at; None for all.
        dims: 3 or 2.
        axis: Slicing axis for dims 2.

    Returns:
        0 to 0.5, lower is better: 0 for equal volumes, also for volumes whose similarity is equally
        low everywhere.

    Raises:
        ValueError: If shapes differ, the mask is empty, or dims is neither 2 nor 3.
    """
    check_same_shapes(synthetic, target, mask)
    own = gradient_magnitude(synthetic, dims, axis)
    other = gradient_magnitude(target, dims, axis)
    constant = STABILITY / 4
    similarity = (2 * own * other + constant) / (own**2 + other**2 + constant)
    values = _inside(mask, similarity)
    return float(values.std(dtype=np.float64))


def relative_sharpness(synthetic: Array, target: Array, mask: Mask | None = None) -> float:
    """Mean length of the gradient in space of the synthetic volume over that of the target (ours).

    It knows nothing of where edges belong: noise sharpens. It stands beside measures that compare.

    Args:
        synthetic: Shape (x, y, z).
        target: Same shape and scale.
        mask: Voxels to look at; None for all.

    Returns:
        >= 0: 1 means as sharp as the target, less means blurred. NaN if the target is flat.

    Raises:
        ValueError: If shapes differ or the mask is empty.
    """
    check_same_shapes(synthetic, target, mask)
    own, other = (_inside(mask, gradient_magnitude(volume)) for volume in (synthetic, target))
    expected = float(other.mean(dtype=np.float64))
    return float(own.mean(dtype=np.float64)) / expected if expected else float("nan")


def _inside(mask: Mask | None, volume: Array) -> Array:
    """The voxels of a volume in the mask, which must not be empty."""
    return np.concatenate([part.ravel() for (part,) in masked_parts(mask, volume)])
