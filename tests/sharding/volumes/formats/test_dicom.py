"""DICOM series give what NIfTI gives of the same scan, or are refused with what was found."""

from __future__ import annotations

import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_scans import PLANTED, write_enhanced, write_slices
from nibabel.affines import apply_affine
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from sharding.io.errors import DataError
from sharding.volumes.formats.registry import files_of
from sharding.volumes.volume import read_volume

SHAPE = (8, 7, 6)
DATA = np.random.default_rng(0).integers(0, 2000, SHAPE).astype(np.uint16)
TURN = Rotation.from_euler("xyz", [21, -13, 34], degrees=True).as_matrix()


def affine_of(axes, spacing, origin):
    affine = np.eye(4)
    affine[:3] = np.c_[axes @ np.diag(spacing), origin]
    return affine


AFFINES = {
    "axial": affine_of(np.diag([-1.0, -1, 1]), [0.4, 0.5, 2], [40, 30, -10]),
    "oblique": affine_of(TURN, [0.4, 0.55, 1.7], [-31.5, 12.25, 7.5]),
    "sagittal": affine_of(TURN[:, [1, 2, 0]], [0.4, 0.5, 1.3], [3, -70, 9]),
    "left-handed": affine_of(TURN * [-1, 1, 1], [0.4, 0.55, 1.7], [50, 12.25, -7.5]),
}
OBLIQUE = AFFINES["oblique"]


def same_places(volume, data, affine):
    """Check every voxel by its place in the world; the order of slices may be another."""
    index = np.argwhere(np.ones(data.shape))
    found = apply_affine(np.linalg.inv(volume.affine) @ affine, index)
    np.testing.assert_allclose(found, np.rint(found), atol=1e-4)
    values = volume.data[tuple(np.rint(found).astype(int).T)]
    np.testing.assert_allclose(values, data.ravel(), rtol=1e-6)
    assert volume.data.size == data.size


@pytest.mark.parametrize("kind", AFFINES)
@pytest.mark.parametrize("multi_frame", [False, True])
def test_a_series_places_every_voxel_where_nifti_does(tmp_path, kind, multi_frame):
    affine = AFFINES[kind]
    nib.save(nib.Nifti1Image(DATA, affine), tmp_path / "same.nii.gz")
    expected = read_volume(tmp_path / "same.nii.gz")
    if multi_frame:
        path = write_enhanced(tmp_path / "scan" / "IM1", DATA, affine).parent
    else:
        path = tmp_path / "scan"
        write_slices(path, DATA, affine)
    volume = read_volume(path)
    same_places(volume, expected.data, expected.affine)
    assert volume.spacing_mm == pytest.approx(expected.spacing_mm, rel=1e-5)
    assert volume.has_orientation
    if not multi_frame:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        image = reader.Execute()
        theirs = np.eye(4)
        theirs[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        theirs[:3, 3] = image.GetOrigin()
        same_places(volume, sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ theirs)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_transfer_syntax_gives_the_same_voxels(tmp_path, syntax):
    signed = DATA.astype(np.int16) - 1000
    write_slices(tmp_path / "scan", signed, OBLIQUE, syntax=syntax)
    same_places(read_volume(tmp_path / "scan"), signed, OBLIQUE)


# GDCM does not read the smallest images.
LARGER = np.tile(DATA, (4, 4, 1))


def test_a_compressed_series_is_rescaled_once(tmp_path):
    signed = LARGER.astype(np.int16) - 1000
    slopes = [0.5, 1, 2, 0.25, 3, 1.5]
    write_slices(tmp_path / "scan", signed, OBLIQUE, syntax=RLELossless, slopes=slopes)
    same_places(read_volume(tmp_path / "scan"), signed * np.array(slopes) + 5, OBLIQUE)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_what_archives_compress_by_is_read(tmp_path, compressor):
    for number, file in enumerate(write_slices(tmp_path / "scan", LARGER, OBLIQUE)):
        packed = tmp_path / "packed.dcm"
        values = sitk.GetImageFromArray(LARGER[None, :, :, number].transpose(0, 2, 1))
        sitk.WriteImage(values, packed, True, imageIO="GDCMImageIO", compressor=compressor)
        theirs, image = dcmread(packed), dcmread(file)
        assert theirs.file_meta.TransferSyntaxUID.is_compressed
        image.file_meta.TransferSyntaxUID = theirs.file_meta.TransferSyntaxUID
        image["PixelData"] = theirs["PixelData"]
        image.BitsAllocated, image.BitsStored = theirs.BitsAllocated, theirs.BitsStored
        image.HighBit = theirs.HighBit
        image.save_as(file)
    same_places(read_volume(tmp_path / "scan"), LARGER, OBLIQUE)


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path):
    slopes = [0.5, 1, 2, 0.25, 3, 1.5]
    write_slices(tmp_path / "scan", DATA, OBLIQUE, slopes=slopes)
    same_places(read_volume(tmp_path / "scan"), DATA * np.array(slopes) + 5, OBLIQUE)
    path = write_enhanced(tmp_path / "enhanced.dcm", DATA, OBLIQUE, slope=0.125)
    same_places(read_volume(path), DATA * 0.125, OBLIQUE)


