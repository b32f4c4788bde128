"""Registration finds a known motion again, in any contrast and orientation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.motion import Motion, landmarks, random_motion
from sharding.registration.config import LEAST_VOXELS
from sharding.registration.register import RegisterConfig, register_affine, register_deformable
from sharding.simulation.phantom import phantom_volume
from sharding.volumes.masks import foreground_mask
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume

pytestmark = pytest.mark.slow

VOXEL = 0.2
QUICK = RegisterConfig(
    affine_shrink=(2, 1), affine_iterations=60, deform_shrink=2, deform_iterations=(30,)
)


@pytest.fixture(scope="module")
def target():
    return phantom_volume((48, 48, 40), seed=2)


@pytest.fixture(scope="module")
def inside(target):
    return foreground_mask(target.data / target.data.max(), 0.05)


def moved(target, motion):
    data, _ = motion.apply(target, target.shape, target.affine)
    return target.with_data(data)


def errors(found, target, inside, motion):
    """In voxels of the target, at landmarks."""
    points, truth = landmarks(target, inside, motion, 300)
    return np.linalg.norm(found.points(points) - truth, axis=1) / VOXEL


@pytest.fixture(scope="module")
def affine_motion(target):
    return random_motion(target, Motion(0, 0.12, 6, 0.8, 0.02, seed=1))


@pytest.fixture(scope="module")
def deformation(target):
    return random_motion(target, Motion(1.6, 0.1, seed=3))


def test_an_affine_motion_is_found(target, inside, affine_motion):
    before = errors(Transform.identity(), target, inside, affine_motion)
    assert before.mean() > 3
    found = register_affine(moved(target, affine_motion), target, QUICK, inside)
    assert errors(found, target, inside, affine_motion).mean() < 0.5


@pytest.mark.parametrize("contrast", ["the same", "inverted", "neither rising nor falling"])
def test_a_smooth_deformation_is_found_in_any_contrast(contrast, target, inside, deformation):
    source = moved(target, deformation)
    unit = source.data / source.data.max()
    changed = {
        "the same": unit,
        "inverted": 1 - unit,
        "neither rising nor falling": (unit - 0.55) ** 2,
    }[contrast]
    source = source.with_data((1000 * changed).astype(np.float32))
    found = register_deformable(source, target, Transform.identity(), QUICK, inside)
    before = errors(Transform.identity(), target, inside, deformation)
    after = errors(found, target, inside, deformation)
    assert before.mean() > 0.9
    assert after.mean() < 0.7
    assert found.jacobian().min() > 0


@pytest.mark.parametrize("turn", ["PIR", "LAS", 25.0])
def test_the_targets_axes_do_not_matter_to_the_deformation(turn, target):
    """Permuted, flipped (left-handed) and oblique axes of the target."""
    if isinstance(turn, str):
        other = target.reoriented(turn)
    else:
        oblique = random_motion(target, Motion(0, 0.12, turn, 0, seed=4)).affine
        other = replace(target, affine=oblique @ target.affine)
    inside = foreground_mask(other.data / other.data.max(), 0.05)
    motion = random_motion(other, Motion(1.6, 0.1, seed=3))
    found = register_deformable(moved(other, motion), other, Transform.identity(), QUICK, inside)
    assert errors(found, other, inside, motion).mean() < 0.7


def test_nothing_is_deformed_that_agrees(target, inside):
    found = register_deformable(target, target, Transform.identity(), QUICK, inside)
    assert errors(found, target, inside, Transform.identity()).mean() < 0.1


def test_what_lies_outside_the_mask_does_not_count(target, inside, deformation):
    """A bright block beside the object in the source only."""
    source = moved(target, deformation)
    spoilt = source.with_data(source.data.copy())
    spoilt.data[:4, :4, :4] = 900
    assert not inside[:4, :4, :4].any()
    found = register_deformable(spoilt, target, Transform.identity(), QUICK, inside)
    assert errors(found, target, inside, deformation).mean() < 0.7


def test_mutual_information_bears_an_inverted_contrast(target, inside, affine_motion):
    source = moved(target, affine_motion)
    inverted = source.with_data(source.data.max() - source.data)
    found = register_affine(inverted, target, QUICK, inside)
    assert errors(found, target, inside, affine_motion).mean() < 0.6


def test_correlation_finds_like_contrast(target, inside, affine_motion):
    config = replace(QUICK, affine_metric="correlation")
    found = register_affine(moved(target, affine_motion), target, config, inside)
    assert errors(found, target, inside, affine_motion).mean() < 0.6


@pytest.mark.parametrize("orientation", ["LAS", "PIR"])
def test_axes_of_the_file_do_not_matter(orientation, target, inside, affine_motion):
    """Flipped (left-handed) and permuted axes of the same scan in the same place."""
    source = moved(target, affine_motion).reoriented(orientation)
    found = register_affine(source, target, QUICK, inside)
    assert errors(found, target, inside, affine_motion).mean() < 0.6
    deformed = register_deformable(source, target, found, QUICK, inside)
    assert errors(deformed, target, inside, affine_motion).mean() < 0.8


def test_an_oblique_source_is_found(target, inside):
    """Its axes stand askew in the world: the header says so, and says where it lies."""
    turn = random_motion(target, Motion(0, 0.12, 25, 2.0, seed=4)).affine
    source = replace(target, affine=turn @ target.affine)
    found = register_affine(source, target, QUICK, inside)
    np.testing.assert_allclose(found.affine, turn, atol=0.03 * VOXEL * 48)


def test_headers_far_apart_are_overcome(target, inside):
    far = replace(target, affine=target.affine.copy())
    far.affine[:3, 3] += 500
    found = register_affine(far, target, QUICK, inside)
    points = np.argwhere(inside)[::200] * VOXEL
    assert np.linalg.norm(found.points(points) - points - 500, axis=1).mean() < 0.5 * VOXEL


def test_the_same_input_gives_the_same_numbers(target, inside, affine_motion):
    config = replace(QUICK, affine_iterations=10, deform_iterations=(6,))
    source = moved(target, affine_motion)
    one, two = (register_affine(source, target, config, inside) for _ in range(2))
    np.testing.assert_array_equal(one.affine, two.affine)
    one, two = (register_deformable(source, target, one, config, inside) for _ in range(2))
    np.testing.assert_array_equal(one.field, two.field)


def test_what_is_registered_is_bounded(target, inside, affine_motion):
    config = replace(QUICK, max_voxels=LEAST_VOXELS**3)
    found = register_deformable(
        moved(target, affine_motion), target, Transform.identity(), config, inside
    )
    assert found.field is not None
    assert found.field.size / 3 < 40**3, "the level itself and its margin"


def test_standard_output_is_left_alone(target, inside, affine_motion, capfd):
    source = moved(target, affine_motion)
    register_deformable(source, target, Transform.identity(), QUICK, inside)
    assert capfd.readouterr().out == ""


def test_a_deformation_that_greedy_gives_up_is_told(target, inside, refused):
    """More levels than the volume has voxels."""
    config = replace(QUICK, deform_iterations=(1,) * 12)
    with refused("registration", "greedy cannot register this pair .*pixels", "--register"):
        register_deformable(target, target, Transform.identity(), config, inside)


def test_a_sheared_grid_is_refused(target, inside, refused):
    shear = np.eye(4)
    shear[0, 1] = 0.4
    source = Volume(target.data, shear @ target.affine)
    with refused("registration", "right angles", "without shear"):
        register_affine(source, target, QUICK, inside)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"affine_shrink": ()}, "affine_shrink must fall"),
        ({"affine_shrink": (2, 4)}, "affine_shrink must fall"),
        ({"deform_shrink": 0}, "deform_shrink must be >= 1"),
        ({"deform_iterations": ()}, "deform_iterations must be one or more"),
        ({"deform_iterations": (5, 0)}, "deform_iterations must be one or more"),
        ({"deform_radius": 0}, "deform_radius must be >= 1"),
        ({"affine_iterations": 0}, "affine_iterations must be >= 1"),
        ({"update_smoothing": -1.0}, "update_smoothing must be >= 0"),
        ({"update_smoothing": float("inf")}, "update_smoothing must be >= 0, got inf"),
        ({"field_smoothing": float("nan")}, "field_smoothing must be >= 0"),
        ({"max_voxels": 10}, "max_voxels must be >= 4096"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_parameters_out_of_range_are_refused(change, rule):
    with pytest.raises(ValueError, match=rule):
        RegisterConfig(**change)
