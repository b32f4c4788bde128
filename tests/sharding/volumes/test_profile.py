"""What a profile measures, and that it stays the same where the scan stays the same."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from cheap_preparation import CHEAP
from scipy import ndimage

from sharding.registration.prepare import prepare_cohort
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes import profile
from sharding.volumes.cohort import read_cohort
from sharding.volumes.pair import source_of
from sharding.volumes.profile import DEPTHS, TrainingProfile, known_steps, profile_scan
from sharding.volumes.volume import Volume


def scan(seed=1, noise=0.0, shape=(64, 60, 56)):
    """The simulated source of a phantom: 0.4 mm."""
    target = phantom_volume(shape, seed)
    return simulate_source(target, SimulationConfig(noise=noise), f"scan-{seed}")[0]


def tissue(volume):
    """Of a scan whose intensities are those of the simulation, from 0 to 1."""
    return volume.data > 0.2 * np.median(volume.data[volume.data > 0.1])


def exchanged(volume):
    """Bright tissue is dark and dark tissue bright; the background stays as it is."""
    inside = tissue(volume)
    low, high = volume.data[inside].min(), volume.data[inside].max()
    return volume.with_data(np.where(inside, high + low - volume.data, volume.data))


@pytest.mark.parametrize("orientation", ["LPS", "SAL", "IRP"])
def test_another_orientation_of_the_array_changes_nothing_but_its_name(orientation):
    volume = replace(scan(), affine=np.diag([0.4, 0.5, 0.6, 1.0]))
    expected = profile_scan(volume)
    found = profile_scan(volume.reoriented(orientation))
    assert (expected.orientation, found.orientation) == ("RAS", orientation)
    assert expected.spacing_mm == (0.4, 0.5, 0.6)
    assert replace(found, orientation="RAS") == expected


def test_other_units_of_intensity_change_the_intensities_alone():
    volume = scan(noise=0.02)
    expected = asdict(profile_scan(volume))
    found = asdict(profile_scan(volume.with_data(volume.data * 700 + 50)))
    np.testing.assert_allclose(
        found.pop("intensities"), np.array(expected.pop("intensities")) * 700 + 50, rtol=1e-2
    )
    for name, value in expected.items():
        assert found[name] == value or found[name] == pytest.approx(value, rel=2e-2, abs=2e-3), name


def test_exchanging_bright_and_dark_turns_the_contrast():
    volume = scan()
    one, other = profile_scan(volume), profile_scan(exchanged(volume))
    assert len(one.contrast) == DEPTHS
    assert np.corrcoef(one.contrast, other.contrast)[0, 1] < -0.8
    same = profile_scan(scan(seed=2))
    assert np.corrcoef(one.contrast, same.contrast)[0, 1] > 0.8


def test_the_noise_that_was_added_is_found():
    blurred = ndimage.gaussian_filter(phantom_volume((80, 76, 72), 3).data, 2.0)
    rng = np.random.default_rng(0)
    sigma = 25.0
    real, imaginary = rng.normal(0, sigma, (2, *blurred.shape)).astype(np.float32)
    noisy = np.hypot(blurred + real, imaginary)
    affine = np.diag([0.2, 0.2, 0.2, 1.0])
    plain, found = (profile_scan(Volume(data, affine)) for data in (blurred, noisy))
    median = float(np.median(noisy[blurred > 150]))
    assert found.noise == pytest.approx(sigma / median, rel=0.15)
    assert plain.noise < 0.1 * found.noise


def test_background_changes_the_share_of_tissue_and_not_its_extent():
    volume = scan(noise=0.02)
    wide = replace(volume, data=np.pad(volume.data, 16))
    one, other = profile_scan(volume), profile_scan(wide)
    np.testing.assert_allclose(other.tissue_mm, one.tissue_mm, rtol=0.15)
    voxels = volume.data.size / wide.data.size
    assert other.tissue_share == pytest.approx(one.tissue_share * voxels, rel=0.1)
    assert other.field_of_view_mm[0] == pytest.approx(64 * 0.4)


def test_a_volume_of_many_planes_is_measured_by_some_of_them(monkeypatch):
    volume = scan(noise=0.02)
    expected = profile_scan(volume)
    monkeypatch.setattr(profile, "MOST_VOXELS", volume.data.size // 2)
    found = profile_scan(volume)
    assert (found.shape, found.spacing_mm) == (expected.shape, expected.spacing_mm)
    np.testing.assert_allclose(found.tissue_mm, expected.tissue_mm, atol=0.8)
    assert found.noise == pytest.approx(expected.noise, rel=0.15)
    assert np.corrcoef(found.contrast, expected.contrast)[0, 1] > 0.95


@pytest.mark.parametrize(("rest", "one"), [(5, 9), (9, 5)])
def test_a_scan_of_equal_voxels_but_one_has_a_profile_without_contrast(rest, one):
    volume = scan()
    data = np.full_like(volume.data, rest)
    data[4, 4, 4] = one
    assert max(profile_scan(volume.with_data(data)).contrast) <= 0


def test_tissue_that_fills_the_scan_can_be_measured():
    rng = np.random.default_rng(0)
    found = profile_scan(Volume(rng.uniform(900, 1000, (9, 9, 9)).astype(np.float32), np.eye(4)))
    assert 0 < found.tissue_share <= 1
    assert np.isfinite([*found.contrast, found.noise, found.skewness]).all()


def test_a_cohort_is_summarised_by_ranges():
    scans = [profile_scan(scan(seed)) for seed in (1, 2, 3)]
    scans[1] = replace(scans[1], orientation="LPS", steps=("correct",))
    found = TrainingProfile.of(scans)
    assert found is not None
    assert found.scans == 3
    assert found.orientations == ("LPS", "RAS")
    assert found.steps == ()
    shares = sorted(each.tissue_share for each in scans)
    share = found.tissue_share
    assert [share.low, share.median, share.high] == pytest.approx(shares)
    assert found.contrast[-1].high == max(each.contrast[-1] for each in scans)
    assert TrainingProfile.of([]) is None


@pytest.mark.slow
def test_the_steps_of_a_prepared_scan_are_known(phantom_cohort, tmp_path):
    raw = read_cohort(phantom_cohort)[:1]
    assert known_steps(source_of(raw[0])) == ()
    for steps in (("correct", "scale", "resample"), ("scale",)):
        out = tmp_path / str(len(steps))
        prepare_cohort(raw, out, replace(CHEAP, steps=steps), workers=1)
        (done,) = read_cohort(out)
        path = done.native_source or source_of(done)
        assert known_steps(path) == tuple(step for step in steps if step != "resample")
    for text in ("[]", "{", '{"order": 3}', "[" * 100_000):
        (path.parent / "step.json").write_text(text)
        assert known_steps(path) == ()