def test_bits_above_those_that_are_stored_are_no_part_of_a_voxel(tmp_path):
    files = write_slices(tmp_path / "scan", DATA, OBLIQUE)
    image = dcmread(files[0])
    overlaid = np.frombuffer(image.PixelData, "<u2") | 0x8000
    image.PixelData = overlaid.tobytes()
    image.save_as(files[0])
    same_places(read_volume(tmp_path / "scan"), DATA, OBLIQUE)


def test_several_series_are_listed_and_one_file_chooses(tmp_path, refused):
    first = write_slices(tmp_path / "scan", DATA, OBLIQUE)
    second = write_slices(tmp_path / "scan", DATA[:, :, :4] + 7, AFFINES["axial"], series=2)
    rule = (
        r"2 DICOM series:\n  series 1, MR: 6 slices axial of 8x7, 0.4 x 0.55 mm, e.g. IM0000-1\n"
        r"  series 2, MR: 4 slices axial of 8x7, 0.4 x 0.5 mm, e.g. IM000"
    )
    with refused(tmp_path / "scan", rule, "one file of the series that is meant"):
        read_volume(tmp_path / "scan")
    same_places(read_volume(first[2]), DATA, OBLIQUE)
    same_places(read_volume(second[0]), DATA[:, :, :4] + 7, AFFINES["axial"])
    assert files_of(second[0]) == sorted(second)


def test_missing_slices_are_counted_with_their_neighbours(tmp_path, refused):
    files = write_slices(tmp_path / "scan", DATA, OBLIQUE)
    files[2].unlink()
    neighbours = f"{files[1].name} to {files[3].name}"
    rule = rf"1 slices are missing.*1.700 mm apart, but\n  3.400 mm from {neighbours}"
    with refused(tmp_path / "scan", rule, "whole series"):
        read_volume(tmp_path / "scan")


def moved(path, millimetres):
    image = dcmread(path)
    image.ImagePositionPatient = [
        float(value) + shift
        for value, shift in zip(image.ImagePositionPatient, millimetres, strict=True)
    ]
    image.save_as(path)


def test_uneven_spacing_is_refused_with_the_distances(tmp_path, refused):
    files = write_slices(tmp_path / "scan", DATA, AFFINES["axial"])
    moved(files[3], (0, 0, 0.4))
    rule = rf"equally far apart, most are 2.000 mm apart, but\n  2.400 mm from {files[2].name}"
    with refused(tmp_path / "scan", rule, "Resample"):
        read_volume(tmp_path / "scan")


def test_spacing_that_grows_little_by_little_is_refused(tmp_path, refused):
    files = write_slices(tmp_path / "scan", DATA, AFFINES["axial"])
    for number, file in enumerate(files):
        moved(file, (0, 0, 0.02 * number**2))
    with refused(tmp_path / "scan", "equally far apart", "Resample"):
        read_volume(tmp_path / "scan")


def test_two_orientations_are_listed(tmp_path, refused):
    write_slices(tmp_path / "scan", DATA, AFFINES["axial"])
    names = [f"L{number}" for number in range(6)]
    write_slices(tmp_path / "scan", DATA, AFFINES["sagittal"], names=names)
    # Of the same voxel size in the slice, so that the orientation is what differs.
    with refused(
        tmp_path / "scan", r"2 orientations:\n  6 slices axial .*\n  6 slices sagittal", "."
    ):
        read_volume(tmp_path / "scan")


def test_echoes_at_one_place_are_refused(tmp_path, refused):
    write_slices(tmp_path / "scan", DATA, OBLIQUE)
    for path in write_slices(
        tmp_path / "scan", DATA, OBLIQUE, names=[f"E{number}" for number in range(6)]
    ):
        image = dcmread(path)
        image.EchoTime = 80
        image.save_as(path)
    rule = r"several in 6 cases \(echo time 20 ms; echo time 80 ms\)"
    with refused(tmp_path / "scan", rule.replace(" ms", ".* ms"), "one echo"):
        read_volume(tmp_path / "scan")


