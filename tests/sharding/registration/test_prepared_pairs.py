"""What a prepared cohort keeps of the raw source: its intensities, its grid, its orientation."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from cheap_preparation import CHEAP

from sharding.registration.bias_correction import correct_bias, tissue_within
from sharding.registration.carry_back import carry_back
from sharding.registration.prepare import prepare_cohort
from sharding.registration.step_work import carried_by_headers
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.header import codes_of
from sharding.volumes.pair import place_source, prepare_pair
from sharding.volumes.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.slow

PLAIN = replace(CHEAP, steps=("scale", "resample"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A specimen whose target shows a part of what its source shows."""
    folder = tmp_path_factory.mktemp("raw")
    whole = phantom_volume((48, 44, 40), seed=4)
    source, _ = simulate_source(whole, SimulationConfig(noise=0.01), "a")
    affine = whole.affine.copy()
    affine[:3, 3] = whole.affine[:3, :3] @ (8, 6, 4)
    target = Volume(np.ascontiguousarray(whole.data[8:36, 6:36, 4:34]), affine)
    write_volume(folder / "s.nii.gz", source)
    write_volume(folder / "t.nii.gz", target)
    return Specimen("a", folder / "t.nii.gz", folder / "s.nii.gz")


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    assert not prepare_cohort([raw], out, PLAIN, workers=1).failures
    return read_cohort(out)[0]


def test_training_sees_the_intensities_that_prediction_makes_of_the_raw_scan(raw, prepared):
    config = PreprocessConfig()
    pair = prepare_pair(prepared, config)
    seen = place_source(read_volume(raw.source), pair.grid.shape, pair.grid.affine, config)
    predicted_from = seen.transform.standardise_scaled(seen.scaled)
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(pair.source[inner], predicted_from[inner], atol=0.02)
    assert pair.source_transform.mean == pytest.approx(seen.transform.mean, abs=1e-3)
    assert pair.source_transform.std == pytest.approx(seen.transform.std, abs=1e-3)


def test_the_baselines_and_the_consistency_are_those_of_the_raw_pair(raw, prepared):
    ours, theirs = (prepare_pair(row, PreprocessConfig()) for row in (prepared, raw))
    assert ours.native_source.shape == theirs.native_source.shape
    np.testing.assert_allclose(ours.nearest, theirs.nearest, atol=0.02)
    assert np.abs(ours.nearest - ours.source).max() > 0.1, "identity is not cubic"
    errors = []
    for pair in (ours, theirs):
        native = pair.source_transform.standardise(pair.native_source.data)
        apart = (pair.degrade(pair.target) - native)[pair.native_mask]
        errors.append(float(np.abs(apart).mean()))
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_a_moved_source_is_degraded_through_its_registration(tmp_path):
    whole = phantom_volume((48, 44, 40), seed=4)
    moved = SimulationConfig(noise=0.01, shift_mm=1.0, seed=2)
    source, _ = simulate_source(whole, moved, "a")
    write_volume(tmp_path / "s.nii.gz", source)
    write_volume(tmp_path / "t.nii.gz", whole)
    specimen = Specimen("a", tmp_path / "t.nii.gz", tmp_path / "s.nii.gz")
    config = replace(CHEAP, steps=("scale", "rigid", "resample"))
    done = prepare_cohort([specimen], tmp_path / "out", config, workers=1)
    assert done.rows[0].kept == ("rigid",)
    row = read_cohort(tmp_path / "out")[0]
    assert row.transform is not None
    pair = prepare_pair(row, PreprocessConfig())
    native = pair.source_transform.standardise(pair.native_source.data)
    inside = pair.native_mask
    through = np.corrcoef(pair.degrade(pair.target)[inside], native[inside])[0, 1]
    by_headers = np.corrcoef(
        replace(pair, registration=None).degrade(pair.target)[inside], native[inside]
    )[0, 1]
    assert through > 0.9
    assert through > by_headers + 0.05


def stripped(path):
    image = nib.load(path)
    image.set_qform(image.affine, 0)
    image.set_sform(image.affine, 0)
    nib.save(image, path)


def test_a_pair_without_orientation_is_prepared_on_request_and_its_codes_are_kept(tmp_path, raw):
    files = {}
    for role in ("source", "target"):
        files[role] = tmp_path / f"{role}.nii.gz"
        write_volume(files[role], read_volume(getattr(raw, role)))
    stripped(files["source"])
    specimen = Specimen("a", files["target"], files["source"])
    refused = prepare_cohort([specimen], tmp_path / "refused", PLAIN, workers=1)
    assert "no orientation" in refused.failures["a"]
    config = replace(PLAIN, preprocess=PreprocessConfig(orientation="array"))
    assert not prepare_cohort([specimen], tmp_path / "out", config, workers=1).failures
    out = tmp_path / "out" / "a"
    assert codes_of(nib.load(out / "scale" / "source.nii.gz").header) == (0, 0)
    assert codes_of(nib.load(out / "resample" / "source.nii.gz").header) == (0, 2)
    carry_back(out, files["target"], tmp_path / "back.nii.gz")
    assert codes_of(nib.load(tmp_path / "back.nii.gz").header) == (0, 0)


def test_carrying_back_to_a_grid_far_away_is_refused(tmp_path, raw, prepared, refused):
    folder = prepared.native_source.parent.parent
    target = read_volume(raw.target)
    far = target.affine.copy()
    far[0, 3] += 500
    write_volume(tmp_path / "far.nii.gz", Volume(target.data, far))
    with refused(tmp_path / "far.nii.gz", "must overlap: the source covers 0%", "affines"):
        carry_back(folder, raw.target, tmp_path / "back.nii.gz", like=tmp_path / "far.nii.gz")
    assert not (tmp_path / "back.nii.gz").exists()
    carry_back(folder, raw.target, tmp_path / "back.nii.gz", like=raw.source)
    assert (tmp_path / "back.nii.gz").exists()


@pytest.mark.parametrize("steps", [("scale", "rigid", "resample"), ("affine", "resample")])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mirrored_pair_is_flagged_whatever_the_first_registration_step(
    steps, mirrored, raw, tmp_path
):
    source = read_volume(raw.source)
    data = source.data[::-1] if mirrored else source.data
    write_volume(tmp_path / "s.nii.gz", source.with_data(np.ascontiguousarray(data)))
    specimen = replace(raw, source=tmp_path / "s.nii.gz")
    done = prepare_cohort([specimen], tmp_path / "out", replace(CHEAP, steps=steps), workers=1)
    assert not done.failures
    flagged = "fits better when it is mirrored left to right" in "; ".join(done.flags.get("a", []))
    assert flagged == mirrored
    assert (done.rows[0].mirrored_gain > 0) == mirrored


def test_the_bias_of_the_source_is_fitted_within_the_mask(raw, tmp_path):
    target, source = read_volume(raw.target), read_volume(raw.source)
    inside = target.data > 0.2 * target.data.max()
    write_volume(tmp_path / "mask.nii.gz", target.with_data(inside))
    config = replace(CHEAP, steps=("correct",))
    done = prepare_cohort(
        [replace(raw, mask=tmp_path / "mask.nii.gz")], tmp_path / "out", config, workers=1
    )
    written = read_volume(done.specimens[0].source)
    region = carried_by_headers(inside, target, source)
    mask = tissue_within(source, config.correct, region)
    assert mask is not None
    expected, _ = correct_bias(source, config.correct, mask)
    np.testing.assert_array_equal(written.data, expected.data)
    without, _ = correct_bias(source, config.correct)
    assert not np.allclose(written.data, without.data, rtol=1e-4)
