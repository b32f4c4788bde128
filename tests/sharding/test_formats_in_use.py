"""Every stage before training takes a cohort of DICOM folders, NRRD and MGH as it takes NIfTI."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dicom_scans import write_enhanced, write_slices
from pydicom import dcmread

from sharding.registration.carry_back import carry_back
from sharding.registration.config import PrepareConfig
from sharding.registration.prepare import prepare_cohort
from sharding.registration.specimen_steps import SpecimenSteps
from sharding.shards.cut import inputs_sha256
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_cohort
from sharding.volumes.cohort import read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import read_volume, write_volume

SHAPE = (24, 22, 20)


@pytest.fixture
def cohort(tmp_path):
    """A specimen as NIfTI, and the same as a DICOM target with an NRRD source."""
    phantom = phantom_volume(SHAPE, 3)
    stored = np.rint(phantom.data / phantom.data.max() * 4000).astype(np.uint16)
    target = phantom.with_data(stored)
    source = target.with_data(target.data * 0.5 + 3)
    write_volume(tmp_path / "a_t.nii.gz", target)
    write_volume(tmp_path / "a_s.nii.gz", source)
    write_slices(tmp_path / "b_t", stored, target.affine)
    write_volume(tmp_path / "b_s.nrrd", source)
    mask = target.with_data(stored > 400)
    write_volume(tmp_path / "a_m.nii.gz", mask)
    write_volume(tmp_path / "b_m.mgz", mask)
    path = tmp_path / "cohort.csv"
    path.write_text(
        "specimen,source,target,mask\na,a_s.nii.gz,a_t.nii.gz,a_m.nii.gz\nb,b_s.nrrd,b_t,b_m.mgz\n"
    )
    return read_cohort(path)


def test_a_pair_is_the_same_in_any_format(cohort):
    config = PreprocessConfig(allow_finer_source=True)
    first, second = (prepare_pair(specimen, config) for specimen in cohort)
    np.testing.assert_allclose(first.source, second.source, atol=1e-3)
    np.testing.assert_allclose(first.target, second.target, atol=1e-6)
    np.testing.assert_array_equal(first.mask, second.mask)


def test_every_slice_counts_in_the_checksums(cohort):
    specimen = cohort[1]
    before = inputs_sha256(specimen), SpecimenSteps(specimen, PrepareConfig()).raw_sha256
    path = sorted(specimen.target.iterdir())[7]
    image = dcmread(path)
    image.PixelData = bytes(len(image.PixelData))
    image.save_as(path)
    after = inputs_sha256(specimen), SpecimenSteps(specimen, PrepareConfig()).raw_sha256
    assert after[0] != before[0]
    assert after[1]["target"] != before[1]["target"]
    assert after[1]["source"] == before[1]["source"]


def test_ome_zarr_goes_through_preparing_as_nifti_does(cohort, tmp_path):
    first = cohort[0]
    held = {role: tmp_path / f"c_{role}.ome.zarr" for role in ("source", "target", "mask")}
    for role, path in held.items():
        write_volume(path, read_volume(getattr(first, role), constant=True))
    specimen = replace(first, **held)
    config = PreprocessConfig(allow_finer_source=True)
    ours, theirs = prepare_pair(specimen, config), prepare_pair(first, config)
    np.testing.assert_array_equal(ours.source, theirs.source)
    np.testing.assert_array_equal(ours.target, theirs.target)
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    before = inputs_sha256(specimen), SpecimenSteps(specimen, PrepareConfig()).raw_sha256
    write_volume(held["source"], read_volume(held["target"]))
    after = inputs_sha256(specimen), SpecimenSteps(specimen, PrepareConfig()).raw_sha256
    assert after[0] != before[0]
    assert [role for role in after[1] if after[1][role] != before[1][role]] == ["source"]
    write_volume(held["source"], read_volume(first.source))
    steps = PrepareConfig(steps=("scale", "resample"), preprocess=config)
    assert not prepare_cohort([specimen], tmp_path / "out", steps, workers=1).failures
    out = tmp_path / "back.ome.zarr"
    carry_back(tmp_path / "out" / first.name, held["target"], out, like=held["source"])
    np.testing.assert_allclose(read_volume(out).data, read_volume(first.target).data, atol=1)


def test_sources_are_simulated_from_dicom_targets(cohort, tmp_path):
    targets = [replace(row, source=None, mask=None) for row in cohort]
    simulate_cohort(targets, tmp_path / "out", SimulationConfig(noise=0))
    made = [read_volume(row.source) for row in read_cohort(tmp_path / "out")]
    np.testing.assert_allclose(made[0].data, made[1].data, rtol=0.05, atol=80)
    np.testing.assert_allclose(made[0].affine, made[1].affine, atol=1e-5)


def test_a_dicom_pair_is_prepared_and_carried_back_as_a_series(cohort, tmp_path):
    specimen = cohort[1]
    enhanced = tmp_path / "enhanced" / "IM1"
    source = read_volume(specimen.source)
    write_enhanced(enhanced, np.rint(source.data).astype(np.uint16), source.affine)
    raw = replace(specimen, source=enhanced.parent)
    config = PrepareConfig(
        steps=("scale", "resample"), preprocess=PreprocessConfig(allow_finer_source=True)
    )
    assert not prepare_cohort([raw], tmp_path / "out", config, workers=1).failures
    carry_back(tmp_path / "out" / "b", specimen.target, tmp_path / "back", like=enhanced.parent)
    back, expected = read_volume(tmp_path / "back"), read_volume(specimen.target)
    assert back.shape == SHAPE
    np.testing.assert_allclose(back.affine, expected.affine, atol=1e-4)
    np.testing.assert_allclose(back.data, expected.data, atol=1)
