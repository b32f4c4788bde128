"""Pairs: intensities go there and back, world coordinates are respected, misfits are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sharding.simulation.phantom import phantom_volume
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.intensities import IntensityTransform, fingerprint
from sharding.volumes.masks import foreground_mask
from sharding.volumes.pair import place_source, prepare_pair
from sharding.volumes.resample import resample
from sharding.volumes.volume import Volume, read_volume, write_volume

SLOPE = np.array([0.7, -1.3, 2.1])


def ramp(shape, affine, offset=50.0):
    """A volume whose intensity is linear in world coordinates."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return Volume((world @ SLOPE + offset).astype(np.float32), affine)


def rotated(angles, spacing, translation):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = translation
    return affine


def noise(shape=(12, 11, 10), seed=0, affine=None):
    data = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    return Volume(data, np.diag([0.5, 0.4, 0.3, 1]) if affine is None else affine)


# Intensities


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(-1e4, 1e4), st.floats(1e-2, 1e5))
def test_intensities_come_back_within_the_percentiles(seed, shift, scale):
    data = np.random.default_rng(seed).normal(size=(9, 8, 7)).astype(np.float32)
    data = (data * scale + shift).astype(np.float32)
    if np.ptp(data) < 1e-3 * np.abs(data).max():
        return  # Nothing but rounding is left.
    transform = IntensityTransform.fit(data, (1, 99))
    standard = transform.standardise(data)
    assert standard.dtype == np.float32
    assert standard.mean() == pytest.approx(0, abs=1e-3)
    assert standard.std() == pytest.approx(1, abs=1e-3)
    clipped = np.clip(data, transform.low, transform.high)
    tolerance = 1e-5 * (transform.high - transform.low) + 1e-6 * np.abs(data).max()
    np.testing.assert_allclose(transform.restore(standard), clipped, atol=tolerance)


def test_percentiles_are_clipped_and_scaled_to_one():
    data = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    transform = IntensityTransform.fit(data, (0.1, 99.9))
    assert (transform.low, transform.high) == pytest.approx((1, 999))
    scaled = transform.scale(data)
    assert (scaled.min(), scaled.max()) == (0, 1)
    assert scaled.flat[500] == pytest.approx(0.5)
    assert (scaled == 0).sum() == (scaled == 1).sum() == 2
    assert np.ptp(transform.standardise(data)) == pytest.approx(transform.data_range, rel=1e-6)
    np.testing.assert_array_equal(
        transform.standardise(data), transform.standardise_scaled(transform.scale(data))
    )


def test_new_voxels_are_clipped_by_the_fitted_range():
    transform = IntensityTransform(low=10, high=30, mean=0.25, std=0.5)
    data = np.array([-1e6, 10, 20, 30, 1e6], np.float32)
    assert transform.scale(data).tolist() == [0, 0, 0.5, 1, 1]
    assert transform.standardise(data).tolist() == [-0.5, -0.5, 0.5, 1.5, 1.5]
    assert transform.restore(transform.standardise(data)).tolist() == [10, 10, 20, 30, 30]
    assert transform.data_range == 2


def test_nearly_constant_volumes_are_refused(tmp_path, refused):
    data = np.zeros((20, 20, 20), np.float32)
    data[0, 0, 0] = 1
    with pytest.raises(ValueError, match=r"0\.1 and 99\.9 percentiles must differ, both are 0"):
        IntensityTransform.fit(data, (0.1, 99.9))
    write_volume(tmp_path / "flat.nii.gz", Volume(data, np.eye(4)))
    write_volume(tmp_path / "good.nii.gz", noise((20, 20, 20), affine=np.eye(4)))
    for files in (("flat", "good"), ("good", "flat")):
        target, source = (tmp_path / f"{name}.nii.gz" for name in files)
        with refused("flat.nii.gz", "percentiles must differ", "Crop the empty space"):
            prepare_pair(Specimen("a", target, source), PreprocessConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_percentiles", (99, 1)),
        ("clip_percentiles", (-1, 99)),
        ("foreground_threshold", 1.0),
        ("foreground_threshold", float("nan")),
        ("min_overlap", 0.0),
        ("min_overlap", 1.5),
    ],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        PreprocessConfig(**{field: value})


