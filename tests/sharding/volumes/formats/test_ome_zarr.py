"""OME-Zarr gives what NIfTI gives of the same scan, or is refused with what was found."""

from __future__ import annotations

import json
import logging
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import zarr
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numcodecs import Blosc, GZip
from ome_zarrs import axes_of, changed_json, places_of, write_ome

from sharding.io.errors import DataError
from sharding.volumes.formats.registry import files_of, volume_name
from sharding.volumes.output import Output
from sharding.volumes.volume import Volume, read_pair, read_volume, write_volume

SHAPE = (9, 7, 6)
DATA = np.random.default_rng(0).integers(1, 4000, SHAPE).astype(np.int16)


def affine_of(codes):
    """An affine whose axes point there, with a spacing and an origin of its own for each axis."""
    affine = np.diag([0.4, 0.5, 2.0, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = affine @ inv_ornt_aff(turn, SHAPE)
    affine[:3, 3] = [-31.5, 12.25, 7.5]
    return affine


CODES = ("RAS", "LPS", "LAS", "PIR", "SLA")
LPS = affine_of("LPS")


def same(volume, affine, data=DATA):
    np.testing.assert_array_equal(volume.data, data)
    index = np.argwhere(np.ones(data.shape))
    np.testing.assert_allclose(
        apply_affine(volume.affine, index), apply_affine(affine, index), atol=1e-9
    )
    assert volume.has_orientation


def metadata_of(folder):
    """The file of the metadata, and what finds the image in its content."""
    if (folder / ".zattrs").is_file():
        return folder / ".zattrs", lambda content: content["multiscales"][0]
    return folder / "zarr.json", lambda content: content["attributes"]["ome"]["multiscales"][0]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("codes", CODES)
def test_every_voxel_lies_where_nifti_says(tmp_path, version, codes):
    affine = affine_of(codes)
    nib.save(nib.Nifti1Image(DATA, affine), tmp_path / "same.nii.gz")
    expected = read_volume(tmp_path / "same.nii.gz")
    volume = read_volume(write_ome(tmp_path / "a.ome.zarr", DATA, affine, version=version))
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    assert volume.spacing_mm == pytest.approx(expected.spacing_mm, rel=1e-6)
    assert volume.orientation == expected.orientation == codes
    assert volume.has_orientation


@pytest.mark.parametrize("order", ["zyx", "xyz", "tczyx", "yczx"])
def test_axes_count_by_their_names(tmp_path, order):
    same(read_volume(write_ome(tmp_path / "a.zarr", DATA, LPS, names=order)), LPS)


@pytest.mark.parametrize(
    ("unit", "factor"), [("micrometer", 1000), ("\u00b5m", 1000), ("metre", 0.001), (None, 1)]
)
def test_units_are_converted(tmp_path, unit, factor):
    folder = tmp_path / "a.ome.zarr"
    same(read_volume(write_ome(folder, DATA, LPS, axes=axes_of(LPS, unit), factor=factor)), LPS)


def test_a_unit_that_is_left_out_is_named_where_the_voxels_are_too_large(tmp_path, refused):
    path = write_ome(tmp_path / "a.zarr", DATA, LPS, axes=axes_of(LPS, None), factor=1000)
    with refused(path, "400 x 500 x 2e[+]03 mm; the header does not name its unit", "unit"):
        read_volume(path)


def test_transformations_follow_each_other(tmp_path):
    scale, shift = places_of(LPS)
    path = write_ome(
        tmp_path / "a.ome.zarr",
        DATA,
        LPS,
        names="xyz",
        transforms=[
            {"type": "identity"},
            {"type": "scale", "scale": [side / 2 for side in scale]},
            {"type": "translation", "translation": [place / 2 + 3 for place in shift]},
        ],
    )
    file, image = metadata_of(path)
    whole = [
        {"type": "scale", "scale": [2, 2, 2]},
        {"type": "translation", "translation": [-6, -6, -6]},
    ]
    changed_json(file, lambda content: image(content).update(coordinateTransformations=whole))
    same(read_volume(path), LPS)


@pytest.mark.parametrize(
    ("version", "array"),
    [
        ("0.4", {"compressors": Blosc()}),
        ("0.4", {"compressors": GZip()}),
        ("0.4", {"compressors": None, "order": "F"}),
        ("0.5", {"compressors": zarr.codecs.BloscCodec()}),
        ("0.5", {"shards": (8, 8, 8)}),
    ],
)
def test_every_packing_gives_the_same_and_is_refused_when_cut_short(
    tmp_path, refused, version, array
):
    for dtype in ("<i2", ">f4"):
        shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
        values = DATA.astype(dtype)
        path = write_ome(tmp_path / "a.zarr", values, LPS, version=version, **array)
        same(read_volume(path), LPS)
    last = max(file for file in files_of(path) if file.name.isdigit())
    content = last.read_bytes()
    for keep in (0, 20, len(content) // 2, len(content) - 1):
        last.write_bytes(content[:keep])
        with refused(path, "the voxels cannot be read, the file is cut short", "again"):
            read_volume(path)


def test_the_highest_resolution_is_read_and_no_other_counts(tmp_path):
    path = write_ome(tmp_path / "a.ome.zarr", DATA, LPS)
    coarse = zarr.create_array(path / "scale1", shape=(3, 3, 4), dtype="i2", chunks=(3, 3, 4))
    coarse[:] = 7
    file, image = metadata_of(path)
    level = {
        "path": "scale1",
        "coordinateTransformations": [{"type": "scale", "scale": [4, 1, 0.8]}],
    }
    changed_json(file, lambda content: image(content)["datasets"].append(level))
    same(read_volume(path), LPS)
    assert files_of(path) == sorted(files_of(path))
    names = {file.relative_to(path).parts[0] for file in files_of(path)}
    assert names == {"zarr.json", "scale0"}
    assert len(files_of(path)) == 2 + 3 * 2 * 2


def test_a_draft_of_the_orientation_is_read(tmp_path):
    axes = axes_of(LPS)
    for axis in axes:
        axis["anatomicalOrientation"] = axis.pop("orientation")["value"]
    same(read_volume(write_ome(tmp_path / "a.zarr", DATA, LPS, axes=axes)), LPS)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, r"its axes have no orientation \(RFC-4\)"),
        ("dorsal-to-ventral", "dorsal-to-ventral, anterior-to-posterior, inferior-to-superior"),
        ("inferior-to-superior", "x, y and z are inferior-to-superior, anterior-to-posterior, inf"),
    ],
)
def test_without_orientation_it_is_refused_or_laid_by_its_array(tmp_path, refused, value, found):
    axes = axes_of(LPS)
    if value is None:
        for axis in axes:
            del axis["orientation"]
    else:
        axes[0]["orientation"]["value"] = value
    path = write_ome(tmp_path / "a.ome.zarr", DATA, LPS, axes=axes)
    with refused(path, f"no orientation: .*{found}.*, so left and right", "orientation array"):
        read_volume(path)
    target = write_ome(tmp_path / "target.ome.zarr", DATA, affine_of("PIR"))
    source, grid = read_pair(path, target, "array")
    assert not source.has_orientation
    np.testing.assert_array_equal(source.data, DATA)
    assert source.orientation == grid.orientation == "PIR"
    write_volume(tmp_path / "out.ome.zarr", source)
    again = read_volume(tmp_path / "out.ome.zarr", orientation="array")
    assert not again.has_orientation
    np.testing.assert_array_equal(again.data, DATA)
    assert again.spacing_mm == pytest.approx(source.spacing_mm)


