"""N4 takes away a smooth field and nothing else, and says what it took."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sharding.registration.bias_correction import CorrectConfig, correct_bias, tissue_within
from sharding.simulation.phantom import phantom_volume
from sharding.volumes.cohort import read_cohort
from sharding.volumes.volume import Volume, read_volume

pytestmark = pytest.mark.slow

QUICK = CorrectConfig(shrink=3, spline_mm=10, iterations=(50, 30, 5))
ROUGH = replace(QUICK, iterations=(20, 10, 3))
"""For what is compared with itself."""


def linear_field(shape, slopes):
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, size)) for size in shape)]
    return (1 + sum(slope * axis for slope, axis in zip(slopes, axes, strict=True))).astype("f4")


def spread(ratio, mask):
    """Standard deviation of the logarithm: how far two fields are from proportional."""
    return float(np.log(ratio[mask]).std())


@pytest.fixture(scope="module")
def phantom():
    return phantom_volume((64, 60, 48), seed=1)


def test_a_known_field_is_removed(phantom):
    true = linear_field(phantom.shape, (0.2, -0.15, 0.1))
    mask = phantom.data > 200
    _, own = correct_bias(phantom, QUICK)
    _, found = correct_bias(phantom.with_data(phantom.data * true), QUICK)
    before = spread(true, mask)
    assert before > 0.05
    # The phantom's own slow changes of tissue count as its field, with the bias or without.
    assert spread(found / own / true, mask) < 0.25 * before


def test_the_volume_is_divided_by_the_field_that_is_returned(phantom):
    corrected, field = correct_bias(phantom, QUICK)
    np.testing.assert_allclose(corrected.data * field, phantom.data, rtol=1e-5, atol=1e-3)
    assert corrected.affine is phantom.affine
    assert field.dtype == corrected.data.dtype == np.float32


def test_the_mean_intensity_of_the_mask_stays(phantom):
    mask = phantom.data > 300
    _, field = correct_bias(phantom, QUICK, mask)
    assert field[mask].mean() == pytest.approx(1, abs=1e-4)


def test_the_mask_decides_where_the_field_is_fitted(phantom):
    half = np.zeros(phantom.shape, bool)
    half[:32] = phantom.data[:32] > 200
    bright = phantom.data.copy()
    bright[40:] *= 5
    _, plain = correct_bias(phantom, QUICK, half)
    _, field = correct_bias(phantom.with_data(bright), QUICK, half)
    np.testing.assert_allclose(field[:28], plain[:28], rtol=0.02)


def test_a_region_of_another_scan_leaves_out_what_is_bright_elsewhere(phantom):
    specimen = phantom.data > 200
    true = linear_field(phantom.shape, (0.2, -0.15, 0.1))
    data = phantom.data * true
    # A holder beside the specimen, with a field of its own.
    data[:8] = 900 * np.linspace(0.3, 3, 48, dtype="f4")
    scan = phantom.with_data(data)
    region = np.zeros(phantom.shape, bool)
    region[14:-2] = specimen[13:-3]  # A voxel aside: headers align two scans only about.
    inside = tissue_within(scan, ROUGH, region)
    assert inside is not None
    assert not inside[:10].any()
    assert (inside & specimen).sum() > 0.8 * specimen.sum()
    left = {}
    for name, mask in (("region", inside), ("foreground", None)):
        _, field = correct_bias(scan, ROUGH, mask)
        _, own = correct_bias(phantom, ROUGH, inside)
        left[name] = spread(field / own / true, inside)
    assert left["region"] < 0.8 * left["foreground"]
    assert tissue_within(scan, ROUGH, phantom.data < 20) is None


def test_the_same_volume_gives_the_same_bits(phantom):
    one, two = (correct_bias(phantom, QUICK)[1] for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_negative_and_thin_input_is_no_trouble(phantom):
    noisy = phantom.with_data(phantom.data - 20)
    assert np.isfinite(correct_bias(noisy, QUICK)[0].data).all()
    thin = np.zeros(phantom.shape, bool)
    thin[31, 31, 20:25] = True
    assert np.isfinite(correct_bias(phantom, QUICK, thin)[1]).all()


def test_an_empty_mask_is_refused(phantom):
    with pytest.raises(ValueError, match="mask of the bias correction is empty"):
        correct_bias(phantom, QUICK, np.zeros(phantom.shape, bool))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"shrink": 0}, "shrink must be >= 1"),
        ({"spline_mm": 0.0}, "spline_mm must be > 0"),
        ({"iterations": ()}, "iterations must be >= 1"),
        ({"iterations": (5, 0)}, "iterations must be >= 1"),
        ({"convergence": 0.0}, "convergence must be > 0"),
    ],
)
def test_parameters_out_of_range_are_refused(change, rule):
    with pytest.raises(ValueError, match=rule):
        CorrectConfig(**change)


@pytest.mark.long
def test_a_field_on_a_real_volume_is_removed(real_t1w):
    """Beside the field that the scanner left, which N4 removes too."""
    specimen = next(row for row in read_cohort(real_t1w) if row.name == "sub-03")
    # Every second voxel: the anatomy and its intensities, an eighth of the work.
    volume = read_volume(specimen.target)
    coarse = np.diag([2.0, 2, 2, 1])
    volume = Volume(volume.data[::2, ::2, ::2].copy(), volume.affine @ coarse)
    true = linear_field(volume.shape, (0.2, -0.2, 0.2))
    mask = volume.data > 0.15 * volume.data.max()
    config = CorrectConfig(shrink=3, iterations=(50, 50, 30))
    _, own = correct_bias(volume, config)
    _, found = correct_bias(volume.with_data(volume.data * true), config)
    assert spread(found / own / true, mask) < 0.25 * spread(true, mask)


# Offsets, voxel sizes


def test_a_negative_offset_does_not_change_what_is_removed(phantom):
    true = linear_field(phantom.shape, (0.2, -0.15, 0.1))
    shaded = phantom.data * true
    plain, field = correct_bias(phantom.with_data(shaded), ROUGH)
    for offset in (-1000.0, -50.0):
        moved, found = correct_bias(phantom.with_data(shaded + offset), ROUGH)
        np.testing.assert_allclose(found, field, rtol=1e-3)
        np.testing.assert_allclose(moved.data - offset, plain.data, atol=1.0)


def test_a_positive_offset_is_refused_unless_it_is_named(phantom, refused):
    raised = phantom.with_data(phantom.data + 500)
    with refused("volume", "intensities start at 500, 36% of the largest", "correct.offset: 0 if"):
        correct_bias(raised, QUICK)
    plain, _ = correct_bias(phantom, QUICK)
    named, _ = correct_bias(raised, replace(QUICK, offset=500.0))
    np.testing.assert_allclose(named.data - 500, plain.data, atol=1.0)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_control_points_follow_the_size_of_the_specimen(phantom, scale):
    """A mouse's brain and one five times as large have the same field."""
    quick = replace(QUICK, spline_mm=None, iterations=(5,))
    _, small = correct_bias(phantom, quick)
    affine = phantom.affine @ np.diag([scale, scale, scale, 1])
    _, large = correct_bias(Volume(phantom.data, affine), quick)
    np.testing.assert_allclose(small, large, rtol=1e-3)


def test_a_grid_that_does_not_end_is_refused(phantom, refused):
    huge = Volume(phantom.data, np.diag([200.0, 200, 200, 1]))
    with refused("volume", "control points every 200 mm are 67x63x51, at most 27", "spline-mm"):
        correct_bias(huge, replace(QUICK, spline_mm=200.0))
