"""Slab by slab and on disk, volumes give what they give whole and in memory."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

import sharding.volumes.slabs
from distsynth.config import RunConfig, with_overrides
from distsynth.inference.predictor import load_predictor
from distsynth.models import build_generator
from distsynth.prediction.file import FileOptions, predict_file
from distsynth.runs.checkpoint import Checkpoint, Position, save_checkpoint
from distsynth.runs.data_record import DataRecord
from sharding.io.errors import DataError
from sharding.simulation.phantom import phantom_volume
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.resample import resample
from sharding.volumes.slabs import Scratch, by_slabs, filter_lines, planes, slabs
from sharding.volumes.volume import Volume, read_volume, write_volume

NETWORKS = {
    "whole slices": {},
    "windows": {"stitch.method": "windows"},
    "smooth windows, all axes": {
        "stitch.method": "windows",
        "stitch.weights": "smooth",
        "stitch.axes": (0, 1, 2),
    },
    "neighbours": {"data.neighbours": 1, "stitch.axes": (0, 2)},
    "whole blocks": {"data.patch_size": (12, 12, 12)},
    "block windows": {"data.patch_size": (12, 12, 12), "stitch.method": "windows"},
}
LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
import sharding.volumes.slabs
from distsynth.inference.predictor import load_predictor
from distsynth.prediction.file import predict_file
megabytes, memory_mb = int(sys.argv[1]), int(sys.argv[2])
sharding.volumes.slabs.SLAB = 2**19
model = load_predictor(sys.argv[3], "cpu").stitched(memory_mb=memory_mb)
model(np.zeros((24, 24, 24), np.float32), quiet=True)
now = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1])
most = now * 1024 + megabytes * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
predict_file(model, Path(sys.argv[4]), Path(sys.argv[5]))
"""


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Every array in a file, worked on in slabs of a few planes."""
    monkeypatch.setattr(sharding.volumes.slabs, "SLAB", 2000)
    return Scratch(tmp_path, most=0)


def checkpoint(folder, changes, reach=1):
    """A generator of random weights, whose patches fit into small volumes."""
    config = with_overrides(
        RunConfig(),
        {
            "data.patch_size": (12, 12),
            "data.neighbours": 0,
            "data.alignment": 1,
            "generator.channels": (3,) * reach,
            "generator.kernels": (3,) * reach,
            "stitch.stride": 6,
            "stitch.trim": 2 + reach,
        }
        | changes,
    )
    torch.manual_seed(1)
    network = build_generator(config.generator, config.data.patch_size, config.data.channels)
    record = DataRecord("sha", PreprocessConfig(), (0.2,) * 3, "RAS", {"a": "train"}, ("seen",))
    learners = {"generator": {"network": network.state_dict()}}
    path = folder / "network.pt"
    save_checkpoint(path, Checkpoint(config, record, Position(), learners, [], {}))
    return path


def maps_of(folder):
    """What this process maps of a folder's files."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(folder) in line]


def oblique(volume, angle, spacing, shift):
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [angle, angle / 2, -angle], degrees=True).as_matrix()
    affine[:3, :3] = turn * np.multiply(spacing, volume.spacing_mm)
    affine[:3, 3] = volume.affine[:3, 3] + shift
    return affine


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(-1, 2), st.integers(1, 3000)
)
def test_slabs_touch_and_cover(shape, along, voxels):
    along = min(along, len(shape) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.volumes.slabs, "SLAB", voxels)
        found = list(slabs(shape, along))
    assert found[0][along].start == 0 and found[-1][along].stop == shape[along]
    assert all(one[along].stop == two[along].start for one, two in pairwise(found))
    plane = math.prod(shape) // shape[along]
    for slab in found:
        sizes = [part.stop - part.start for part in slab]
        assert math.prod(sizes) <= max(voxels, plane)
        del sizes[along]
        assert sizes == [size for dim, size in enumerate(shape) if dim != along % len(shape)]


def test_small_arrays_stay_in_memory_and_large_ones_leave_no_name(tmp_path):
    scratch = Scratch(tmp_path, most=400)
    small, large = scratch((10, 10)), scratch((10, 11))
    assert small.flags.c_contiguous and large.flags.f_contiguous
    assert small.dtype == large.dtype == np.float32
    large[...] = np.arange(110).reshape(10, 11)
    assert not list(tmp_path.iterdir())
    (mapped,) = maps_of(tmp_path)
    assert "(deleted)" in mapped
    assert large.sum() == 110 * 109 / 2
    del large
    assert not maps_of(tmp_path)


