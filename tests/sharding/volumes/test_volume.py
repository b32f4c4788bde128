"""Volumes: bad files are refused by name, geometry is kept, free text is not."""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
import resource
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.io.atomic import atomic_path, atomic_write
from sharding.io.errors import DataError
from sharding.volumes.volume import Volume, read_volume, write_volume

SHAPE = (8, 7, 6)
AFFINE = np.array([[0, 0.3, 0, -4], [-0.2, 0, 0, 5], [0, 0, 0.5, 6], [0, 0, 0, 1.0]])
DATA = np.random.default_rng(0).uniform(1, 100, SHAPE).astype(np.float32)


def save(path, data=DATA, affine=AFFINE, header=None):
    nib.save(nib.Nifti1Image(data, affine, header), path)
    return path


def with_header(path, **fields):
    """A NIfTI file of which single header fields are overwritten, unchecked."""
    raw = bytearray(save(path).read_bytes())
    header = np.frombuffer(raw, nib.nifti1.header_dtype, 1).copy()
    for name, value in fields.items():
        header[name][0] = value
    raw[: header.nbytes] = header.tobytes()
    path.write_bytes(raw)
    return path


def test_reads_what_was_written(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(volume.data, DATA)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.data.dtype == np.float32
    assert volume.shape == SHAPE
    assert volume.spacing_mm == pytest.approx((0.2, 0.3, 0.5))
    assert volume.orientation == "PRS"


def test_scaled_integers_are_read_as_intensities(tmp_path):
    image = nib.Nifti1Image(np.arange(336, dtype=np.int16).reshape(SHAPE), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(
        read_volume(tmp_path / "a.nii.gz").data.ravel(), np.arange(336) * 0.5 - 3
    )


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_trailing_single_dimensions_are_dropped(tmp_path, shape):
    volume = read_volume(save(tmp_path / "a.nii.gz", DATA.reshape(shape)))
    np.testing.assert_array_equal(volume.data, DATA)
    write_volume(tmp_path / "b.nii.gz", volume)
    assert nib.load(tmp_path / "b.nii.gz").shape == SHAPE


def poked(value):
    data = DATA.copy()
    data[1, 2, 3] = value
    return data


@pytest.mark.parametrize(
    ("data", "rule", "remedy"),
    [
        (poked(np.nan), "must be finite, found 1 NaN or Inf", "Repair or mask"),
        (poked(-np.inf), "must be finite, found 1 NaN or Inf", "Repair or mask"),
        (DATA.astype(np.float64) * 1e300, "must be finite, found 336 NaN or Inf", "Repair"),
        (np.full(SHAPE, 7, np.float32), "must not all be equal, found 7.0 every", "Check the ex"),
        (DATA.astype(np.complex64), "must be real numbers, found complex64", "magnitude"),
        (np.stack([DATA, DATA], -1), r"3D volume .* \(8, 7, 6, 2\)", "one 3D volume in each file"),
        (DATA[..., 0], r"3D volume .* \(8, 7\)", "one 3D volume in each file"),
        (DATA[:, :, :1], r"at least 2 voxels a side, found shape \(8, 7, 1\)", "one 3D volume"),
    ],
    ids=["nan", "inf", "beyond-float32", "constant", "complex", "4d", "2d", "one-slice"],
)
def test_bad_voxels_are_refused(tmp_path, refused, data, rule, remedy):
    path = save(tmp_path / "bad.nii.gz", data)
    with refused(path, rule, remedy):
        read_volume(path)


def test_colour_is_refused(tmp_path, refused):
    data = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    data["R"] = DATA
    path = save(tmp_path / "bad.nii.gz", data)
    with refused(path, "must be real numbers", "magnitude"):
        read_volume(path)


def test_missing_file_is_refused(tmp_path, refused):
    with refused(tmp_path / "none.nii.gz", "does not exist", "Check the path"):
        read_volume(tmp_path / "none.nii.gz")


@pytest.mark.parametrize("name", ["bad.nii", "bad.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"no scan at all" * 100], ids=["empty", "text"])
def test_no_nifti_is_refused(tmp_path, refused, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with refused(path, "not a readable NIfTI file", "Export it again"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.nii.xz", "a.txt", "a"])
def test_other_formats_are_refused(tmp_path, refused, name):
    (tmp_path / name).write_bytes(save(tmp_path / "good.nii.gz").read_bytes())
    with refused(tmp_path / name, f"name ends in .nii.gz, .*, found {name}", "Convert|Unpack"):
        read_volume(tmp_path / name)


def test_bzip2_is_read_and_refused_like_gzip(tmp_path, refused):
    path, plain = save(tmp_path / "a.nii.bz2"), save(tmp_path / "a.nii")
    volume, expected = read_volume(path), read_volume(plain)
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    header = nib.load(plain).header.copy()
    header.set_data_shape((1024, 1024, 1024))
    path.write_bytes(bz2.compress(header.binaryblock + bytes(4)) + bytes(400_000))
    with refused(path, "0.4 MB would unpack to 4.29 GB", "unpack it to .nii"):
        read_volume(path)
    path.write_bytes(bz2.compress(header.binaryblock + bytes(4)))
    with refused(path, "claims 4294967296 bytes of voxels, more than the file can hold", "again"):
        read_volume(path)


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz", "cut.nii.bz2"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.98])
def test_files_cut_short_are_refused(tmp_path, refused, name, keep):
    path = save(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with refused(path, "not a readable|cut short|more than the file can hold", "again"):
        read_volume(path)


@pytest.mark.parametrize("damage", ["a byte flipped", "the checksum cut"])
def test_a_gzip_whose_checksum_fails_is_refused(tmp_path, refused, damage):
    path = save(tmp_path / "bad.nii.gz")
    content = bytearray(path.read_bytes())
    if damage == "a byte flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        del content[-4:]
    path.write_bytes(content)
    with refused(path, "cannot be read, the file is cut short or damaged", "Copy or export"):
        read_volume(path)


@pytest.mark.parametrize("name", ["liar.nii", "liar.nii.gz"])
def test_a_header_that_claims_terabytes_is_refused_before_memory_is_taken(
    tmp_path, refused, monkeypatch, name
):
    plain = with_header(tmp_path / "plain.nii", dim=[3, 20000, 20000, 20000, 1, 1, 1, 1])
    content = plain.read_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)

    def never(*_args, **_kwargs):
        raise AssertionError("the voxels were read")

    monkeypatch.setattr("sharding.volumes.formats.nifti.Voxels.read", never)
    with refused(path, "claims 32000000000000 bytes of voxels, more than the file", "cut short"):
        read_volume(path)


@pytest.mark.parametrize(
    "affine",
    [np.zeros((4, 4)), np.diag([1.0, 1, 0, 1]), np.diag([1.0, np.nan, 1, 1])],
    ids=["zero", "flat", "nan"],
)
def test_singular_affines_are_refused(tmp_path, refused, affine):
    rows = dict(zip(("srow_x", "srow_y", "srow_z"), affine, strict=False))
    path = with_header(tmp_path / "bad.nii", sform_code=1, **rows)
    with refused(path, "affine must be finite and invertible", "sform and qform"):
        read_volume(path)


@pytest.mark.parametrize(
    "fields",
    [{"datatype": 26}, {"vox_offset": 12}, {"vox_offset": 1e30}, {"dim": [9] * 8}],
    ids=["data-code", "offset-low", "offset-huge", "dimensions"],
)
@pytest.mark.filterwarnings("ignore")
def test_impossible_headers_are_refused(tmp_path, refused, fields):
    path = with_header(tmp_path / "bad.nii", **fields)
    with refused(path, ".", "again"):
        read_volume(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=5),
    st.integers(0, 1344),
)
def test_any_damaged_header_is_read_or_refused_and_never_crashes(scratch, changes, cut):
    content = bytearray(save(scratch / "good.nii").read_bytes())
    for place, value in changes:
        content[place] = value
    path = scratch / "damaged.nii"
    path.write_bytes(content[: len(content) - cut])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            volume = read_volume(path)
        except DataError as error:
            assert error.where == str(path)
        else:
            assert np.isfinite(volume.data).all()
            assert volume.data.ndim == 3


def test_geometry_is_kept_when_written(tmp_path):
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    header.set_qform(np.diag([0.2, 0.3, 0.5, 1]), code="scanner")
    header.set_sform(AFFINE, code="mni")
    volume = read_volume(save(tmp_path / "in.nii.gz", affine=None, header=header))
    write_volume(tmp_path / "out.nii.gz", volume.with_data(volume.data * 2))
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(written.header.get_qform(), np.diag([0.2, 0.3, 0.5, 1]), atol=1e-6)
    assert int(written.header["sform_code"]) == 4
    assert int(written.header["qform_code"]) == 1
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume.data * 2)


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_every_kind_of_header_can_be_written_again(tmp_path, image_class, endianness):
    image = image_class(DATA, AFFINE, image_class.header_class(endianness=endianness))
    nib.save(image, tmp_path / "in.nii")
    write_volume(tmp_path / "out.nii", read_volume(tmp_path / "in.nii"))
    again = read_volume(tmp_path / "out.nii")
    np.testing.assert_array_equal(again.data, DATA)
    np.testing.assert_allclose(again.affine, AFFINE, atol=1e-6)


def test_free_text_and_extensions_are_dropped(tmp_path):
    header = nib.Nifti1Header()
    fields = ("descrip", "aux_file", "db_name", "data_type", "intent_name")
    for field in fields:
        header[field] = b"Jane Doe"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    path = save(tmp_path / "in.nii", header=header)
    assert path.read_bytes().count(b"Jane Doe") == 1 + len(fields)
    volume = read_volume(path)
    write_volume(tmp_path / "out.nii", volume)
    assert b"Jane" not in (tmp_path / "out.nii").read_bytes()
    assert b"Jane" not in gzip.compress((tmp_path / "out.nii").read_bytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "out.nii").data, DATA)
    assert bytes(volume.header["descrip"]).startswith(b"Jane Doe"), "the header read was changed"


def test_written_bytes_depend_on_the_volume_alone(tmp_path):
    volume = Volume(DATA, AFFINE)
    write_volume(tmp_path / "first.nii.gz", volume)
    write_volume(tmp_path / "second-name.nii.gz", volume)
    first = (tmp_path / "first.nii.gz").read_bytes()
    assert first == (tmp_path / "second-name.nii.gz").read_bytes()
    assert b"first" not in first


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    write_volume(path, Volume(DATA, AFFINE))
    before = path.read_bytes()

    def half_way(_image, partial):
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("sharding.volumes.formats.nifti.nib.save", half_way)
    with pytest.raises(OSError, match="disk full"):
        write_volume(path, Volume(DATA * 2, AFFINE))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_replaces_whole_files_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_write(path, "one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as partial:
        partial.write_text("three")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR", "IPL"])
def test_reorienting_moves_no_voxel_in_the_world(orientation):
    volume = Volume(DATA, AFFINE)
    turned = volume.reoriented(orientation)
    assert turned.orientation == orientation
    for index in np.ndindex(turned.shape):
        world = turned.affine @ [*index, 1]
        where = tuple(np.rint(np.linalg.inv(AFFINE) @ world)[:3].astype(int))
        assert turned.data[index] == DATA[where]


def test_data_errors_cross_processes_whole():
    error = DataError("a.nii", "must be 3D", "Export it again")
    again = pickle.loads(pickle.dumps(error))
    assert (again.where, again.rule, again.remedy) == ("a.nii", "must be 3D", "Export it again")
    assert str(again) == "a.nii: must be 3D. Export it again."


def test_a_volume_that_does_not_fit_into_memory_is_named(tmp_path, refused):
    path = tmp_path / "large.nii"
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    image.header.set_data_shape((1000, 1000, 600))
    path.write_bytes(image.header.binaryblock + bytes(4))
    os.truncate(path, 352 + 4 * 1000 * 1000 * 600)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    try:
        with refused(path, "does not fit into the memory that is free", "more memory"):
            read_volume(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