def without(name):
    return lambda image: image["axes"].__delitem__("zyx".index(name))


def put(place, value):
    *way, last = place

    def change(image):
        for step in way:
            image = image[step]
        image[last] = value

    return change


LEVEL = ("datasets", 0)
FIRST = (*LEVEL, "coordinateTransformations", 0)


@pytest.mark.parametrize(
    ("change", "rule", "remedy"),
    [
        (without("z"), "axes of space x, y and z, found the axes y, x", "one 3D image"),
        (put(("axes", 0, "type"), "channel"), "axes of space x, y and z, found", "3D"),
        (put(("axes", 0, "name"), "y"), "axes of space x, y and z, found the axes y, y, x", "3D"),
        (put(("axes", 0, "unit"), "parsec"), "unit of the axis z must be .*, found parsec", "."),
        (put((*LEVEL, "path"), "../b.zarr/0"), "must lie in the folder of the image", "again"),
        (put(FIRST, {"type": "affine"}), "must be scale and translation, found affine", "convert"),
        (put(FIRST, {"type": "scale", "path": "s"}), "be scale and translation, found sc", "."),
        (put(FIRST, {"type": "identity"}), "have no scale, so the voxel size", "again"),
        (
            put(FIRST, {"type": "scale", "scale": [1, 1]}),
            "lack what OME-Zarr needs .*2 numbers for 3",
            "again",
        ),
        (put(FIRST, {"type": "scale", "scale": [1, 0, 1]}), "finite and invertible", "scale"),
        (put(("axes",), None), "lack what OME-Zarr needs .TypeError", "again"),
        (put(("axes",), [3]), "lack what OME-Zarr needs .TypeError", "again"),
        (put(("datasets",), []), "lack what OME-Zarr needs .IndexError", "again"),
        (put((*LEVEL, "path"), "none"), "not a readable OME-Zarr", "again"),
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_metadata_that_would_be_misread_are_refused(
    tmp_path, refused, version, change, rule, remedy
):
    path = write_ome(tmp_path / "a.ome.zarr", DATA, LPS, version=version)
    file, image = metadata_of(path)
    changed_json(file, lambda content: change(image(content)))
    with refused(path, rule, remedy):
        read_volume(path)


@pytest.mark.parametrize("order", ["czyx", "tzyx"])
def test_several_channels_or_times_are_refused(tmp_path, refused, order):
    path = write_ome(tmp_path / "a.zarr", DATA, LPS, names=order)
    shape = (2, *DATA.T.shape)
    zarr.create_array(
        path / "scale0" / "image", shape=shape, dtype="i2", chunks=shape, overwrite=True
    )
    with refused(path, f"the axis {order[0]} must have one entry, found 2", "one channel and one"):
        read_volume(path)


def test_folders_of_something_else_are_refused(tmp_path, refused):
    (tmp_path / "a.zarr").mkdir()
    with refused(tmp_path / "a.zarr", "holds neither zarr.json nor .zattrs", "copy it again"):
        read_volume(tmp_path / "a.zarr")
    path = write_ome(tmp_path / "b.zarr" / "0", DATA, LPS)
    same(read_volume(path), LPS)
    assert volume_name(path) == "0"
    (path.parent / "zarr.json").write_text('{"attributes": {"ome": {"version": "0.5"}}}')
    with refused(path.parent, "no multiscales.; it holds 0, zarr.json", "folder of one image"):
        read_volume(path.parent)
    file, _ = metadata_of(path)
    changed_json(file, lambda content: content["attributes"]["ome"].update(version="0.6"))
    with refused(file, "must be 0.4 or 0.5, found 0.6", "Convert"):
        read_volume(path)
    (tmp_path / "c.ome.zarr").write_bytes(b"text")
    with refused(tmp_path / "c.ome.zarr", "it is a file, and OME-Zarr is a folder", "again"):
        read_volume(tmp_path / "c.ome.zarr")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', '{"attributes": 3}', "\ud800"])
@pytest.mark.parametrize("name", ["zarr.json", "scale0/image/zarr.json"])
def test_damaged_json_is_refused(tmp_path, refused, name, content):
    path = write_ome(tmp_path / "a.ome.zarr", DATA, LPS)
    (path / name).write_text(content, errors="surrogatepass")
    with refused(
        path,
        "hold the attributes of a folder as JSON|not a readable OME-Zarr|no multiscales",
        "again",
    ):
        read_volume(path)


def test_damaged_metadata_are_read_or_refused(tmp_path):
    path = write_ome(tmp_path / "a.ome.zarr", DATA, LPS)
    rng = np.random.default_rng(3)
    for name in ("zarr.json", "scale0/image/zarr.json"):
        file = path / name
        good = file.read_bytes()
        for _ in range(60):
            content = bytearray(good)
            for place in rng.integers(0, len(good), 2):
                content[place] = rng.integers(32, 127)
            file.write_bytes(content)
            try:
                assert np.isfinite(read_volume(path).data).all()
            except DataError as error:
                assert str(tmp_path) in error.where
                assert "\n" not in str(error)
        file.write_bytes(good)


def test_nan_is_refused(tmp_path, refused):
    values = DATA.astype(np.float32)
    values[3, 2, 1] = np.nan
    path = write_ome(tmp_path / "a.ome.zarr", values, LPS)
    with refused(path, "must be finite, found 1 NaN", "Repair"):
        read_volume(path)


# The brain of a scan whose background was set to 0: some chunks hold nothing else.
BRAIN = np.zeros((24, 24, 24), np.int16)
BRAIN[5:19, 5:19, 5:19] = np.random.default_rng(1).integers(1, 4000, (14, 14, 14))


def test_chunks_of_background_need_no_file(tmp_path, caplog):
    for version in ("0.4", "0.5"):
        path = write_ome(tmp_path / f"{version}.ome.zarr", BRAIN, LPS, version=version)
        assert len(files_of(path)) < 6**3, "zarr wrote the chunks of background"
        with caplog.at_level(logging.INFO):
            same(read_volume(path), LPS, BRAIN)
        assert "152 of 216 chunks have no file, so that all of each is 0" in caplog.text


def test_chunks_that_are_lost_are_refused(tmp_path, refused):
    whole = {"config": {"write_empty_chunks": True}}
    in_tissue = write_ome(tmp_path / "a.zarr", BRAIN, LPS)
    (in_tissue / "scale0/image/c/2/3/2").unlink()
    border = write_ome(tmp_path / "b.zarr", BRAIN, LPS)
    for layer in range(3):
        shutil.rmtree(border / f"scale0/image/c/{layer}", ignore_errors=True)
    background = write_ome(tmp_path / "c.zarr", BRAIN, LPS, **whole)
    (background / "scale0/image/c/0/0/0").unlink()
    undefined = write_ome(tmp_path / "d.zarr", BRAIN, LPS, version="0.4", fill_value=None, **whole)
    (undefined / "scale0/image/5/5/5").unlink()
    shard = write_ome(tmp_path / "e.zarr", DATA, LPS, shards=(8, 8, 8))
    (shard / "scale0/image/c/0/0/1").unlink()
    for path, rule in (
        (in_tissue, "153 of 216 chunks are missing, at least c/2/3/2 is lost"),
        (border, "of 216 chunks are missing, at least c/2/./. is lost"),
        (background, "1 of 216 chunks are missing, at least c/0/0/0 is lost"),
        (undefined, "1 of 216 chunks are missing, at least 5/5/5 is lost"),
        (shard, "1 of 2 chunks are missing, at least c/0/0/1 is lost"),
    ):
        with refused(path, rule, "Copy the folder again.*write_empty_chunks"):
            read_volume(path)
    shutil.rmtree(in_tissue / "scale0/image/c")
    with refused(in_tissue, "must not all be equal|claims", "."):
        read_volume(in_tissue)


def test_gigabytes_that_hide_in_a_small_folder_are_refused(tmp_path, refused):
    path = write_ome(tmp_path / "a.ome.zarr", DATA, LPS)
    array = path / "scale0" / "image" / "zarr.json"
    changed_json(array, lambda content: content.update(shape=[30000] * 3))
    with refused(path, "claims 54000000000000 bytes of voxels, more than the file", "again"):
        read_volume(path)
    changed_json(array, lambda content: content.update(shape=[600] * 3))
    (path / "scale0" / "image" / "c" / "0" / "0" / "0").write_bytes(bytes(300_000))
    changed_json(array, lambda content: content.update(shape=[1000] * 3))
    with refused(path, "would unpack to 2 GB, which no scan does", "unpack"):
        read_volume(path)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_what_is_written_is_read_by_zarr_as_it_was(tmp_path, codes, dtype):
    data = DATA if dtype is np.int16 else DATA.astype(np.float32) / 7
    affine = affine_of(codes)
    path = tmp_path / "out.ome.zarr"
    write_volume(path, Volume(data, affine))
    same(read_volume(path), affine, data)
    group = zarr.open_group(path, mode="r")
    image = group.attrs["ome"]["multiscales"][0]
    array = group[image["datasets"][0]["path"]]
    assert array.dtype == dtype
    np.testing.assert_array_equal(array[:], data.T)
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]
    assert image["axes"][::-1] == axes_of(affine)
    scale, shift = places_of(affine)
    found = image["datasets"][0]["coordinateTransformations"]
    np.testing.assert_allclose(found[0]["scale"][::-1], scale)
    np.testing.assert_allclose(found[1]["translation"][::-1], shift)
    first = {file: file.read_bytes() for file in files_of(path)}
    write_volume(path, Volume(data, affine))
    assert {file: file.read_bytes() for file in files_of(path)} == first
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_large_volumes_are_written_in_chunks(tmp_path):
    data = np.random.default_rng(0).random((70, 66, 130), np.float32)
    write_volume(tmp_path / "out.ome.zarr", Volume(data, LPS))
    np.testing.assert_array_equal(read_volume(tmp_path / "out.ome.zarr").data, data)
    assert zarr.open_array(tmp_path / "out.ome.zarr" / "0", mode="r").chunks == (64, 64, 64)
    damaged = tmp_path / "out.ome.zarr" / "0" / "c" / "1" / "0" / "0"
    content = bytearray(damaged.read_bytes())
    content[-30] ^= 0x10
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"cut short or damaged .*Copy or export it again"):
        read_volume(tmp_path / "out.ome.zarr")


