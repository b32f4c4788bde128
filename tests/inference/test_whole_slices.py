"""Whole planes against windows, and both against the Stitcher patch by patch."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_networks import BLOCKS, CONV, CPU, DENSE, assert_same, predictor, random_volume

from distsynth.config import with_overrides
from distsynth.errors import ConfigError
from distsynth.inference.memory_budget import memory_budget
from distsynth.inference.predictor import Predictor
from distsynth.inference.stitching import Stitcher
from distsynth.models import build_generator
from distsynth.presets import PAPER_PATCH, PRESETS, preset
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.shards.patches import cut_channels, dense_locations, extend_volume
from sharding.volumes.config import PreprocessConfig

SQUARE = {"data.patch_size": (16, 16), "stitch.stride": 4, "stitch.trim": 6}
RESIDUAL = SQUARE | {
    "generator.family": "residual",
    "generator.features": 6,
    "generator.blocks": 1,
    "generator.norm": "batch",
}
RESIDUAL_DENSE = SQUARE | {
    "generator.family": "residual-dense",
    "generator.features": 5,
    "generator.blocks": 1,
    "generator.layers": 2,
    "generator.growth": 4,
}
RECURSIVE = SQUARE | {
    "generator.family": "recursive",
    "generator.features": 6,
    "generator.recursions": 2,
    "generator.norm": "batch",
}
FEEDBACK = {
    "data.patch_size": (16, 16),
    "generator.family": "feedback",
    "generator.features": 4,
    "stitch.stride": 8,
}
UNET = {
    "data.patch_size": (16, 16),
    "generator.family": "unet",
    "generator.channels": (6, 8, 8),
    "stitch.stride": 8,
}
FCN_2 = UNET | {
    "generator.family": "encoder-decoder",
    "generator.channels": (6, 8),
    "generator.kernels": (3,),
}


HALF = {
    "data.patch_size": (32, 28),
    "data.alignment": 2,
    "generator.family": "half-resolution",
    "generator.features": 6,
    "generator.blocks": 1,
    "stitch.stride": 6,
    "stitch.trim": 8,
}
SHUFFLED = {
    "data.patch_size": (36, 32),
    "data.alignment": 2,
    "generator.family": "residual-unet",
    "generator.channels": (4, 6),
    "generator.encoder_blocks": 1,
    "stitch.stride": 4,
    "stitch.trim": 12,
}
GATED = SHUFFLED | {"generator.family": "gated-unet", "stitch.trim": 8}
HALF_BLOCKS = HALF | {"data.patch_size": (24, 22, 24), "stitch.stride": 6}


def patch_by_patch(model, source):
    """What section 5.2 says, without any short cut."""
    data, stitch = model.checkpoint.config.data, model.checkpoint.config.stitch
    shape, alignment = source.shape, data.alignment
    locations = dense_locations(
        shape, data.patch_size, stitch.stride, stitch.axes, alignment=alignment
    )
    source = extend_volume(source, alignment)
    stitcher = Stitcher(source.shape, data.patch_size, stitch.trim, stitch.weights)
    with torch.inference_mode():
        for row in locations:
            patch = cut_channels(source, data.patch_size, row[None], data.neighbours)
            stitcher.add(model.generator(torch.from_numpy(patch))[:, 0], row[None])
    return stitcher.volume(allow_uncovered=True).numpy()[tuple(map(slice, shape))]


NETWORKS = {
    "conv": CONV,
    "dense": DENSE,
    "blocks": BLOCKS,
    "no norm": CONV | {"generator.norm": "none"},
    "residual": CONV | {"generator.residual": True, "data.neighbours": 2},
    "sharpened": CONV | {"generator.sharpen": "5x5", "generator.kernels": (3, 3, 1)},
    "residual blocks": RESIDUAL,
    "residual dense": RESIDUAL_DENSE,
    "recursive": RECURSIVE,
    "aligned": CONV | {"data.alignment": 2},
    "half resolution": HALF,
    "half resolution, neighbours": HALF | {"data.neighbours": 1},
    "half resolution, blocks": HALF_BLOCKS,
    "half resolution, then U": SHUFFLED,
    "half resolution, gated": GATED,
    "blocks, sharpened": BLOCKS | {"generator.sharpen": "3x3", "generator.kernels": (3, 3, 1)},
}


@pytest.mark.parametrize("weights", ["uniform", "smooth"])
@pytest.mark.parametrize(
    ("network", "axes"),
    [
        *((network, (1,)) for network in NETWORKS),
        *(pytest.param(network, (0, 1, 2), marks=pytest.mark.slow) for network in NETWORKS),
        ("conv", (2, 0)),
    ],
    ids=str,
)
def test_whole_planes_equal_windows(network, axes, weights):
    model = predictor(NETWORKS[network], axes=axes, weights=weights)
    assert model.exact and model.whole_images
    # An odd shape, and the smallest that patches along all axes fit into.
    for shape in ((37, 37, 33), (36, 36, 36)) if "half" in network else ((23, 19, 17), (16,) * 3):
        source = random_volume(shape)
        expected = patch_by_patch(model, source)
        assert_same(model(source, quiet=True), expected)
        assert_same(model.stitched(method="windows")(source, quiet=True), expected)


@pytest.mark.parametrize("method", ["windows", "whole"])
def test_flips_are_averaged(method):
    model = predictor(CONV, method=method, trim=0)
    source = random_volume((18, 17, 5))
    flipped = model.stitched(flips=(0, 2))
    expected = np.mean(
        [
            np.flip(model(np.flip(source, axes), quiet=True), axes)
            for axes in ((), (0,), (2,), (0, 2))
        ],
        axis=0,
    )
    spread = np.empty_like(source)
    assert_same(flipped(source, quiet=True, variance=spread), expected)
    assert (spread.max() > 0) == (method == "windows")
    assert np.abs(expected - model(source, quiet=True)).max() > 1e-3
    mirrored = np.flip(flipped(source, quiet=True), 2)
    assert_same(flipped(np.flip(source, 2), quiet=True), mirrored)
    for flips in ((0, 0), (3,)):
        with pytest.raises(ConfigError, match=r"stitch\.flips must be distinct axes"):
            model.stitched(flips=flips)


def test_trimmed_by_less_than_the_reach_whole_planes_are_not_windows():
    model = predictor(CONV, trim=3)
    source = random_volume((23, 19, 5))
    assert not model.exact and not model.whole_images
    windows, whole = (
        model.stitched(method=method)(source, quiet=True) for method in ("windows", "whole")
    )
    assert np.abs(windows - whole).max() > 1e-4
    assert_same(model(source, quiet=True), windows)
    # More trim changes nothing in whole planes.
    assert_same(model.stitched(trim=4)(source, quiet=True), whole)


def test_cells_that_windows_cut_keep_whole_planes_from_being_windows():
    aligned = predictor(HALF, axes=(2,))
    shifted = predictor(HALF | {"data.alignment": 1, "stitch.stride": 5}, axes=(2,))
    assert aligned.exact and not shifted.exact and not shifted.whole_images
    source = random_volume((33, 31, 3))
    whole = aligned(source, quiet=True)
    assert_same(shifted.stitched(method="whole")(source, quiet=True), whole)
    assert np.abs(shifted(source, quiet=True) - whole).max() > 1e-4


@pytest.mark.parametrize("shape", [(33, 31, 37), (34, 32, 30)], ids=str)
def test_tiles_of_cells_give_the_whole_volume(shape, monkeypatch):
    model = predictor(HALF_BLOCKS)
    source = random_volume(shape)
    whole = model(source, quiet=True)
    budget = memory_budget(model.checkpoint.config.generator, (24, 22, 24), 1, 1, CPU)
    small = replace(budget, max_voxels=24 * 22 * 24, batch_voxels=24 * 22 * 24)
    monkeypatch.setattr("distsynth.inference.predictor.memory_budget", lambda *_: small)
    assert_same(model(source, quiet=True), whole)


def test_the_reach_is_where_a_changed_voxel_shows():
    for name, network in NETWORKS.items():
        if "half" in name:
            continue
        model = predictor(network)
        data = model.checkpoint.config.data
        dims = data.spatial_dims
        source = torch.randn(1, data.channels, *(25,) * dims)
        changed = source.clone()
        changed[(0, slice(None), *(12,) * dims)] += 10
        with torch.inference_mode():
            difference = (model.generator(changed) - model.generator(source))[0, 0]
        reached = (difference != 0).nonzero()
        assert (reached.min(), reached.max()) == (
            12 - model.generator.reach,
            12 + model.generator.reach,
        )


def test_what_depends_on_the_window_has_no_reach():
    for network in (UNET, FCN_2, FEEDBACK, CONV | {"generator.norm": "instance"}):
        model = predictor(network)
        assert model.generator.reach is None
        assert not model.whole_images and model.stitched(method="whole").whole_images


@pytest.mark.parametrize("network", [UNET, FCN_2, FEEDBACK], ids=["unet", "fcn-2", "feedback"])
@pytest.mark.parametrize("shape", [(16, 24, 3), (19, 16, 3)], ids=str)
def test_whole_slices_are_padded_to_what_the_network_takes(network, shape):
    model = predictor(network, method="whole")
    source = random_volume(shape)
    multiple = model.generator.multiple
    far = [(0, -side % multiple) for side in shape[:2]]
    padded = np.pad(source, [*far, (0, 0)], mode="edge")
    padded = torch.from_numpy(padded).permute(2, 0, 1)[:, None]
    with torch.inference_mode():
        expected = model.generator(padded)[:, 0, : shape[0], : shape[1]].permute(1, 2, 0).numpy()
    assert_same(model(source, quiet=True), expected)


@pytest.mark.parametrize("network", [UNET, FCN_2, CONV | {"stitch.trim": 0}, BLOCKS], ids=str)
def test_windows_give_the_numbers_that_they_gave(network):
    model = predictor(network, axes=(0, 2), weights="smooth", method="windows")
    source = random_volume((25, 18, 21))
    assert_same(model(source, quiet=True), patch_by_patch(model, source))


# The paper's presets are stitched as the paper does; dcsrn and fcn-1 see further than 4 voxels.
WHOLE = {"small"}
ALWAYS_WHOLE = {"quick", "best", "best-gpu"}


@pytest.mark.parametrize("name", PRESETS)
def test_whole_slices_by_preset(name):
    config = with_overrides(preset(name), {"data.alignment": 1})
    generator = build_generator(config.generator, PAPER_PATCH)
    record = DataRecord("sha", PreprocessConfig(), (1.0,) * 3, "RAS", {}, ())
    model = Predictor(Checkpoint(config, record, Position(), {}, [], {}), generator, CPU)
    assert config.stitch.method == ("whole" if name in ALWAYS_WHOLE else "auto")
    assert model.whole_images == (name in WHOLE or name in ALWAYS_WHOLE)
    reach = {"dcgan-1": 5, "dcgan-2": 8, "dcgan-3": 10, "fcn-1": 9, "dcsrn-l1": 6, "small": 7}
    if name in reach:
        assert generator.reach == reach[name]
        assert model.stitched(trim=generator.reach, stride=16).whole_images
        assert not model.stitched(trim=generator.reach - 1, stride=16).whole_images


@pytest.mark.parametrize("method", ["windows", "whole"])
def test_a_slice_is_no_smaller_than_a_patch(method):
    model = predictor(CONV, method=method)
    with pytest.raises(ConfigError, match="stitch: patches of 16x12 cut along axis 2 do not fit"):
        model(random_volume((16, 11, 3)), quiet=True)
    thin = predictor(CONV, method=method).stitched(axes=(0, 1, 2))
    with pytest.raises(ConfigError, match=r"along axis 0 do not fit.*; --stitch\.axes 2 would"):
        thin(random_volume((20, 18, 7)), quiet=True)


def test_any_array_serves_as_source():
    model = predictor(CONV)
    source = random_volume((20, 18, 7))
    fixed = source.copy()
    fixed.setflags(write=False)
    expected = model(source, quiet=True)
    assert np.array_equal(model(fixed, quiet=True), expected)
    assert np.array_equal(model(np.asfortranarray(source), quiet=True), expected)
    flipped = np.ascontiguousarray(source[::-1, :, ::-1])[::-1, :, ::-1]
    assert np.array_equal(model(flipped, quiet=True), expected)


def test_progress_counts_forwards(caplog):
    caplog.set_level(logging.INFO, "sharding.io.progress")
    model = predictor(CONV, axes=(0, 1, 2))
    source = random_volume((20, 20, 20))
    calls = []
    model.generator.register_forward_hook(lambda *_: calls.append(1))
    for method in ("windows", "whole"):
        calls.clear()
        caplog.clear()
        model.stitched(method=method)(source, title="going")
        assert f"going: {len(calls)}/{len(calls)}, " in caplog.text


def test_methods_and_memory_have_rules():
    model = predictor(CONV)
    with pytest.raises(ConfigError, match=r"stitch\.method"):
        model.stitched(method="quick")
    with pytest.raises(ConfigError, match=r"stitch\.memory_mb must be >= 1, got 0"):
        model.stitched(memory_mb=0)
