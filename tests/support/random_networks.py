"""Small networks of random weights that predict volumes, and how their predictions are compared."""

from __future__ import annotations

import numpy as np
import torch

from distsynth.config import RunConfig, with_overrides
from distsynth.inference.predictor import Predictor
from distsynth.models import build_generator
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.volumes.config import PreprocessConfig

CPU = torch.device("cpu")

CONV = {
    "data.patch_size": (16, 12),
    "generator.channels": (6, 4),
    "generator.kernels": (3, 5, 3),
    "stitch.stride": 4,
    "stitch.trim": 4,
}

DENSE = CONV | {
    "generator.family": "dense",
    "generator.channels": (6, 4),
    "generator.kernels": (3,),
}

BLOCKS = CONV | {"data.patch_size": (12, 14, 13), "generator.kernels": (3,), "stitch.trim": 3}


def predictor(*changes, **stitch):
    """A generator of random weights and random statistics of batch norm."""
    overrides = {f"stitch.{name}": value for name, value in stitch.items()}
    for change in changes:
        overrides = change | overrides
    config = with_overrides(RunConfig(), {"data.neighbours": 0, "data.alignment": 1, **overrides})
    torch.manual_seed(3)
    generator = build_generator(config.generator, config.data.patch_size, config.data.channels)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
        elif getattr(module, "starts_at_zero", False):
            module.reset_parameters()
    record = DataRecord("sha", PreprocessConfig(), (1.0,) * 3, "RAS", {}, ())
    checkpoint = Checkpoint(config, record, Position(), {}, [], {})
    return Predictor(checkpoint, generator.eval(), CPU)


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same(found, expected):
    """Equal but for the rounding of float32, relative to the spread of the volume."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
