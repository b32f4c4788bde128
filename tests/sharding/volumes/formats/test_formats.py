"""Every format gives the voxels, the places and the refusals that NIfTI gives for the same scan."""

from __future__ import annotations

import bz2
import gzip
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from sharding.io.errors import DataError
from sharding.volumes.formats.packed import zstd
from sharding.volumes.formats.registry import FOLDERS, WRITERS, files_of, stem
from sharding.volumes.volume import Volume, read_pair, read_volume, write_volume

SHAPE = (8, 7, 6)
DATA = np.random.default_rng(0).integers(1, 4000, SHAPE).astype(np.int16)
AFFINES = {
    "axial": np.diag([0.4, 0.5, 2.0, 1.0]),
    "oblique": np.eye(4),
    "sagittal-oblique": np.eye(4),
    "left-handed": np.eye(4),
}
TURN = Rotation.from_euler("xyz", [21, -13, 34], degrees=True).as_matrix()
AFFINES["oblique"][:3] = np.c_[TURN @ np.diag([0.4, 0.55, 1.7]), [-31.5, 12.25, 7.5]]
AFFINES["sagittal-oblique"][:3] = np.c_[TURN[:, [1, 2, 0]] @ np.diag([0.4, 0.5, 1.3]), [3, -70, 9]]
AFFINES["left-handed"][:3] = np.c_[TURN @ np.diag([-0.4, 0.55, 1.7]), [50, 12.25, -7.5]]

READ = ("a.nii.bz2", "a.nii.zst", "a.hdr", "a.img", "a.hdr.gz", "a.mgz", "a.mgh", "a.nrrd")
READ += ("raw.nrrd", "a.nhdr", "a.mha", "raw.mha", "a.mhd")


def nifti(path, affine, data=DATA):
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def converted(folder: Path, name: str, affine, data=DATA) -> Path:
    """The scan of a NIfTI file in another format, written by nibabel or by SimpleITK from it."""
    first, path = nifti(folder / "first.nii", affine, data), folder / name
    if name.endswith(".zst"):
        path.write_bytes(zstd.compress(first.read_bytes(), options=CHECKED))
    elif name.endswith(".bz2"):
        path.write_bytes(bz2.compress(first.read_bytes()))
    elif ".hdr" in name or ".img" in name:
        nib.save(nib.Nifti1Pair(data, affine, nib.load(first).header), path)
    elif ".mg" in name:
        nib.save(nib.MGHImage(data, affine), path)
    else:
        sitk.WriteImage(sitk.ReadImage(first), path, useCompression="raw" not in name)
    return path


