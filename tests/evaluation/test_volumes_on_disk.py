"""Evaluations and pages of volumes that lie on disk: the same numbers, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import distsynth.metrics.risk_coverage
import sharding.volumes.slabs
from benchmarks.large_volumes import write_cohort
from distsynth.config import RunConfig, with_overrides
from distsynth.evaluation.evaluate import evaluate
from distsynth.evaluation.ranked_voxels import count_voxels, voxels_of_ranks
from distsynth.inference.predictor import Predictor
from distsynth.metrics.risk_coverage import risk_coverage
from distsynth.metrics.views import Outside
from distsynth.models import build_generator
from distsynth.reporting.specimen_pictures import show_specimens
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import read_cohort
from sharding.volumes.holes import fill_holes
from sharding.volumes.slabs import Scratch

NETWORK = {
    "data.patch_size": (16, 16),
    "data.neighbours": 0,
    "data.alignment": 1,
    "generator.channels": (4,),
    "generator.kernels": (3,),
    "stitch.stride": 8,
    "stitch.trim": 2,
    "stitch.method": "windows",
    "stitch.axes": (0, 2),
    "stitch.flips": (1,),
}
LIMITED = """
import resource, sys
from pathlib import Path
import sharding.volumes.slabs
from benchmarks.large_volumes import run
small, large = map(Path, sys.argv[1:3])
run("evaluate", small)
run("report", small)
rows = open("/proc/self/status")
now = int(next(row for row in rows if row.startswith("VmData")).split()[1]) * 1024
most = now + int(sys.argv[3]) * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
sharding.volumes.slabs.SLAB = 2**16
sharding.volumes.slabs.MOST_IN_MEMORY = int(sys.argv[4]) * 2**20
run(sys.argv[5], large)
"""


@pytest.fixture(scope="module")
def model(shard_folder):
    config = with_overrides(RunConfig(), NETWORK)
    torch.manual_seed(1)
    generator = build_generator(config.generator, config.data.sides, config.data.channels)
    data = DataRecord.of(ShardSet(shard_folder).manifest)
    checkpoint = Checkpoint(config, data, Position(), {}, [], {})
    return Predictor(checkpoint, generator.eval(), torch.device("cpu"), name="model")


def small_slabs():
    patch = pytest.MonkeyPatch()
    patch.setattr(sharding.volumes.slabs, "SLAB", 2000)
    return patch


def test_an_evaluation_on_disk_has_the_numbers_of_one_in_memory(
    model, phantom_cohort, tmp_path, monkeypatch
):
    specimens = read_cohort(phantom_cohort)
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path / "memory"))
    expected = evaluate({"model": model}, specimens, conventions=True)
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path / "disk"))
    monkeypatch.setattr(sharding.volumes.slabs, "SLAB", 2000)
    scratch = Scratch(tmp_path / "scratch", most=0)
    found = evaluate({"model": model}, specimens, conventions=True, empty=scratch)
    assert found.results.keys() == expected.results.keys()
    assert "aurc" in expected.results["model"][expected.specimens[0]]
    for method, specimen in ((m, s) for m, rows in expected.results.items() for s in rows):
        row = found.results[method][specimen]
        assert row == pytest.approx(expected.results[method][specimen], rel=1e-4, nan_ok=True)
    for method, by_specimen in expected.conventions.items():
        for specimen, by_convention in by_specimen.items():
            for convention, values in by_convention.items():
                own = found.conventions[method][specimen][convention]
                assert own == pytest.approx(values, rel=1e-4, nan_ok=True)
    for one, other in zip(found.examples, expected.examples, strict=True):
        np.testing.assert_array_equal(one.target, other.target)
        for method in other.synthetic:
            np.testing.assert_allclose(one.synthetic[method], other.synthetic[method], atol=1e-4)


def test_a_page_of_volumes_on_disk_shows_what_one_in_memory_shows(
    model, phantom_cohort, tmp_path, monkeypatch
):
    specimens = read_cohort(phantom_cohort)
    expected = show_specimens({"model": model}, specimens, most=1)
    monkeypatch.setattr(sharding.volumes.slabs, "SLAB", 2000)
    scratch = Scratch(tmp_path, most=0)
    found = show_specimens({"model": model}, specimens, most=1, empty=scratch)
    (one,), (other,) = found.slices, expected.slices
    assert (*one.window, one.limit) == pytest.approx((*other.window, other.limit), rel=1e-5)
    for ours, theirs in zip(one.axes, other.axes, strict=True):
        assert (ours.indices, ours.central) == (theirs.indices, theirs.central)
        pictures = chain(ours.synthetic.values(), [ours.source, ours.target])
        others = chain(theirs.synthetic.values(), [theirs.source, theirs.target])
        for picture, there in zip(pictures, others, strict=True):
            assert np.abs(picture.astype(int) - there).max() <= 1
    assert len(found.checks) == len(expected.checks) == 2


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(2, 9)] * 3),
    st.floats(0.2, 0.8),
    st.integers(1, 200),
    st.integers(0, 99),
)
def test_holes_are_those_of_scipy(shape, share, voxels, seed):
    mask = np.random.default_rng(seed).random(shape) < share
    expected = ndimage.binary_fill_holes(mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding.volumes.slabs, "SLAB", voxels)
        fill_holes(mask)
    np.testing.assert_array_equal(mask, expected)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 200), st.integers(0, 99))
def test_ranks_are_those_of_the_flat_mask(shape, voxels, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.6
    for region, inside in ((mask, mask), (Outside(mask), ~mask)):
        flat = np.flatnonzero(inside)
        ranks = np.sort(rng.choice(len(flat), len(flat) // 2, replace=False))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding.volumes.slabs, "SLAB", voxels)
            assert count_voxels(region) == len(flat)
            found = voxels_of_ranks(region, ranks)
        np.testing.assert_array_equal(np.ravel_multi_index(found, shape), flat[ranks])


def test_uncertainties_in_levels_rank_as_they_do_each_by_itself(monkeypatch):
    rng = np.random.default_rng(0)
    error = rng.normal(size=(40, 30, 20)).astype(np.float32)
    uncertainty = np.abs(error + rng.normal(size=error.shape)).astype(np.float32)
    mask = rng.random(error.shape) < 0.7
    expected = risk_coverage(error, uncertainty, mask)
    monkeypatch.setattr(distsynth.metrics.risk_coverage, "EXACT", 0)
    monkeypatch.setattr(sharding.volumes.slabs, "SLAB", 2000)
    found = risk_coverage(error, uncertainty, mask)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-4)
    np.testing.assert_allclose(found.oracle[1:], expected.oracle[1:], rtol=2e-4)
    np.testing.assert_allclose(found.risk[20:], expected.risk[20:], rtol=1e-2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_volumes_larger_than_memory_are_evaluated_and_shown(command, tmp_path):
    """Under a limit on the memory of a process that its arrays exceed several times."""
    small, large = tmp_path / "small", tmp_path / "large"
    for folder, side in ((small, 64), (large, 128)):
        folder.mkdir()
        write_cohort(folder, side)

    def limited(most):
        program = [sys.executable, "-c", LIMITED, str(small), str(large), "64", str(most), command]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "DISTSYNTH_CACHE": str(tmp_path / "cache"),
        }
        return subprocess.run(program, capture_output=True, text=True, env=environment)

    if command == "evaluate":  # the limit is one
        refused = limited(64)
        assert refused.returncode and "llocate" in refused.stderr, refused.stderr[-2000:]
    done = limited(0)
    assert done.returncode == 0, done.stderr[-2000:]
