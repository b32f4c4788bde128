from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from distsynth.inference.ensemble import ensemble
from distsynth.inference.predictor import Predictor
from distsynth.models import build_generator
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.volumes.config import PreprocessConfig

SMALL = {"generator.channels": (4,), "generator.kernels": (3,)}
HALF = {
    "generator.family": "half-resolution",
    "generator.features": 4,
    "generator.blocks": 1,
    "generator.norm": "layer",
}


def predictor(seed, *changes, **data):
    values = {"data.patch_size": (24, 24), "data.neighbours": 0, "data.alignment": 2}
    values |= {"stitch.stride": 6, "stitch.trim": 8}
    for change in changes:
        values |= change
    config = with_overrides(RunConfig(), values | {f"data.{k}": v for k, v in data.items()})
    torch.manual_seed(seed)
    generator = build_generator(config.generator, config.data.sides, config.data.channels)
    record = DataRecord("sha", PreprocessConfig(), (1.0,) * 3, "RAS", {}, ())
    checkpoint = Checkpoint(config, record, Position(), {}, [], {})
    return Predictor(checkpoint, generator.eval(), torch.device("cpu"))


def test_an_ensemble_predicts_the_mean_of_its_members():
    members = [predictor(1, SMALL), predictor(2, SMALL), predictor(3, HALF)]
    source = np.random.default_rng(0).normal(size=(27, 25, 4)).astype(np.float32)
    expected = np.mean([member(source, quiet=True) for member in members], axis=0)
    together = ensemble(members)
    assert (together.generator.multiple, together.generator.reach) == (2, 8)
    assert together.exact
    for method in ("auto", "windows"):
        found = together.stitched(method=method)(source, quiet=True)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    one = ensemble(members[:1])(source, quiet=True)
    np.testing.assert_allclose(one, members[0](source, quiet=True), atol=1e-6)


def test_members_that_do_not_belong_together_are_refused():
    one = predictor(1, SMALL)
    with pytest.raises(ConfigError, match=r"one data\.patch_size, got \(24, 24\) and \(28, 24\)"):
        ensemble([one, predictor(1, SMALL, patch_size=(28, 24))])
    other = replace(one.checkpoint, data=replace(one.checkpoint.data, manifest_sha256="other"))
    with pytest.raises(ConfigError, match="models of the same shards"):
        ensemble([one, replace(one, checkpoint=other)])
    with pytest.raises(ConfigError, match="at least one model"):
        ensemble([])
