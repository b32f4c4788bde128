"""Headers: no orientation is guessed, lengths become millimetres, codes are written as read."""

from __future__ import annotations

import gzip
import logging

import nibabel as nib
import numpy as np
import pytest

from sharding.volumes.header import codes_of
from sharding.volumes.resample import field_of_view, resample
from sharding.volumes.volume import read_pair, read_volume, write_volume

SHAPE = (16, 14, 12)


def scan(shape=SHAPE):
    """Noise with a bright block at the high end of the first axis."""
    data = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    data[-shape[0] // 4 :, : shape[1] // 2] += 5
    return data


def save(path, data, affine, qform=1, sform=1, unit="mm"):
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def stripped(path, data, spacing=0.4):
    return save(path, data, np.diag([spacing] * 3 + [1.0]), 0, 0)


# Orientation


def test_a_file_without_orientation_is_refused_with_the_remedy(tmp_path, refused):
    path = stripped(tmp_path / "a.nii.gz", scan())
    with refused(path, "no orientation: its qform and sform codes are both 0", "orientation array"):
        read_volume(path)


@pytest.mark.parametrize("lost", ["source", "target", "both"])
@pytest.mark.parametrize("flip", [1.0, -1.0], ids=["right", "left"])
def test_on_request_a_pair_is_laid_axis_on_axis(tmp_path, lost, flip):
    """The bright block lies at the high end of the first axis in both arrays."""
    fine = np.diag([flip * 0.2, 0.2, 0.2, 1.0])
    fine[:3, 3] = (3, -5, 7)
    target = scan((32, 28, 24))
    make = stripped if lost in ("target", "both") else save
    made = make(tmp_path / "t.nii.gz", target, *([0.2] if make is stripped else [fine]))
    coarse = target.reshape(16, 2, 14, 2, 12, 2).mean(axis=(1, 3, 5))
    shifted = np.diag([0.4, 0.4, 0.4, 1.0])
    shifted[:3, 3] = 900
    source = (
        stripped(tmp_path / "s.nii.gz", coarse)
        if lost in ("source", "both")
        else save(tmp_path / "s.nii.gz", coarse, shifted)
    )
    ours, theirs = read_pair(source, made, "array")
    if lost == "source":
        np.testing.assert_allclose(theirs.affine, fine, atol=1e-6)
    on_grid = resample(ours, theirs.shape, theirs.affine, 1)
    assert field_of_view(ours, theirs.shape, theirs.affine).all()
    assert np.corrcoef(on_grid.ravel(), theirs.data.ravel())[0, 1] > 0.95
    assert ours.orientation == theirs.orientation


def test_files_with_orientation_are_paired_by_it_whatever_is_assumed_of_others(tmp_path):
    affine = np.diag([0.2, 0.2, 0.2, 1.0])
    affine[:3, 3] = 40
    paths = [save(tmp_path / f"{name}.nii.gz", scan(), affine) for name in "ab"]
    for volume in read_pair(*paths, "array"):
        np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 4), (1, 2), (0, 0)])
def test_codes_are_written_as_they_were_read(tmp_path, qform, sform):
    affine = np.diag([-0.2, 0.2, 0.2, 1.0])
    path = save(tmp_path / "a.nii.gz", scan(), affine, qform, sform)
    volume = read_volume(path, orientation="array")
    moved = volume.affine.copy()
    moved[:3, 3] += 5
    other = type(volume)(volume.data, moved, volume.header)
    for name, written in (("same", volume), ("moved", other)):
        write_volume(tmp_path / f"{name}.nii.gz", written)
        header = nib.load(tmp_path / f"{name}.nii.gz").header
        assert codes_of(header) == (qform, sform)
    if qform or sform:
        np.testing.assert_allclose(nib.load(tmp_path / "moved.nii.gz").affine, moved, atol=1e-5)


