"""A registration step stays only where it brings source and target closer."""

from __future__ import annotations

import numpy as np
import pytest

from sharding.registration.alignment import compare, information, mirror
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.masks import foreground_mask
from sharding.volumes.transform import Transform


def scaled(volume):
    fitted = IntensityTransform.fit(volume.data, (0.1, 99.9))
    return volume.with_data(fitted.scale(volume.data) * np.float32(1000))


@pytest.fixture(scope="module")
def pair():
    """A source that lies right, its target, and the foreground."""
    target = scaled(phantom_volume((40, 36, 32), seed=7))
    source, _ = simulate_source(target, SimulationConfig(noise=0.01), "a")
    return scaled(source), target, foreground_mask(target.data / 1000, 0.05)


def shifted(*shift_mm):
    affine = np.eye(4)
    affine[:3, 3] = shift_mm
    return Transform(affine)


def test_a_pair_that_lies_right_keeps_its_place(pair):
    source, target, foreground = pair
    same = compare(source, target, Transform.identity(), Transform.identity(), foreground)
    assert not same.kept
    false = compare(source, target, Transform.identity(), shifted(0.08, 0, 0.08), foreground)
    assert not false.kept
    assert false.information_before > false.information_after


def test_a_step_that_brings_the_two_together_is_kept(pair):
    source, target, foreground = pair
    found = compare(source, target, shifted(0.3, 0.2, 0), Transform.identity(), foreground)
    assert found.kept
    assert found.information_after > 1.1 * found.information_before


def test_a_start_that_hardly_meets_the_target_is_not_compared(pair):
    source, target, foreground = pair
    found = compare(source, target, shifted(5, 0, 0), Transform.identity(), foreground)
    assert found.kept
    assert found.information_before is None


def test_the_mirrored_source_fits_worse_and_twice_mirrored_it_is_itself(pair):
    source, target, foreground = pair
    here = Transform.identity()
    right = information(source, target, here, foreground)
    assert information(mirror(source), target, here, foreground) < 0.9 * right
    np.testing.assert_array_equal(mirror(mirror(source)).data, source.data)