CHECKED = {zstd.CompressionParameter.checksum_flag: 1}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", AFFINES)
def test_every_format_places_every_voxel_where_nifti_does(tmp_path, name, kind):
    expected = read_volume(nifti(tmp_path / "expected.nii.gz", AFFINES[kind]))
    volume = read_volume(converted(tmp_path, name, AFFINES[kind]))
    np.testing.assert_array_equal(volume.data, expected.data)
    index = np.argwhere(np.ones(SHAPE))
    places = apply_affine(volume.affine, index)
    np.testing.assert_allclose(places, apply_affine(AFFINES[kind], index), atol=1e-4)
    assert volume.spacing_mm == pytest.approx(expected.spacing_mm, rel=1e-5)
    assert volume.orientation == expected.orientation
    assert volume.has_orientation


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix not in FOLDERS])
@pytest.mark.parametrize("kind", AFFINES)
def test_what_is_written_is_read_by_others_as_it_was(tmp_path, suffix, kind):
    volume = Volume(DATA.astype(np.float32) / 7, AFFINES[kind])
    path = tmp_path / f"out{suffix}"
    write_volume(path, volume)
    again = read_volume(path)
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)
    if suffix.startswith(".mg"):
        content = path.read_bytes()
        other = nib.MGHImage.from_bytes(gzip.decompress(content) if suffix == ".mgz" else content)
        data, affine = np.asarray(other.dataobj), other.affine
    else:
        image = sitk.ReadImage(path)
        data, affine = sitk.GetArrayFromImage(image).T, np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        affine = np.diag([-1, -1, 1, 1]) @ affine
    assert data.dtype == np.float32 or data.dtype == ">f4"
    np.testing.assert_array_equal(data, volume.data)
    np.testing.assert_allclose(affine, volume.affine, atol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    first = path.read_bytes()
    write_volume(path, volume)
    assert path.read_bytes() == first, "what is written depends on more than the volume"


@pytest.mark.parametrize("name", ["out", "out.mha", "out.nii.zst", "out.txt"])
def test_what_cannot_be_written_is_refused(tmp_path, refused, name):
    with refused(tmp_path / name, r"must end in \.nii\.gz, ", "Rename"):
        write_volume(tmp_path / name, Volume(DATA.astype(np.float32), np.eye(4)))


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("keep", [0.2, 0.97])
def test_files_cut_short_are_refused_in_every_format(tmp_path, refused, name, keep):
    path = converted(tmp_path, name, AFFINES["oblique"])
    last = files_of(path)[-1]
    content = last.read_bytes()
    last.write_bytes(content[: int(keep * len(content))])
    with refused(path, "not a readable|cut short|more than the file can hold", "again"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.nii.zst", "a.nii.bz2", "a.mgz", "a.nrrd", "a.nhdr", "a.mha"])
def test_a_damaged_stream_is_refused_in_every_packing(tmp_path, refused, name):
    path = converted(tmp_path, name, AFFINES["oblique"])
    last = files_of(path)[-1]
    for cut in (1, 4):
        content = bytearray(last.read_bytes())
        kept = bytes(content[:-cut])
        last.write_bytes(kept)
        with refused(path, "cut short|not a readable", "again"):
            read_volume(path)
        last.write_bytes(content)
    content[-30] ^= 0x10
    last.write_bytes(content)
    with refused(path, "cut short or damaged|not a readable|the header claims", "again"):
        read_volume(path)


def packed_lies(folder: Path, name: str) -> Path:
    """A file of a few megabytes whose header claims four gigabytes of zeros."""
    path, side = folder / name, 1024
    size = side**3 * 4
    if name.endswith(".nrrd"):
        head = (
            "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\n"
            f"sizes: {side} {side} {side}\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
            "endian: little\nencoding: gzip\nspace origin: (0,0,0)\n\n"
        ).encode()
        path.write_bytes(head + gzip.compress(bytes(1000)) + bytes(size // 1000))
    elif name.endswith(".mha"):
        head = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            "CompressedData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
            f"ElementSpacing = 1 1 1\nDimSize = {side} {side} {side}\nElementType = MET_FLOAT\n"
            "ElementDataFile = LOCAL\n"
        ).encode()
        path.write_bytes(head + zlib.compress(bytes(1000)) + bytes(size // 1000))
    elif name.endswith(".mgz"):
        image = nib.MGHImage(np.zeros((2, 2, 2), np.float32), np.eye(4))
        nib.save(image, folder / "small.mgh")
        content = bytearray((folder / "small.mgh").read_bytes())
        content[4:16] = np.array([side] * 3, ">i4").tobytes()
        path.write_bytes(gzip.compress(bytes(content)) + bytes(size // 1000))
    else:
        header = nib.load(nifti(folder / "small.nii", np.eye(4))).header.copy()
        header.set_data_shape((side, side, side))
        header.set_data_dtype(np.float32)
        path.write_bytes(zstd.compress(header.binaryblock + bytes(4)) + bytes(size // 1000))
    return path


@pytest.mark.parametrize("name", ["a.nii.zst", "a.mgz", "a.nrrd", "a.mha"])
def test_gigabytes_that_hide_in_a_small_file_are_refused(tmp_path, refused, name):
    with refused(tmp_path / name, "4.3 MB would unpack to 4.29 GB", "unpack it"):
        read_volume(packed_lies(tmp_path, name))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgh", "a.hdr"])
def test_voxels_beyond_the_file_are_refused_before_memory_is_taken(tmp_path, refused, name):
    path = converted(tmp_path, "raw." + name.partition(".")[2], AFFINES["axial"])
    content = path.read_bytes()
    for old in (b"sizes: 8 7 6", b"DimSize = 8 7 6"):
        content = content.replace(old, old.replace(b"8 7 6", b"30000 30000 30000"))
    if name.endswith(".mgh"):
        content = content[:4] + np.array([30000] * 3, ">i4").tobytes() + content[16:]
    if name.endswith(".hdr"):
        content = content[:42] + np.array([30000] * 3, "<i2").tobytes() + content[48:]
    path.write_bytes(content)
    with refused(path, "claims 54000000000000 bytes of voxels, more than the file", "cut short"):
        read_volume(path)


def without_orientation(folder: Path, kind: str) -> Path:
    """A scan in a file that does not say where its axes point."""
    path = folder / f"lost.{kind}"
    if kind == "mgz":
        image = nib.MGHImage(DATA, AFFINES["oblique"])
        nib.save(image, folder / "whole.mgh")
        content = bytearray((folder / "whole.mgh").read_bytes())
        content[28:30] = bytes(2)
        path.write_bytes(gzip.compress(content))
        return path
    content = converted(folder, f"raw.{kind}", AFFINES["oblique"]).read_bytes()
    head, mark, voxels = content.partition(
        b"\n\n" if kind == "nrrd" else b"ElementDataFile = LOCAL\n"
    )
    lines = head.split(b"\n")
    if kind == "nrrd":
        dropped = (b"space:", b"space directions:", b"space origin:", b"kinds:")
        lines = [line for line in lines if not line.startswith(dropped)]
        lines.append(b"spacings: 0.4 0.55 1.7")
    else:
        lines = [line for line in lines if not line.startswith(b"TransformMatrix")]
    path.write_bytes(b"\n".join(lines) + mark + voxels)
    return path


@pytest.mark.parametrize("kind", ["mgz", "nrrd", "mha"])
def test_a_file_without_orientation_is_refused_or_laid_by_its_array(tmp_path, refused, kind):
    path = without_orientation(tmp_path, kind)
    with refused(path, "has no orientation: .*, so left and right cannot", "orientation array"):
        read_volume(path)
    target = nifti(tmp_path / "target.nii.gz", AFFINES["sagittal-oblique"])
    source, grid = read_pair(path, target, "array")
    assert not source.has_orientation
    np.testing.assert_array_equal(source.data, DATA)
    ours = apply_affine(source.affine, (np.array(SHAPE) - 1) / 2)
    np.testing.assert_allclose(ours, apply_affine(grid.affine, (np.array(SHAPE) - 1) / 2))
    write_volume(tmp_path / "out.nii.gz", source)
    with refused(tmp_path / "out.mgz", "has no orientation, which a file ending in", "nii.gz"):
        write_volume(tmp_path / "out.mgz", source)


def test_units_of_an_nrrd_are_converted_and_others_refused(tmp_path, refused):
    path = converted(tmp_path, "raw.nrrd", AFFINES["axial"])
    content = path.read_bytes()
    for unit, factor in (("mm", 1), ("um", 0.001), ("microns", 0.001)):
        line = f'space units: "{unit}" "{unit}" "{unit}"\n'.encode()
        path.write_bytes(content.replace(b"encoding:", line + b"encoding:"))
        found = np.array(read_volume(path).spacing_mm) if factor == 1 else None
        if factor == 1:
            np.testing.assert_allclose(found, [0.4, 0.5, 2])
            continue
        with refused(path, "voxels must be from 0.001 to 50 mm, found 0.0004 x", "unit of length"):
            read_volume(path)
    large = converted(tmp_path, "raw.nrrd", np.diag([400.0, 500, 2000, 1])).read_bytes()
    path.write_bytes(large.replace(b"encoding:", line + b"encoding:"))
    np.testing.assert_allclose(read_volume(path).spacing_mm, [0.4, 0.5, 2])
    path.write_bytes(content.replace(b"encoding:", b'space units: "s" "mm" "mm"\nencoding:'))
    with refused(path, "one unit of length, found mm, s", "in .mm."):
        read_volume(path)


@pytest.mark.parametrize(
    ("name", "old", "new", "rule"),
    [
        ("raw.nrrd", b"left-posterior-superior", b"scanner-xyz", "found scanner-xyz"),
        ("raw.nrrd", b"encoding: raw", b"encoding: ascii", "encoding must be one of raw"),
        ("raw.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = LIST", "one file of voxels"),
        ("raw.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/hosts", "its own folder"),
        ("a.mhd", b"ElementDataFile = a.", b"ElementDataFile = ../a.", "its own folder"),
        ("a.nhdr", b"data file: a.", b"data file: ../a.", "its own folder"),
        ("raw.mha", b"DimSize", b"ElementToIntensityFunctionSlope = 2\nDimSize", "must be 1"),
        ("raw.mha", b"DimSize", b"NDims = 3\nDimSize", "gives the field ndims twice"),
    ],
)
def test_what_the_libraries_would_misread_is_refused(tmp_path, refused, name, old, new, rule):
    path = converted(tmp_path, name, AFFINES["axial"])
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with refused(path, rule, "."):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgz", "a.img"])
def test_four_dimensions_and_colours_are_refused(tmp_path, refused, name):
    path = tmp_path / name
    if name in ("a.mgz", "a.img"):
        kind = nib.MGHImage if name == "a.mgz" else nib.Nifti1Pair
        nib.save(kind(np.stack([DATA] * 2, axis=-1), np.eye(4)), path)
    else:
        colours = sitk.GetImageFromArray(np.stack([DATA.T] * 3, axis=-1), isVector=True)
        sitk.WriteImage(colours, path)
    with refused(path, "must be a 3D volume", "one 3D volume"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.hdr", "a.img", "a.mhd", "a.nhdr"])
def test_a_volume_of_two_files_needs_both(tmp_path, refused, name):
    path = converted(tmp_path, name, AFFINES["axial"])
    files = files_of(path)
    assert len(files) == 2
    other = next(file for file in files if file != path)
    other.unlink()
    with refused(other, "missing", "Copy"):
        read_volume(path)


def test_analyze_is_refused_for_it_has_no_orientation(tmp_path, refused):
    nib.save(nib.Spm2AnalyzeImage(DATA, np.diag([-1.0, 1, 1, 1])), tmp_path / "a.img")
    (tmp_path / "a.mat").unlink(missing_ok=True)
    with refused("a.img", "does not say where its axes point", "Convert"):
        read_volume(tmp_path / "a.img")


@pytest.mark.parametrize("name", [name for name in READ if name != "a.img"])
def test_text_of_another_kind_is_refused(tmp_path, refused, name):
    path = converted(tmp_path, name, AFFINES["axial"])
    for content in (b"", b"no scan at all" * 100, bytes(4000)):
        path.write_bytes(content)
        with refused(path, "not a readable|must|claims|cut short", "."):
            read_volume(path)


@pytest.mark.parametrize("name", ["a.nii.zst", "raw.nrrd", "raw.mha", "a.mgh", "a.hdr"])
def test_damaged_headers_are_read_or_refused(tmp_path, name):
    good = converted(tmp_path, name, AFFINES["oblique"]).read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / name
    for _ in range(40):
        content = bytearray(good)
        for place in rng.integers(0, min(len(good), 400), 3):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            assert np.isfinite(read_volume(path).data).all()
        except DataError as error:
            assert str(tmp_path) in error.where


def test_names_without_their_endings():
    names = ["a.nii.gz", "a.nii.zst", "a.hdr", "a.MHD", "a.mgz", "a.b.nrrd", "a"]
    assert [stem(name) for name in names] == ["a", "a", "a", "a", "a", "a.b", "a"]


def test_files_of_lists_all_that_a_volume_needs(tmp_path):
    path = converted(tmp_path, "a.mhd", AFFINES["axial"])
    assert [file.name for file in files_of(path)] == ["a.mhd", "a.zraw"]
    shutil.copy(converted(tmp_path, "a.img", AFFINES["axial"]), tmp_path / "b.img")
    assert files_of(tmp_path / "a.img") == files_of(tmp_path / "a.hdr")