# Resampling


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_same_grid_returns_the_same_voxels_as_a_copy(order):
    volume = noise()
    same = resample(volume, volume.shape, volume.affine + 1e-9, order)
    np.testing.assert_array_equal(same, volume.data)
    assert not np.shares_memory(same, volume.data)


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "ASR", "ILP", "SAL"])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_flipped_and_permuted_axes_are_undone(orientation, order):
    volume = noise()
    turned = volume.reoriented(orientation)
    back = resample(turned, volume.shape, volume.affine, order)
    np.testing.assert_allclose(back, volume.data, atol=1e-3)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["RAS", "LPI", "ASR", "PIR"]),
    st.tuples(*[st.floats(-40, 40)] * 3),
    st.tuples(*[st.floats(0.3, 1.0)] * 3),
    st.sampled_from([1, 3]),
)
def test_a_linear_ramp_is_exact_on_any_grid_in_the_world(orientation, angles, spacing, order):
    volume = ramp((40, 40, 40), rotated((10, 20, 30), (1, 1.2, 1.1), (3, -4, 5)))
    volume = volume.reoriented(orientation)
    # A grid about the volume's centre, far enough from its faces for the spline's border.
    centre = volume.affine @ [19.5, 19.5, 19.5, 1]
    affine = rotated(angles, spacing, (0, 0, 0))
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ [4.5, 4.5, 4.5]
    found = resample(volume, (10, 10, 10), affine, order)
    np.testing.assert_allclose(found, ramp((10, 10, 10), affine).data, atol=2e-3)


def test_shifted_grids_are_interpolated_between_voxels():
    volume = ramp((10, 10, 10), np.diag([2.0, 2, 2, 1]))
    affine = volume.affine.copy()
    affine[:3, 3] = [1, 0, -1.5]
    found = resample(volume, (9, 10, 10), affine, order=1)
    expected = ramp((9, 10, 10), affine).data
    np.testing.assert_allclose(found[:, :, 1:], expected[:, :, 1:], atol=1e-4)
    np.testing.assert_array_equal(
        found[:, 0, 0], (volume.data[:-1, 0, 0] + volume.data[1:, 0, 0]) / 2
    )


def test_coarser_grids_are_blurred_first_and_means_are_kept():
    x, y, z = np.indices((32, 32, 32))
    checkers = Volume(((x + y + z) % 2 * 100).astype(np.float32), np.eye(4))
    coarse = np.diag([2.0, 2, 2, 1])
    plain = resample(checkers, (16, 16, 16), coarse, order=0)
    blurred = resample(checkers, (16, 16, 16), coarse, order=1)
    assert plain.std() == 0, "without blurring, every other voxel is all there is"
    assert plain.mean() == 0
    inner = blurred[2:-2, 2:-2, 2:-2]
    assert np.abs(inner - 50).max() < 1
    smooth = ramp((32, 32, 32), np.eye(4))
    found = resample(smooth, (16, 16, 16), coarse, order=1)[3:-3, 3:-3, 3:-3]
    np.testing.assert_allclose(found, ramp((16, 16, 16), coarse).data[3:-3, 3:-3, 3:-3], atol=1e-3)


