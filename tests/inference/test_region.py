"""Prediction where the scan has data alone is there what the whole prediction is."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scans import SPACING, padded, scan

from distsynth.config import RunConfig, with_overrides
from distsynth.inference import region
from distsynth.inference.ensemble import ensemble
from distsynth.inference.predictor import Predictor
from distsynth.inference.region import find_region
from distsynth.inference.scan import prediction_grid
from distsynth.models import build_generator
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.volume import Volume

pytestmark = pytest.mark.slow

PLAIN = {
    "data.patch_size": (16, 16),
    "data.neighbours": 0,
    "data.alignment": 1,
    "generator.channels": (4, 4),
    "generator.kernels": (3,),
    "generator.norm": "none",
    "stitch.stride": 7,
    "stitch.trim": 0,
}
UNET = {
    "generator.family": "unet",
    "generator.channels": (3, 4),
    "generator.norm": "none",
    "data.patch_size": (16, 16),
    "data.neighbours": 0,
    "data.alignment": 1,
    "stitch.stride": 8,
    "stitch.trim": 0,
}
HALF = {
    "generator.family": "half-resolution",
    "generator.features": 4,
    "generator.blocks": 1,
    "generator.norm": "layer",
    "data.patch_size": (24, 24),
    "data.neighbours": 1,
    "data.alignment": 2,
    "stitch.stride": 6,
    "stitch.trim": 8,
}
BLOCKS = PLAIN | {"data.patch_size": (12, 12, 12), "stitch.stride": 6}


def predictor(values, intensities="standardise", seed=1, **stitch):
    config = with_overrides(RunConfig(), values | {f"stitch.{k}": v for k, v in stitch.items()})
    torch.manual_seed(seed)
    generator = build_generator(config.generator, config.data.sides, config.data.channels)
    data = DataRecord(
        "sha", PreprocessConfig(intensities=intensities), (SPACING,) * 3, "RAS", {}, ()
    )
    checkpoint = Checkpoint(config, data, Position(), {}, [], {})
    return Predictor(checkpoint, generator.eval(), torch.device("cpu"))


@pytest.fixture(scope="module")
def source():
    """A specimen off the middle of a wide field of view, with little noise."""
    wide = padded(scan(21, noise=0.005), 24)
    return Volume(np.ascontiguousarray(wide.data[10:, :-8, 4:-3]), wide.affine)


def grid_of(source):
    return prediction_grid(source, (SPACING,) * 3, "RAS")


CASES = {
    "whole slices": (PLAIN, {"method": "whole"}),
    "windows": (PLAIN, {"method": "windows", "weights": "smooth"}),
    "trimmed windows": (PLAIN, {"method": "windows", "trim": 3}),
    "three axes": (PLAIN, {"method": "windows", "axes": (0, 1, 2)}),
    "three axes of whole slices": (PLAIN, {"method": "whole", "axes": (0, 1, 2)}),
    "another axis": (PLAIN, {"method": "whole", "axes": (1,)}),
    "flips": (PLAIN, {"method": "windows", "flips": (0, 1)}),
    "half resolution, 2.5D": (HALF, {}),
    "half resolution, windows, flipped": (HALF, {"method": "windows", "flips": (0,)}),
    "a U-Net's windows": (UNET, {"method": "windows", "flips": (1,)}),
    "blocks": (BLOCKS, {"method": "windows"}),
    "whole blocks": (BLOCKS, {"method": "whole"}),
}


@pytest.mark.parametrize("case", CASES)
def test_within_the_region_it_is_the_whole_prediction(case, source):
    values, stitch = CASES[case]
    model = predictor(values, **stitch)
    found = find_region(model, source, grid_of(source))
    assert found.exact
    assert np.prod(found.read_shape) < 0.8 * np.prod(found.shape)
    whole, part = (model.predict(source, region=only) for only in (False, True))
    np.testing.assert_allclose(part.affine, whole.affine)
    width = np.ptp(whole.data)
    np.testing.assert_allclose(part.data[found.kept], whole.data[found.kept], atol=1e-4 * width)
    outside = np.ones(found.shape, bool)
    outside[found.kept] = False
    low = np.percentile(source.data, 0.1)
    np.testing.assert_allclose(part.data[outside], low, atol=1e-4 * width)


def test_without_its_margin_the_region_would_differ(source, monkeypatch):
    """So the test above can fail."""
    model = predictor(PLAIN, method="windows", trim=0)
    whole = model.predict(source)
    monkeypatch.setattr(region, "_margin", lambda *_: (0, 1, 16))
    found = find_region(model, source, grid_of(source))
    part = model.predict(source, region=True)
    apart = np.abs(part.data[found.kept] - whole.data[found.kept]).max()
    assert apart > 1e-3 * np.ptp(whole.data)


def test_the_region_holds_the_specimen_and_what_the_network_sees_of_it(source):
    model = predictor(PLAIN, method="whole")
    reach = model.generator.reach
    assert reach is not None
    found = find_region(model, source, grid_of(source))
    tissue = model_free_tissue(source)
    for axis in range(3):
        places = np.flatnonzero(tissue.any(axis=tuple(o for o in range(3) if o != axis)))
        # The grid has two voxels for one of the scan.
        first, last = 2 * places[0] - 1, 2 * places[-1] + 1
        around = reach if axis < 2 else 0
        kept, read = found.kept[axis], found.read[axis]
        assert first - around - 4 <= kept.start <= first - around
        assert last + around < kept.stop <= last + around + 6
        assert read.start <= kept.start
        assert read.stop >= kept.stop


def model_free_tissue(source):
    """Where the phantom lies, by a threshold far above the noise."""
    return source.data > 0.08


@pytest.mark.parametrize("orientation", ["LPS", "SAR"])
def test_a_turned_scan_has_the_same_region(orientation, source):
    model = predictor(PLAIN, method="whole")
    one = find_region(model, source, grid_of(source))
    turned = source.reoriented(orientation)
    other = find_region(model, turned, grid_of(turned))
    sizes = [[part.stop - part.start for part in each.kept] for each in (one, other)]
    np.testing.assert_allclose(*sizes, atol=2)


def test_a_network_that_sees_whole_slices_says_that_it_differs(source, caplog):
    model = predictor(UNET, method="whole")
    assert model.generator.reach is None
    assert not find_region(model, source, grid_of(source)).exact
    with caplog.at_level(logging.INFO, logger="distsynth"):
        part = model.predict(source, region=True)
    assert "the network sees each slice as a whole" in caplog.text
    assert "; predicted within " in caplog.text
    assert np.isfinite(part.data).all()


def test_a_specimen_that_fills_the_scan_is_predicted_as_a_whole():
    rng = np.random.default_rng(0)
    full = Volume(rng.uniform(1, 2, (20, 20, 20)).astype(np.float32), np.diag([SPACING] * 3 + [1]))
    model = predictor(UNET, method="whole")
    whole, part = (model.predict(full, region=only) for only in (False, True))
    np.testing.assert_allclose(part.data, whole.data, atol=1e-5)


@pytest.mark.parametrize("mode", ["percentile", "foreground", "landmarks"])
def test_the_rest_is_the_background_in_every_mode_of_intensities(mode, source):
    model = predictor(PLAIN, intensities=mode, method="whole")
    part = model.predict(source, region=True)
    low = float(np.percentile(source.data, 0.1))
    assert part.data[0, 0, 0] == pytest.approx(low, abs=1e-3 * float(np.ptp(part.data)))
    scaled = model.predict(source, region=True, units="scaled")
    assert scaled.data[0, 0, 0] == pytest.approx(0, abs=0.1)


def test_the_uncertainty_of_the_rest_is_zero(source):
    model = ensemble([predictor(PLAIN, seed=1), predictor(PLAIN, seed=2)])
    found = find_region(model, source, grid_of(source))
    whole, spread = model.predict_with_uncertainty(source)
    part, spread_there = model.predict_with_uncertainty(source, region=True)
    np.testing.assert_allclose(part.data[found.kept], whole.data[found.kept], atol=1e-4)
    np.testing.assert_allclose(spread_there.data[found.kept], spread.data[found.kept], atol=1e-4)
    outside = np.ones(found.shape, bool)
    outside[found.kept] = False
    assert not spread_there.data[outside].any()
    assert spread.data[outside].any()
