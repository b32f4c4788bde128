"""Pictures of seams and consistency: their numbers are those of the metrics."""

from __future__ import annotations

import numpy as np
import pytest

from distsynth.metrics.consistency import consistency_error, consistency_fit
from distsynth.metrics.seams import seam_index, seams
from distsynth.reporting.seam_figures import (
    consistency_figure,
    consistency_map,
    jump_profile,
    seam_figure,
)
from sharding.io.figures import figure_png

SHAPE = (24, 26, 10)
BORDERS = [np.array([8, 16]), np.array([13]), np.array([], int)]


@pytest.fixture
def volumes():
    random = np.random.default_rng(0)
    target = random.normal(size=SHAPE)
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    return target, random.normal(size=SHAPE), mask


def test_a_seam_is_a_peak_at_the_border(volumes):
    target, noise, mask = volumes
    error = 0.1 * noise
    error[8:16] += 3
    distances, means = jump_profile(error, BORDERS[0], mask, 0)
    assert list(distances) == list(range(-4, 5))
    assert means[4] == pytest.approx(3, abs=0.1)
    assert means[np.arange(9) != 4].max() < 0.3
    assert seam_index(target + error, target, BORDERS, mask) > 3
    distances, means = jump_profile(error, BORDERS[2], mask, 2)
    assert len(distances) == len(means) == 0


def test_the_profile_is_the_mean_of_jumps_in_the_mask(volumes):
    _, error, mask = volumes
    distances, means = jump_profile(error, BORDERS[1], mask, 1)
    for distance, mean in zip(distances, means, strict=True):
        one, other = error[:, 12 + distance], error[:, 13 + distance]
        both = mask[:, 12 + distance] & mask[:, 13 + distance]
        assert mean == pytest.approx(np.abs(one - other)[both].mean())


def test_the_map_sums_up_to_the_consistency_error(volumes):
    source, noise, mask = volumes
    for synthetic in (0.5 * source**3 + 0.3 * noise, noise, np.zeros(SHAPE)):
        found = consistency_map(consistency_fit(synthetic, source, mask), synthetic, source, mask)
        assert np.isnan(found[~mask]).all()
        expected = consistency_error(synthetic, source, mask)
        assert np.sqrt(np.mean(found[mask] ** 2)) == pytest.approx(expected, rel=1e-6)


def test_a_row_for_each_method(volumes):
    target, noise, mask = volumes
    made = {"one": target + noise, "$other": target - noise}
    figure = seam_figure(made, target, dict.fromkeys(made, BORDERS), mask, (1, 2, 1))
    assert len(figure.axes) == 4
    left = figure.axes[0]
    assert len(left.lines) == len(BORDERS[0]) + len(BORDERS[1])
    inside, outside = seams(made["one"], target, BORDERS, (mask, ~mask))
    title = f"seam index {inside.index:.3f} in the mask, {outside.index:.3f} outside"
    assert figure.axes[1].get_title() == title
    figure = consistency_figure(made, target, mask)
    assert len(figure.axes) == 6
    assert f"{consistency_error(made['$other'], target, mask):.3f}" in figure.axes[5].get_title()
    assert figure_png(figure).startswith(b"\x89PNG")