def test_only_the_coarser_axis_is_blurred():
    volume = noise((16, 16, 16), affine=np.eye(4))
    found = resample(volume, (16, 16, 8), np.diag([1.0, 1, 2, 1]), order=1)
    expected = np.apply_along_axis(
        lambda line: resample(
            Volume(np.broadcast_to(line, (2, 2, 16)).astype(np.float32), np.eye(4)),
            (2, 2, 8),
            np.diag([1.0, 1, 2, 1]),
            order=1,
        )[0, 0],
        2,
        volume.data,
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


# Placing a source on a grid


def test_inside_is_the_sources_field_of_view():
    source = noise((10, 10, 10), affine=np.eye(4))
    affine = np.eye(4)
    affine[:3, 3] = [-3, 2, 0]
    placed = place_source(source, (16, 12, 10), affine, PreprocessConfig())
    expected = np.zeros((16, 12, 10), bool)
    expected[3:13, 0:8, :] = True
    np.testing.assert_array_equal(placed.inside, expected)
    assert (placed.scaled[~expected] == 0).all()
    scaled = placed.transform.scale(source.data)
    np.testing.assert_allclose(placed.scaled[3:13, 0:8], scaled[:, 2:], atol=1e-6)
    assert placed.native is source


def test_borders_of_voxels_count_as_inside():
    source = noise((4, 4, 4), affine=np.diag([2.0, 2, 2, 1]))
    fine = np.eye(4)
    fine[:3, 3] = -0.5
    placed = place_source(source, (8, 8, 8), fine, PreprocessConfig())
    assert placed.inside.all(), "eight fine voxels fill the four coarse ones"
    fine[:3, 3] = -1.6
    assert not place_source(source, (8, 8, 8), fine, PreprocessConfig()).inside[0].any()


def test_the_sources_transform_does_not_depend_on_the_grid():
    source = noise()
    config = PreprocessConfig()
    first = place_source(source, (5, 5, 5), np.eye(4), config).transform
    assert first == place_source(source, source.shape, source.affine, config).transform
    assert first == IntensityTransform.fit(source.data, config.clip_percentiles)


def test_overshoot_of_the_spline_stays_within_the_range():
    data = np.zeros((12, 12, 12), np.float32)
    data[6:] = 100
    grid = np.diag([0.3, 1, 1, 1.0])
    volume = Volume(data, np.eye(4))
    assert resample(volume, (38, 12, 12), grid, order=3).max() > 101
    scaled = place_source(volume, (38, 12, 12), grid, PreprocessConfig()).scaled
    assert (scaled.min(), scaled.max()) == (0, 1)


def test_foreground_fills_enclosed_holes():
    scaled = np.zeros((9, 9, 9), np.float32)
    scaled[1:8, 1:8, 1:8] = 0.5
    scaled[3:5, 3:5, 3:5] = 0  # a ventricle
    scaled[0, 0, 0] = 0.04
    mask = foreground_mask(scaled, 0.05)
    assert mask.dtype == bool
    assert mask.sum() == 7**3


# Pairs


@pytest.fixture(scope="module")
def pair(phantom_cohort):
    return prepare_pair(read_cohort(phantom_cohort)[0], PreprocessConfig())


def test_a_pair_is_aligned_and_standardised(pair):
    assert pair.source.shape == pair.target.shape == pair.mask.shape == pair.grid.shape
    assert pair.source.dtype == pair.target.dtype == np.float32
    assert pair.target.mean() == pytest.approx(0, abs=1e-4)
    assert pair.target.std() == pytest.approx(1, abs=1e-4)
    # The last fine voxel, 1.5 coarse ones beyond the last coarse centre, is outside.
    assert pair.overlap == pytest.approx(1, abs=0.02)
    assert 0.1 < pair.mask.mean() < 0.6
    inner = pair.mask
    assert np.corrcoef(pair.source[inner], pair.target[inner])[0, 1] > 0.6


def test_degrading_the_source_gives_its_native_voxels(pair):
    native = pair.source_transform.standardise(pair.native_source.data)
    assert pair.degrade(pair.source).shape == native.shape
    degraded = pair.degrade(pair.source)[pair.native_mask]
    assert np.corrcoef(degraded, native[pair.native_mask])[0, 1] > 0.9
    linear = ramp(pair.grid.shape, pair.grid.affine)
    expected = ramp(native.shape, pair.native_source.affine).data[3:-3, 3:-3, 3:-3]
    np.testing.assert_allclose(pair.degrade(linear.data)[3:-3, 3:-3, 3:-3], expected, atol=1e-3)


def test_the_nearest_baseline_repeats_native_voxels(pair):
    native = pair.source_transform.standardise(pair.native_source.data)
    np.testing.assert_array_equal(pair.nearest[::2, ::2, ::2], native)
    assert np.isin(pair.nearest, native).all()


def test_the_native_mask_ends_with_the_targets_field_of_view(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Volume(rng.uniform(50, 100, (20, 20, 20)).astype(np.float32), np.eye(4) * 1.0)
    cropped = np.eye(4)
    cropped[0, 3] = 8  # the target starts and ends amid the object
    target = Volume(rng.uniform(50, 100, (6, 20, 20)).astype(np.float32), cropped)
    for name, volume in (("s", coarse), ("t", target)):
        write_volume(tmp_path / f"{name}.nii", volume)
    config = PreprocessConfig(foreground_threshold=0.0)
    mask = prepare_pair(Specimen("a", tmp_path / "t.nii", tmp_path / "s.nii"), config).native_mask
    assert mask[8:14].mean() > 0.9
    assert not mask[:8].any()
    assert not mask[14:].any()


def files(tmp_path, source_affine, data=None):
    target = noise((16, 16, 16), affine=np.eye(4))
    write_volume(tmp_path / "t.nii.gz", target)
    write_volume(
        tmp_path / "s.nii.gz", Volume(target.data if data is None else data, source_affine)
    )
    return Specimen("a", tmp_path / "t.nii.gz", tmp_path / "s.nii.gz")


def test_volumes_that_do_not_overlap_are_refused(tmp_path, refused):
    affine = np.eye(4)
    affine[:3, 3] = 100
    specimen = files(tmp_path, affine)
    with refused("s.nii.gz", r"must overlap: it covers 0% .*t\.nii\.gz, at least 25%", "affines"):
        prepare_pair(specimen, PreprocessConfig())
    affine[:3, 3] = [8, 0, 0]
    half = prepare_pair(files(tmp_path, affine), PreprocessConfig())
    assert half.overlap == pytest.approx(0.5, abs=0.01)
    assert not half.mask[:8].any()
    with refused("s.nii.gz", "covers 50% .* at least 90% is needed", "affines"):
        prepare_pair(files(tmp_path, affine), PreprocessConfig(min_overlap=0.9))


def test_a_source_finer_than_the_target_is_taken_for_swapped(tmp_path, refused):
    prepare_pair(files(tmp_path, np.diag([0.91, 1, 1, 1])), PreprocessConfig())
    specimen = files(tmp_path, np.diag([0.9, 0.9, 1, 1]))
    with refused(
        "s.nii.gz",
        r"finer than the target: swapped\?.* 0\.81 mm3",
        "--preprocess.allow-finer-source",
    ):
        prepare_pair(specimen, PreprocessConfig())
    prepare_pair(specimen, PreprocessConfig(allow_finer_source=True))


def with_mask(tmp_path, data, affine=None):
    write_volume(
        tmp_path / "m.nii.gz",
        Volume(data.astype(np.float32), np.eye(4) if affine is None else affine),
    )
    return replace(files(tmp_path, np.eye(4)), mask=tmp_path / "m.nii.gz")


def test_a_mask_is_the_foreground_instead_of_the_threshold(tmp_path):
    data = np.zeros((16, 16, 16))
    data[4:9, 2:5] = -3
    data[4, 2, 2] = -2.999  # as resampling rounds
    data[0, 0, 0] = 1e-15
    nearly = np.eye(4)
    nearly[:3, 3] = 1e-3  # as headers round
    specimen = with_mask(tmp_path, data, nearly)
    # No voxel exceeds this threshold, which does not matter.
    config = PreprocessConfig(foreground_threshold=0.999)
    np.testing.assert_array_equal(prepare_pair(specimen, config).mask, data < -1)
    everywhere = prepare_pair(with_mask(tmp_path, np.ones((16, 16, 16))), config)
    assert everywhere.mask.all()


BALL = np.linalg.norm(np.indices((16, 16, 16)) - 7.5, axis=0) < 5
RIPPLES = np.where(BALL, 1.0, 0.0) + 0.08 * np.sin(np.indices((16, 16, 16)).sum(0))
NOISE = np.random.default_rng(0).uniform(-1, 1, BALL.shape)


@pytest.mark.parametrize(
    "data",
    [
        BALL + 1e-15 * NOISE,
        255 * BALL + 1e-3 * NOISE,
        np.where(BALL, 0.6 + 0.3 * NOISE**2, 0.4 * NOISE**2),
        np.clip(RIPPLES, 0, 1),
    ],
    ids=["noise", "bytes", "probability", "clipped ripples"],
)
def test_a_mask_is_binary_or_a_probability_taken_at_a_half(tmp_path, data):
    pair = prepare_pair(with_mask(tmp_path, data), PreprocessConfig())
    np.testing.assert_array_equal(pair.mask, BALL)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (RIPPLES, r"found \d+ values from -0\.08 to 1\.0\d+: -0\.08.* and \d+ more"),
        (BALL * (1.0 + (NOISE > 0)), "found 3 values from 0 to 2: 0, 1, 2"),
        (255 * np.clip(RIPPLES, 0, 1), r"found \d+ values from 0 to 255"),
    ],
    ids=["ripples", "labels", "probability in bytes"],
)
def test_values_of_another_kind_than_a_masks_are_refused(tmp_path, refused, data, found):
    with refused(tmp_path / "m.nii.gz", found, "nearest neighbour"):
        prepare_pair(with_mask(tmp_path, data), PreprocessConfig())


