"""Pairs: source and target on one grid, masks, what is refused, fingerprints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_volumes import noise, ramp

from sharding.simulation.phantom import phantom_volume
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.intensities import fingerprint
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import Volume, read_volume, write_volume

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


@pytest.mark.slow
def test_a_real_pair_is_aligned_by_its_affines(real_pairs):
    pair = prepare_pair(read_cohort(real_pairs)[0], PreprocessConfig())
    assert pair.overlap > 0.5
    assert 0.05 < pair.mask.mean() < 0.95
    assert np.isfinite(pair.source).all()
    assert pair.degrade(pair.target).shape == pair.native_source.shape