def test_a_tilted_gantry_is_refused(tmp_path, refused):
    files = write_slices(tmp_path / "scan", DATA, AFFINES["axial"])
    for number, file in enumerate(files):
        moved(file, (0, 0.3 * number, 0))
    with refused(tmp_path / "scan", "shifted by 0.300 mm", "right angles"):
        read_volume(tmp_path / "scan")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("ImageOrientationPatient", None, "does not say where the slice lies"),
        ("ImagePositionPatient", None, "does not say where the slice lies"),
        ("PixelSpacing", None, "does not say where the slice lies"),
        ("Rows", 9, "found 2 sizes:\n  . slices of 8x., e.g"),
        ("PixelSpacing", [0.3, 0.3], "found 2 voxel sizes"),
        ("SamplesPerPixel", 3, "found colours"),
        ("PhotometricInterpretation", "MONOCHROME1", "must be MONOCHROME2"),
        ("NumberOfFrames", 5, "holds 5 frames"),
        ("BitsAllocated", 12, "voxels of 12 bits in 12"),
    ],
)
def test_fields_that_would_be_misread_are_refused(tmp_path, refused, field, value, rule):
    files = write_slices(tmp_path / "scan", DATA, OBLIQUE)
    image = dcmread(files[1])
    if value is None:
        delattr(image, field)
    else:
        setattr(image, field, value)
    image.save_as(files[1])
    with refused(tmp_path / "scan", rule, "."):
        read_volume(tmp_path / "scan")


def test_a_folder_without_images_is_refused(tmp_path, refused):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no scan")
    with refused(tmp_path / "text", "holds no DICOM images", "Check the path"):
        read_volume(tmp_path / "text")
    write_slices(tmp_path / "patient" / "scan", DATA, OBLIQUE)
    with refused(tmp_path / "patient", "holds no DICOM images", "folder of one series"):
        read_volume(tmp_path / "patient")


def test_other_files_of_the_folder_are_named(tmp_path, caplog):
    write_slices(tmp_path / "scan", DATA, OBLIQUE)
    for name in ("DICOMDIR", ".hidden", "notes.txt"):
        (tmp_path / "scan" / name).write_text("no scan")
    same_places(read_volume(tmp_path / "scan"), DATA, OBLIQUE)
    assert re.findall(r"1 files hold no DICOM image: notes.txt", caplog.text)


@pytest.mark.parametrize("kind", ["slices", "enhanced", "compressed"])
@pytest.mark.parametrize("keep", [0.3, 0.8, 0.99])
def test_files_cut_short_are_refused(tmp_path, kind, keep):
    if kind == "enhanced":
        file = write_enhanced(tmp_path / "scan" / "IM1", DATA, OBLIQUE)
    else:
        syntax = RLELossless if kind == "compressed" else ExplicitVRLittleEndian
        file = write_slices(tmp_path / "scan", DATA, OBLIQUE, syntax=syntax)[1]
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="again"):
        read_volume(tmp_path / "scan")


def test_voxels_beyond_the_file_are_refused_before_memory_is_taken(tmp_path, refused):
    for syntax, rule in (
        (ImplicitVRLittleEndian, "claims 40999635648 bytes of voxels, more than the file"),
        (RLELossless, "claims 40999635648 bytes|would unpack to 41 GB"),
    ):
        shutil.rmtree(tmp_path / "scan", ignore_errors=True)
        for file in write_slices(
            tmp_path / "scan",
            DATA,
            OBLIQUE,
            syntax=RLELossless if syntax == RLELossless else ExplicitVRLittleEndian,
        ):
            image = dcmread(file)
            image.Rows = image.Columns = 58452
            image.save_as(file)
        with refused(tmp_path / "scan", rule, "."):
            read_volume(tmp_path / "scan")


def test_a_deflated_file_is_refused_unread(tmp_path, refused):
    file = write_slices(tmp_path / "scan", DATA, OBLIQUE)[0]
    image = dcmread(file)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(file)
    with refused(file, "Deflated", "uncompressed"):
        read_volume(tmp_path / "scan")


def test_damaged_headers_are_read_or_refused_without_their_text(tmp_path, caplog):
    file = write_slices(tmp_path / "scan", DATA, OBLIQUE)[2]
    good, rng = file.read_bytes(), np.random.default_rng(5)
    for _ in range(60):
        content = bytearray(good)
        for place in rng.integers(128, len(good) - DATA[..., 0].nbytes, 3):
            content[place] = rng.integers(256)
        file.write_bytes(content)
        try:
            assert np.isfinite(read_volume(tmp_path / "scan").data).all()
        except DataError as error:
            assert str(tmp_path) in error.where
            assert PLANTED not in str(error)
    assert PLANTED not in caplog.text