@pytest.mark.parametrize("size", [0.0, 1e-3], ids=["constant", "nearly"])
def test_a_source_that_is_constant_within_the_mask_is_refused(tmp_path, refused, size):
    specimen = with_mask(tmp_path, BALL)
    data = np.where(BALL, 400 + size * NOISE, 500 * (1 + NOISE))
    write_volume(specimen.source, Volume(data.astype(np.float32), np.eye(4)))
    with refused(specimen.source, "nearly constant within the mask", "affine, units and mask"):
        prepare_pair(specimen, PreprocessConfig())


def test_targets_are_resampled_to_a_spacing_on_request(tmp_path):
    specimen = with_mask(tmp_path, BALL)
    pair = prepare_pair(specimen, PreprocessConfig(target_spacing_mm=(2.0, 2.0, 2.0)))
    assert pair.grid.spacing_mm == pytest.approx((2, 2, 2))
    assert pair.source.shape == pair.target.shape == pair.mask.shape == (8, 8, 8)
    assert pair.mask.sum() * 8 == pytest.approx(BALL.sum(), rel=0.15)
    same = prepare_pair(specimen, PreprocessConfig(target_spacing_mm=(1.0, 1.0, 1.0)))
    np.testing.assert_array_equal(same.mask, BALL)


def test_a_mask_is_cut_to_the_sources_field_of_view(tmp_path):
    affine = np.eye(4)
    affine[0, 3] = 4
    specimen = with_mask(tmp_path, np.ones((16, 16, 16)))
    write_volume(specimen.source, Volume(read_volume(specimen.source).data, affine))
    pair = prepare_pair(specimen, PreprocessConfig())
    assert pair.overlap == pytest.approx(0.75)
    assert pair.mask[4:].all()
    assert not pair.mask[:4].any()


