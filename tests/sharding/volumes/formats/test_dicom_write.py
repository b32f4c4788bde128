"""A derived DICOM series: where the source lies, marked, and without the source's patient."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_scans import PLANTED, PLANTED_DATE, PLANTED_UID, write_enhanced, write_slices
from pydicom import dcmread
from scipy.spatial.transform import Rotation

from sharding.volumes.output import Output
from sharding.volumes.volume import Volume, read_volume

SHAPE = (8, 7, 6)
DATA = np.random.default_rng(0).integers(0, 2000, SHAPE).astype(np.uint16)
AFFINE = np.eye(4)
AFFINE[:3] = np.c_[
    Rotation.from_euler("xyz", [21, -13, 34], degrees=True).as_matrix() @ np.diag([0.4, 0.55, 1.7]),
    [-31.5, 12.25, 7.5],
]


@pytest.fixture
def source(tmp_path):
    write_slices(tmp_path / "scan", DATA, AFFINE)
    return tmp_path / "scan"


def derived(source, out, scale=0.37, **options):
    volume = read_volume(source)
    made = volume.with_data(volume.data * scale - 100)
    Output(out, source, **options).write(made)
    return made


def test_a_derived_series_lies_where_its_source_does(tmp_path, source):
    made = derived(source, tmp_path / "out")
    again = read_volume(tmp_path / "out")
    step = np.ptp(made.data) / 65535
    np.testing.assert_allclose(again.data, made.data, atol=0.6 * step)
    np.testing.assert_allclose(again.affine, made.affine, atol=1e-6)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    image = reader.Execute()
    lps = np.diag([-1.0, -1, 1, 1]) @ made.affine
    np.testing.assert_allclose(image.GetOrigin(), lps[:3, 3], atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), made.spacing_mm, atol=1e-6)
    np.testing.assert_allclose(
        np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), lps[:3, :3], atol=1e-6
    )


def test_it_is_marked_and_has_uids_of_its_own(tmp_path, source):
    derived(source, tmp_path / "out")
    images = [dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    assert len(images) == SHAPE[2]
    first = images[0]
    assert first.ImageType[0] == "DERIVED"
    assert "SYNTHETIC" in first.ImageType
    assert first.ContentQualification == "RESEARCH"
    for field in ("SeriesDescription", "ImageComments", "DerivationDescription"):
        assert "SYNTHETIC, research only" in first[field].value
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    for field in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({image[field].value for image in images}) == 1
        assert first[field].value.startswith("2.25.")
        assert len(first[field].value) <= 64
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    derived(source, tmp_path / "again")
    derived(source, tmp_path / "other", scale=0.5)
    same, other = (dcmread(tmp_path / name / "slice-0001.dcm") for name in ("again", "other"))
    assert same.SeriesInstanceUID == first.SeriesInstanceUID
    assert other.SeriesInstanceUID != first.SeriesInstanceUID
    assert other.StudyInstanceUID == first.StudyInstanceUID
    assert other.FrameOfReferenceUID == first.FrameOfReferenceUID


def test_no_field_of_the_source_is_copied(tmp_path, source):
    enhanced = write_enhanced(tmp_path / "enhanced" / "IM1", DATA, AFFINE).parent
    for number, scan in enumerate((source, enhanced)):
        assert all(PLANTED.encode() in path.read_bytes() for path in scan.iterdir())
        derived(scan, tmp_path / f"out{number}", kind="corrected")
        for path in (tmp_path / f"out{number}").iterdir():
            for text in (PLANTED, PLANTED_DATE, PLANTED_UID, "093Y"):
                assert text.encode() not in path.read_bytes()
    assert "SYNTHETIC" not in dcmread(tmp_path / "out0" / "slice-0001.dcm").ImageType


def test_patient_and_study_are_copied_on_request_and_nothing_else(tmp_path, source):
    derived(source, tmp_path / "out", keep_patient=True)
    made = dcmread(tmp_path / "out" / "slice-0001.dcm")
    theirs = dcmread(next(source.iterdir()))
    for field in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyID"):
        assert made[field].value == theirs[field].value
    assert made.FrameOfReferenceUID == theirs.FrameOfReferenceUID
    assert made.SeriesInstanceUID != theirs.SeriesInstanceUID
    assert made.PatientIdentityRemoved == "NO"
    for field in ("PatientAddress", "InstitutionName", "OperatorsName", "PatientComments"):
        assert field not in made
    assert PLANTED not in str(made.SeriesDescription) + str(made.ImageComments)


def test_where_no_series_came_in_none_goes_out(tmp_path, source, refused):
    made = derived(source, tmp_path / "scan.nii.gz")
    with refused("out", "or be a folder where the source is a DICOM series", "Rename"):
        Output(tmp_path / "out", tmp_path / "scan.nii.gz").check()
    with refused("out.nii.gz", "only a DICOM series holds a patient", "Give a folder"):
        Output(tmp_path / "out.nii.gz", source, keep_patient=True).check()
    with refused(source, "the source lies in this folder", "another"):
        Output(source, source, overwrite=True).check()
    derived(source, tmp_path / "out")
    with refused("out", "exists already", "overwrite"):
        Output(tmp_path / "out", source).check()
    Output(tmp_path / "out", source, overwrite=True).write(made)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "precious").touch()
    with refused("own", "another program wrote it", "another folder"):
        Output(tmp_path / "own", source, overwrite=True).write(made)
    sheared = AFFINE.copy()
    sheared[:3, 2] += 0.1
    with refused("new", "right angles, these are sheared", "nii.gz"):
        Output(tmp_path / "new", source).write(Volume(made.data, sheared))
