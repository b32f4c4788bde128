"""An export of each family of networks."""

from __future__ import annotations

import torch

from distsynth.cli.main import main
from distsynth.models import build_generator
from distsynth.runs.checkpoint import Checkpoint, Position

FAMILIES = {
    "conv": {},
    "dense": {
        "data.patch_size": (8, 8, 8),
        "generator.channels": (3, 2, 2),
        "generator.norm": "batch",
        "stitch.stride": 6,
    },
    "encoder-decoder": {
        "data.neighbours": 1,
        "data.alignment": 1,
        "generator.channels": (3, 4),
        "generator.norm": "batch",
        "generator.output": "tanh",
        "generator.sharpen": "3x3",
    },
    "unet": {
        "generator.channels": (3, 4),
        "generator.norm": "instance",
        "generator.sharpen": "5x5",
        "stitch.axes": (0, 1, 2),
    },
    "residual": {"generator.features": 3, "generator.blocks": 2, "generator.norm": "batch"},
    "residual-dense": {
        "data.patch_size": (8, 8, 8),
        "generator.features": 3,
        "generator.blocks": 2,
        "generator.layers": 2,
        "generator.growth": 2,
        "stitch.stride": 6,
    },
    "recursive": {
        "data.neighbours": 1,
        "data.alignment": 1,
        "generator.features": 3,
        "generator.recursions": 3,
        "generator.residual": True,
    },
    "feedback": {"generator.features": 3, "generator.groups": 2, "generator.steps": 2},
}
"""What each family's configuration has of its own; conv is trained, the others have chance's
weights."""

LOSSES = {"generator.residual": True, "loss.vgg_weights": "/home/someone/vgg16.pth"}


def run(*args):
    return main([str(arg) for arg in args])


def with_weights_of_chance(config, trained):
    """An untrained checkpoint, whose BatchNorm has seen one batch."""
    torch.manual_seed(1)
    data = config.data
    generator = build_generator(config.generator, data.patch_size, data.channels)
    generator(torch.randn(4, data.channels, *data.patch_size))
    learners = {"generator": {"network": generator.state_dict()}}
    return Checkpoint(config, trained.data, Position(), learners, [], {})