def test_oblique_axes_are_not_written(tmp_path, refused):
    affine = LPS.copy()
    affine[0, 1] = 0.01
    out = tmp_path / "out.ome.zarr"
    with refused(out, "axes are oblique, and OME-Zarr holds axes along those", "nii.gz"):
        Output(out, tmp_path).check_grid(Volume(DATA, affine))
    with refused(out, "axes are oblique", "nii.gz"):
        write_volume(out, Volume(DATA, affine))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_kind_is_not_replaced(tmp_path, refused):
    out = tmp_path / "out.ome.zarr"
    write_volume(out, Volume(DATA, LPS))
    with refused(out, "exists already", "overwrite"):
        Output(out, tmp_path).check()
    Output(out, tmp_path, overwrite=True).check()
    (out / "zarr.json").unlink()
    (out / "thesis.txt").write_text("mine")
    with refused(out, "holds no zarr.json, so another program wrote it", "another folder"):
        write_volume(out, Volume(DATA, LPS))
    assert (out / "thesis.txt").is_file()


def test_without_the_library_the_extra_is_named(tmp_path, refused, monkeypatch):
    path = write_ome(tmp_path / "a.ome.zarr", DATA, LPS)
    monkeypatch.setitem(sys.modules, "zarr", None)
    rule, remedy = (
        "needs the package zarr, 3 or later, found none",
        r"pip install .distsynth\[zarr\]",
    )
    with refused(path, rule, remedy):
        read_volume(path)
    with refused(tmp_path / "out.ome.zarr", rule, remedy):
        write_volume(tmp_path / "out.ome.zarr", Volume(DATA, LPS))


def test_no_text_is_written(tmp_path):
    write_volume(tmp_path / "out.ome.zarr", Volume(DATA, LPS))
    root = json.loads((tmp_path / "out.ome.zarr" / "zarr.json").read_text())
    assert {*root} == {"attributes", "zarr_format", "node_type"}
    (image,) = root["attributes"]["ome"]["multiscales"]
    assert {*image} == {"axes", "datasets"}
