"""The checkerboard measure against planted patterns, and what is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from artefacts import SHAPE, lattice, paper_borders, smooth_error, steps, stripes
from scipy import ndimage

from distsynth.metrics.checkerboard import checkerboard


@pytest.mark.parametrize(
    "pattern",
    [lattice, lambda size: stripes(4, size), lambda size: stripes(2, size)],
    ids=["lattice", "stripes of 4", "stripes of 2"],
)
def test_it_rises_with_a_planted_pattern(rng, pattern):
    calm = smooth_error(rng)
    found = [checkerboard(calm + pattern(size)) for size in (0, 0.03, 0.06, 0.12, 0.24)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(1, abs=0.1)
    assert found[2] > 1.3
    assert found[-1] > 5


@pytest.mark.parametrize(
    "error",
    [
        lambda rng: rng.normal(size=SHAPE),
        smooth_error,
        lambda rng: ndimage.gaussian_filter(smooth_error(rng), 2),
        lambda rng: smooth_error(rng) + steps(paper_borders(), 0.25),
        lambda rng: np.cumsum(rng.normal(size=SHAPE), axis=0),
    ],
    ids=["noise", "smooth", "blur", "seams", "falling spectrum"],
)
def test_nothing_but_a_pattern_reads_as_one(rng, error):
    """To 0.12; a mask, whose rim is an edge, changes nothing."""
    volume = error(rng)
    assert checkerboard(volume) == pytest.approx(1, abs=0.12)
    mask = np.zeros(SHAPE, bool)
    mask[8:-8, 8:-8, 4:-4] = True
    assert checkerboard(volume, None, mask) == pytest.approx(1, abs=0.2)


def test_it_looks_at_the_error_in_the_mask(rng):
    calm, target = smooth_error(rng), stripes(4, 1.0)
    assert checkerboard(calm + target) > 5
    assert checkerboard(calm + target, target) == pytest.approx(1, abs=0.1)
    mask = np.zeros(SHAPE, bool)
    mask[:, :, :24] = True
    only_outside = np.where(mask, 0, stripes(4, 1.0))
    assert checkerboard(calm + only_outside, None, mask) == pytest.approx(1, abs=0.12)


def test_at_its_ends(rng):
    calm = smooth_error(rng)
    assert checkerboard(calm, calm) == 1
    assert math.isnan(checkerboard(calm[:31, :31, :31]))
    assert checkerboard(calm[:32, :31, :31]) < 2
    with pytest.raises(ValueError, match="one shape"):
        checkerboard(calm, calm[1:])
    with pytest.raises(ValueError, match="mask is empty"):
        checkerboard(calm, None, np.zeros(SHAPE, bool))