def test_affines_that_mirror_each_other_are_refused(tmp_path, refused):
    image = nib.Nifti1Image(scan(), np.eye(4))
    image.set_qform(np.eye(4), 1)
    image.set_sform(np.diag([-1.0, 1, 1, 1]), 1)
    nib.save(image, tmp_path / "a.nii.gz")
    with refused(tmp_path / "a.nii.gz", "mirror each other", "remove the wrong one"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("qform", "pixdim", "said"),
    [
        ("same", None, None),
        ("rounded", None, None),
        ("moved", None, "place the same voxel up to 10 voxels apart; the sform is used"),
        ("none", 1.0, "0.2 x 0.3 x 0.4 by the header's sform and 1 x 1 x 1 by its pixdim"),
        ("none", None, None),
    ],
)
def test_a_header_that_says_two_things_is_reported(tmp_path, caplog, qform, pixdim, said):
    affine = np.diag([0.2, 0.3, 0.4, 1.0])
    other = affine.copy()
    other[:3, 3] = {"moved": (2, 0, 0), "rounded": (0.01, 0, 0)}.get(qform, (0, 0, 0))
    image = nib.Nifti1Image(scan(), affine)
    image.set_sform(affine, 1)
    image.set_qform(other, 0 if qform == "none" else 1)
    if pixdim:
        image.header["pixdim"][1:4] = pixdim
    nib.save(image, tmp_path / "a.nii.gz")
    with caplog.at_level(logging.WARNING):
        volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6)
    assert (said in caplog.text) if said else not caplog.records


# Units


@pytest.mark.parametrize(
    ("unit", "factor"), [("mm", 1.0), ("unknown", 1.0), ("micron", 1000.0), ("meter", 0.001)]
)
def test_lengths_become_millimetres(tmp_path, caplog, unit, factor):
    affine = np.diag([-0.2 * factor, 0.3 * factor, 0.5 * factor, 1.0])
    affine[:3, 3] = np.array([4, 5, 6]) * factor
    with caplog.at_level(logging.INFO):
        volume = read_volume(save(tmp_path / "a.nii.gz", scan(), affine, unit=unit))
    expected = np.diag([-0.2, 0.3, 0.5, 1.0])
    expected[:3, 3] = (4, 5, 6)
    np.testing.assert_allclose(volume.affine, expected, rtol=1e-6)
    assert ("converted to mm" in caplog.text) == (factor != 1)
    write_volume(tmp_path / "b.nii.gz", volume)
    written = nib.load(tmp_path / "b.nii.gz")
    assert written.header.get_xyzt_units()[0] in ("mm", "unknown" if factor == 1 else "mm")
    np.testing.assert_allclose(written.affine, expected, rtol=1e-6)
    np.testing.assert_allclose(written.header.get_zooms(), (0.2, 0.3, 0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("spacing", "unit"), [(400.0, "mm"), (400.0, "unknown"), (0.0002, "mm"), (0.4, "micron")]
)
def test_implausible_voxels_are_refused_with_what_was_found(tmp_path, refused, spacing, unit):
    path = save(tmp_path / "a.nii.gz", scan(), np.diag([spacing] * 3 + [1.0]), unit=unit)
    with refused(path, r"voxels must be from 0.001 to 50 mm, found [\d.e-]+ x", "xyzt_units"):
        read_volume(path)


def test_a_unit_that_nifti_does_not_know_is_refused(tmp_path, refused):
    path = save(tmp_path / "a.nii", scan(), np.eye(4))
    content = bytearray(path.read_bytes())
    content[123] = 7
    path.write_bytes(content)
    with refused(path, r"unit of length in the header \(xyzt_units\).*: 7", "in mm"):
        read_volume(path)


# Files that unpack to more than anyone expects


def test_what_follows_the_voxels_is_read_to_a_limit(tmp_path, refused):
    content = gzip.decompress(save(tmp_path / "a.nii.gz", scan(), np.eye(4)).read_bytes())
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(2**20)))
    read_volume(path)
    path.write_bytes(gzip.compress(content + bytes(2**23)))
    with refused(path, "holds more than its header says", "again"):
        read_volume(path)


def test_gigabytes_in_a_small_gzip_are_refused_before_they_are_unpacked(tmp_path, refused):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    header = image.header.copy()
    header.set_data_shape((1024, 1024, 1024))
    path = tmp_path / "bomb.nii.gz"
    # As small as 4 GiB of zeros would be, without the seconds that packing them takes.
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + bytes(4_300_000))
    with refused(path, "4.3 MB would unpack to 4.29 GB", "unpack it to .nii"):
        read_volume(path)