def test_a_mask_lies_where_its_volume_does(tmp_path):
    scratch = Scratch(tmp_path, most=400)
    small, large = scratch((10, 10), bool), scratch((10, 11), bool)
    assert small.flags.c_contiguous and large.flags.f_contiguous
    assert len(maps_of(tmp_path)) == 1
    assert small.dtype == large.dtype == bool


def test_a_full_disk_is_told_before_anything_is_written(tmp_path):
    """A limit on the size of files stands for a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(DataError, match=r"no room for 4 MB of a volume.*memory-mb") as caught:
            Scratch(tmp_path, most=0)((2**10, 2**10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_file_is_read_to_the_bit(suffix, dtype, on_disk, tmp_path, monkeypatch):
    import nibabel as nib

    data = np.random.default_rng(0).integers(-999, 999, (13, 17, 19)).astype(dtype)
    image = nib.Nifti1Image(data, np.diag([0.3, 0.4, 0.5, 1]))
    image.header.set_slope_inter(0.37 if dtype is np.int16 else 1, 11.1 if dtype is np.int16 else 0)
    nib.save(image, tmp_path / f"a{suffix}")
    read = read_volume(tmp_path / f"a{suffix}", empty=on_disk).data
    assert np.array_equal(read, np.asarray(nib.load(tmp_path / f"a{suffix}").dataobj, np.float32))
    monkeypatch.undo()
    assert np.array_equal(read, read_volume(tmp_path / f"a{suffix}").data)


def test_intensities_are_fitted_alike(on_disk):
    data = np.random.default_rng(1).lognormal(size=(31, 23, 29)).astype(np.float32)
    found = IntensityTransform.fit(data, (0.5, 99), on_disk)
    low, high = np.percentile(data, (0.5, 99))
    assert (found.low, found.high) == (low, high)
    scaled = (np.clip(data, low, high) - low) / (high - low)
    assert found.mean == pytest.approx(scaled.mean(dtype=float), rel=1e-6)
    assert found.std == pytest.approx(scaled.std(dtype=float), rel=1e-6)
    standard = found.standardise_scaled(found.scale(data, on_disk), on_disk)
    assert np.array_equal(standard, found.standardise(data))
    assert np.array_equal(found.restore(standard, on_disk), found.restore(standard))


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(
    ("angle", "spacing"),
    [(0, (1, 1, 1)), (0, (0.5, 0.7, 1)), (0, (2.5, 1, 1.7)), (20, (0.9, 1, 1.1))],
    ids=["shifted", "finer", "coarser", "turned"],
)
def test_resampling_is_that_of_scipy(angle, spacing, order, on_disk, monkeypatch):
    volume = phantom_volume((24, 21, 26), seed=2, spacing_mm=0.2)
    shape, affine = (19, 22, 17), oblique(volume, angle, spacing, (0.13, -0.05, 0.31))
    found = resample(volume, shape, affine, order, on_disk)
    monkeypatch.undo()
    whole = resample(volume, shape, affine, order)
    data, matrix = volume.data, np.linalg.inv(volume.affine) @ affine
    steps = np.abs(matrix[:3, :3]).max(axis=1)
    if order and (steps > 1.01).any():
        data = ndimage.gaussian_filter(
            data, np.where(steps > 1.01, steps / 2.355, 0), mode="nearest"
        )
    expected = ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=order, mode="nearest"
    )
    tolerance = 1e-5 * np.ptp(expected)
    if order:
        np.testing.assert_allclose(whole, expected, atol=tolerance)
    # Voxels half way between two may go to either.
    assert np.mean(np.abs(whole - expected) > tolerance) < 0.01
    assert np.mean(np.abs(found - whole) > tolerance) < 0.01


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12), st.integers(1, 400))
def test_lines_are_filtered_whole(x, y, z, voxels):
    data = np.random.default_rng(x).normal(size=(x, y, z))
    found = data.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.volumes.slabs, "SLAB", voxels)
        filter_lines(
            lambda lines, axis, out: np.cumsum(lines, axis, out=out),
            found,
        )
        doubled = by_slabs(lambda slab: 2 * slab, data)
    np.testing.assert_allclose(found, data.cumsum(0).cumsum(1).cumsum(2))
    assert np.array_equal(doubled, (2 * data).astype(np.float32))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_prediction_on_disk_is_that_in_memory(network, on_disk, tmp_path, monkeypatch):
    model = load_predictor(checkpoint(tmp_path, NETWORKS[network]), "cpu")
    source = np.random.default_rng(3).normal(size=(25, 19, 22)).astype(np.float32)
    kept = on_disk(source.shape)
    kept[...] = source
    found = model(kept, quiet=True, empty=on_disk)
    monkeypatch.undo()
    expected = model(source, quiet=True)
    if network.startswith("whole") or "windows" in network:
        assert np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_block_windows_beyond_the_memory_are_summed_on_disk(on_disk, tmp_path, monkeypatch):
    model = load_predictor(checkpoint(tmp_path, NETWORKS["block windows"]), "cpu")
    source = np.random.default_rng(3).normal(size=(25, 19, 22)).astype(np.float32)
    expected = model(source, quiet=True)
    monkeypatch.setattr("distsynth.inference.sliding_window.MEGABYTE", 1)
    np.testing.assert_allclose(model(source, quiet=True, empty=on_disk), expected, atol=1e-5)


@pytest.mark.parametrize("like", [False, True], ids=["own grid", "like"])
def test_a_file_on_disk_is_predicted_like_one_in_memory(like, tmp_path, monkeypatch):
    path = checkpoint(tmp_path, {})
    volume = phantom_volume((30, 28, 26), seed=4, spacing_mm=0.4)
    turned = Volume(volume.data, oblique(volume, 10, (1, 1, 1), 0))
    write_volume(tmp_path / "a.nii.gz", turned)
    write_volume(tmp_path / "like.nii.gz", volume)
    options = FileOptions(like=tmp_path / "like.nii.gz" if like else None)
    model = load_predictor(path, "cpu")
    predict_file(model, tmp_path / "a.nii.gz", tmp_path / "memory.nii.gz", options)
    monkeypatch.setattr(sharding.volumes.slabs, "SLAB", 2000)
    monkeypatch.setattr("distsynth.prediction.file.MEGABYTE", 1)
    # Its folder is made, as in memory.
    predict_file(model, tmp_path / "a.nii.gz", tmp_path / "new" / "disk.nii.gz", options)
    one, two = (read_volume(tmp_path / f"{name}.nii.gz") for name in ("memory", "new/disk"))
    assert np.array_equal(one.affine, two.affine)
    np.testing.assert_allclose(two.data, one.data, atol=1e-4 * np.ptp(one.data))
    names = {found.name for found in tmp_path.iterdir()}
    assert names == {
        "a.nii.gz",
        "like.nii.gz",
        "memory.json",
        "memory.nii.gz",
        "new",
        path.name,
    }
    new = sorted(found.name for found in (tmp_path / "new").iterdir())
    assert new == ["disk.json", "disk.nii.gz"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["whole slices", "windows", "whole blocks", "block windows"])
def test_a_volume_larger_than_its_memory_streams_through(network, tmp_path):
    """Under a limit on the memory of a process that its arrays exceed several times."""
    changes = NETWORKS[network] | {"stitch.stride": 12 - 2 * 3, "generator.channels": (2,)}
    path = checkpoint(tmp_path, changes)
    voxels = (192, 192, 160)
    data = np.add.outer(np.add.outer(np.arange(192.0), np.arange(192.0)), np.arange(160.0))
    data += 50 * np.random.default_rng(0).random(voxels)
    write_volume(tmp_path / "a.nii", Volume(data.astype(np.float32), np.diag([0.2] * 3 + [1.0])))

    def limited(memory_mb, out):
        command = [sys.executable, "-c", LIMITED, "100", str(memory_mb), path, tmp_path / "a.nii"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        return subprocess.run(
            [*map(str, command), str(out)], capture_output=True, text=True, env=environment
        )

    if network == "windows":  # the limit is one
        refused = limited(4096, tmp_path / "memory.nii")
        assert refused.returncode and "llocate" in refused.stderr, refused.stderr
    done = limited(8, tmp_path / "disk.nii")
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_volume(tmp_path / "disk.nii").shape == voxels


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_are_copied_without_the_volume(axis):
    data = np.asfortranarray(np.random.default_rng(0).random((40, 41, 42), np.float32))
    tracemalloc.start()
    try:
        found = planes(data, [3, 17], axis)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, np.take(data, [3, 17], axis))
    assert not np.shares_memory(found, data)
    assert peak < data.nbytes / 4
