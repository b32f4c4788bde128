"""What windows disagree about, against sums patch by patch; and predictions without windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distsynth.config import RunConfig, with_overrides
from distsynth.inference.predictor import Predictor
from distsynth.inference.sliding_window import VOXEL_BYTES
from distsynth.inference.stitching import Stitcher
from distsynth.inference.windows import overlap, without_windows
from distsynth.models import build_generator
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.shards.patches import cut_channels, dense_locations
from sharding.volumes.config import PreprocessConfig

UNET = {
    "data.patch_size": (16, 16),
    "generator.family": "unet",
    "generator.channels": (6, 8, 8),
    "stitch.stride": 6,
}
BLOCKS = UNET | {"data.patch_size": (8, 8, 8), "stitch.stride": 4}
SHAPE = (23, 19, 17)


def predictor(changes, **stitch):
    """A generator of random weights."""
    stitching = {f"stitch.{name}": value for name, value in stitch.items()}
    config = with_overrides(
        RunConfig(), {"data.neighbours": 0, "data.alignment": 1, **changes, **stitching}
    )
    torch.manual_seed(3)
    generator = build_generator(config.generator, config.data.sides, config.data.channels)
    record = DataRecord("sha", PreprocessConfig(), (1.0, 1.0, 1.0), "RAS", {}, ())
    checkpoint = Checkpoint(config, record, Position(), {}, [], {})
    return Predictor(checkpoint, generator.eval(), torch.device("cpu"))


def source_volume():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def sums_patch_by_patch(model, source):
    """Sums over all windows of w, w², w x and w x² at each voxel."""
    data, stitch = model.checkpoint.config.data, model.checkpoint.config.stitch
    locations = dense_locations(source.shape, data.sides, stitch.stride, stitch.axes)
    first, second, squared = (
        Stitcher(source.shape, data.sides, stitch.trim, stitch.weights) for _ in range(3)
    )
    with torch.inference_mode():
        for row in locations:
            patch = cut_channels(source, data.sides, row[None], data.neighbours)
            made = model.generator(torch.from_numpy(patch))[:, 0].double()
            first.add(made, row[None])
            second.add(made.square(), row[None])
            # A window of its own, whose weights are squared and summed.
            alone = Stitcher(source.shape, data.sides, stitch.trim, stitch.weights)
            alone.add(made, row[None])
            squared.weight += alone.weight.square()
    return first.weight, squared.weight, first.total, second.total


@pytest.mark.parametrize(
    ("network", "stitch"),
    [
        (UNET, {}),
        (UNET, {"axes": (1,), "trim": 2}),
        (UNET, {"weights": "smooth"}),
        (UNET, {"axes": (0, 2), "weights": "smooth", "trim": 1}),
        (BLOCKS, {"weights": "smooth"}),
    ],
)
def test_variance_and_freedom_are_those_of_all_windows(network, stitch):
    model, source = predictor(network, **stitch), source_volume()
    variance = np.full(SHAPE, np.nan, np.float32)
    synthetic = model(source, quiet=True, variance=variance)
    np.testing.assert_array_equal(synthetic, model(source, quiet=True))
    weight, squares, total, second = (part.numpy() for part in sums_patch_by_patch(model, source))
    mean = total / weight
    expected = second / weight - mean**2
    np.testing.assert_allclose(variance, expected, rtol=1e-4, atol=1e-9)
    found = overlap(model, variance)
    np.testing.assert_allclose(found.freedom[:, :, :], 1 - squares / weight**2, atol=1e-6)
    assert found.disagreement() > 0.001


def test_sums_kept_in_slabs_give_the_same_variance():
    """So little memory that an image's sums are worked on plane by plane."""
    source = np.tile(source_volume()[:, :, :2], (9, 10, 1))
    assert source[:, :, 0].size * (VOXEL_BYTES + 4) > 2**20
    found = []
    for memory in (1, 512):
        variance = np.empty_like(source)
        predictor(UNET, memory_mb=memory)(source, quiet=True, variance=variance)
        found.append(variance)
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-8)


def test_windows_that_see_all_that_counts_agree():
    network = {
        "data.patch_size": (16, 16),
        "generator.channels": (4,),
        "generator.kernels": (3, 3),
        "stitch.stride": 6,
        "stitch.trim": 2,
    }
    model = predictor(network, method="windows")
    variance = np.empty(SHAPE, np.float32)
    model(source_volume(), quiet=True, variance=variance)
    assert overlap(model, variance).disagreement() < 1e-6
    cut_off = model.stitched(trim=0)
    cut_off(source_volume(), quiet=True, variance=variance)
    assert overlap(cut_off, variance).disagreement() > 1e-3


def test_the_reference_is_the_same_generator_on_whole_slices():
    model = predictor(UNET)
    reference = without_windows(model, SHAPE)
    assert reference is not None
    assert reference.generator is model.generator
    assert reference.whole_images
    assert without_windows(reference, SHAPE) is None
    assert np.abs(reference(source_volume(), quiet=True) - model(source_volume(), quiet=True)).max()


def test_blocks_have_a_reference_only_where_the_volume_fits_one_forward():
    model = predictor(BLOCKS)
    assert without_windows(model, SHAPE) is not None
    assert without_windows(model, (2000, 2000, 2000)) is None
