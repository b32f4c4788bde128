"""What a forward may take, and how windows and tiles are dealt out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import BLOCKS, CONV, CPU, DENSE, assert_same, predictor, random_volume

import distsynth.inference.memory_budget
from distsynth.inference.memory_budget import COPIES, MEGABYTE, evenly, memory_budget, widest_map
from distsynth.presets import preset
from sharding.volumes.tiles import tiles


@pytest.mark.parametrize("method", ["windows", "whole"])
@pytest.mark.parametrize("network", [CONV, BLOCKS], ids=["slices", "blocks"])
def test_neither_memory_nor_batches_change_the_numbers(network, method, monkeypatch):
    model = predictor(network, axes=(0, 1, 2), method=method)
    source = random_volume((24, 22, 21))
    expected = model(source, quiet=True)
    monkeypatch.setattr(
        distsynth.inference.memory_budget, "MEGABYTE", 2**14
    )  # the smallest memory takes a patch
    assert_same(model.stitched(memory_mb=1)(source, quiet=True), expected)
    monkeypatch.undo()
    monkeypatch.setattr(distsynth.inference.memory_budget, "CACHE", 1)
    assert_same(model(source, quiet=True), expected)
    assert np.array_equal(model(source, quiet=True), model(source, quiet=True))


@pytest.mark.parametrize("method", ["windows", "whole"])
@pytest.mark.parametrize("network", [CONV, DENSE, BLOCKS], ids=["conv", "dense", "blocks"])
def test_a_forward_takes_no_more_than_the_memory(network, method):
    wide = {"generator.channels": (64, 64)}
    model = predictor(network | wide, method=method, stride=6, trim=3, memory_mb=4)
    data = model.checkpoint.config.data
    widest = widest_map(model.checkpoint.config.generator, data.patch_size, data.channels)
    sizes = []
    model.generator.register_forward_hook(
        lambda _module, given, _out: sizes.append(given[0][:, 0].numel())
    )
    shape = (30, 31, 20) if data.spatial_dims == 3 else (130, 125, 2)
    model(random_volume(shape), quiet=True)
    assert max(sizes) * widest * COPIES <= 4 * MEGABYTE
    assert max(sizes) * widest * COPIES > 1.5 * MEGABYTE


@pytest.mark.slow
def test_a_patch_goes_through_in_any_case():
    model = predictor(CONV | {"generator.channels": (512, 512)}, memory_mb=1)
    sizes = []
    model.generator.register_forward_hook(
        lambda _module, given, _out: sizes.append(given[0].numel())
    )
    model(random_volume((40, 40, 1)), quiet=True)
    assert max(sizes) <= 16 * 12
    sizes.clear()
    model.stitched(method="windows")(random_volume((16, 17, 2)), quiet=True)
    assert set(sizes) == {16 * 12}


def test_the_widest_map_is_that_of_the_figures():
    floats = {
        "dcgan-1": 24,
        "dcgan-2": 196,
        "fcn-1": 128,
        "fcn-2": 32,
        "dcsrn-l1": 120,
        "unet-7": 8,
    }
    for name, expected in floats.items():
        assert widest_map(preset(name).generator, (64, 64), 1) == 4 * expected, name
    # Its first convolution unfolds 4x4x4 neighbours of one channel in the place of four maps.
    assert widest_map(preset("unet-7").generator, (32, 32, 32), 1) == 4 * 4**3 / COPIES


def test_the_memory_budget_is_a_rule_of_sizes():
    generator = preset("small").generator
    cpu = memory_budget(generator, (64, 64), 1, 512, CPU)
    assert cpu.max_voxels == 512 * MEGABYTE // (4 * 32 * COPIES)
    assert cpu.batch_voxels == distsynth.inference.memory_budget.CACHE // (4 * 32)
    assert cpu.batch_size(64 * 64) == 16
    assert cpu.batch_size(10**9) == 1
    gpu = memory_budget(generator, (64, 64), 1, 512, torch.device("cuda"))
    assert gpu.batch_voxels == gpu.max_voxels == cpu.max_voxels
    little = memory_budget(generator, (64, 64), 1, 1, CPU)
    assert little.batch_voxels == little.max_voxels == MEGABYTE // (4 * 32 * COPIES)


@given(st.integers(1, 200), st.integers(0, 50))
def test_work_is_dealt_evenly(count, most):
    each = evenly(count, most)
    assert 1 <= each <= max(1, most)
    assert math.ceil(count / each) == math.ceil(count / max(1, most))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=3),
    st.integers(0, 4),
    st.integers(1, 9000),
    st.integers(1, 3),
)
def test_tiles_cover_each_voxel_once_with_their_halo(sides, halo, most, multiple):
    sides, halo = [side * multiple for side in sides], halo * multiple
    count = np.zeros(sides, int)
    for tile in tiles(sides, halo, most, multiple):
        count[tile.write] += 1
        voxels = 1
        for side, read, write, inner in zip(sides, tile.read, tile.write, tile.inner, strict=True):
            assert read.start == max(0, write.start - halo)
            assert read.stop == min(side, write.stop + halo)
            assert inner == slice(write.start - read.start, write.stop - read.start)
            assert read.start % multiple == write.start % multiple == 0
            voxels *= read.stop - read.start
        assert voxels <= max(most, (multiple + 2 * halo) ** len(sides))
    assert (count == 1).all()