@pytest.mark.parametrize(
    ("data", "shift", "rule"),
    [
        (np.ones((16, 16, 15)), 0, r"target's shape \(16, 16, 16\), found \(16, 16, 15\)"),
        (np.ones((16, 16, 16)), 0.2, r"target's affine, its corners are up to 0\.2 mm away"),
        (np.zeros((16, 16, 16)), 0, "no voxel lies in the mask"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path, refused, data, shift, rule):
    affine = np.eye(4)
    affine[1, 3] = shift
    with refused("m.nii.gz", rule, "target's grid|Mark the specimen"):
        prepare_pair(with_mask(tmp_path, data, affine), PreprocessConfig())


def test_a_flipped_mask_is_refused(tmp_path, refused):
    flip = np.diag([-1.0, 1, 1, 1])
    with refused("m.nii.gz", "target's affine", "target's grid"):
        prepare_pair(with_mask(tmp_path, np.ones((16, 16, 16)), flip), PreprocessConfig())


def test_a_specimen_without_source_is_refused(tmp_path, refused):
    with refused("lonely", "has no source volume", "source column .* distsynth simulate"):
        prepare_pair(Specimen("lonely", tmp_path / "t.nii.gz"), PreprocessConfig())


def test_an_empty_foreground_is_refused(tmp_path, refused):
    data = np.zeros((16, 16, 16), np.float32)
    data[4:8] = np.random.default_rng(0).uniform(1, 2, (4, 16, 16))
    specimen = files(tmp_path, np.eye(4))
    write_volume(specimen.target, Volume(data, np.eye(4)))
    prepare_pair(specimen, PreprocessConfig(foreground_threshold=0.99))
    # Clipping at the 99.9 percentile leaves ones, so that only a threshold of one is too high.
    config = PreprocessConfig(foreground_threshold=0.99)
    object.__setattr__(config, "foreground_threshold", 1.0)
    with refused("t.nii.gz", "no voxel of the scaled target exceeds 1.0", "Lower --preprocess"):
        prepare_pair(specimen, config)


def test_fingerprints_know_a_scan_by_its_voxels_alone():
    volume = noise()
    again = Volume(volume.data.copy(), volume.affine.copy())
    assert fingerprint(volume) == fingerprint(again)
    assert fingerprint(volume) != fingerprint(noise(seed=1))
    assert fingerprint(volume) == fingerprint(Volume(volume.data, volume.affine * 2))


@pytest.mark.parametrize("top", [255, 4095, 32767])
def test_a_copy_in_integers_turned_or_flipped_does_not_escape(top):
    volume = phantom_volume((24, 20, 17), seed=3)
    scaled = volume.data / volume.data.max() * top
    copies = [np.rint(scaled).astype(np.int16), scaled[::-1], scaled.transpose(2, 0, 1)[:, ::-1]]
    for data in copies:
        copy = Volume(np.asarray(data, np.float32) - 12, volume.affine)
        assert fingerprint(copy) == fingerprint(volume)


def test_other_specimens_have_other_fingerprints():
    found = {fingerprint(phantom_volume((24, 20, 18), seed=seed)) for seed in range(40)}
    assert len(found) == 40


def test_a_real_pair_is_aligned_by_its_affines(real_pairs):
    pair = prepare_pair(read_cohort(real_pairs)[0], PreprocessConfig())
    assert pair.overlap > 0.5
    assert 0.05 < pair.mask.mean() < 0.95
    assert np.isfinite(pair.source).all()
    assert pair.degrade(pair.target).shape == pair.native_source.shape
