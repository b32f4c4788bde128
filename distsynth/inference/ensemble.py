"""Several trained generators as one: the mean of what they predict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distsynth.data.resolve import SHARD_FIELDS
from distsynth.errors import ConfigError
from distsynth.models import Generator

if TYPE_CHECKING:
    from distsynth.inference.predictor import Predictor


class EnsembleGenerator(Generator):
    """The mean of several generators, which may be of different families."""

    def __init__(self, members: Sequence[Generator]) -> None:
        nn.Module.__init__(self)
        self.members = nn.ModuleList(members)
        self.multiple = math.lcm(*(member.multiple for member in members))
        reaches = [member.reach for member in members]
        known = [reach for reach in reaches if reach is not None]
        # Rounded up to what tiles and windows must start at.
        whole = -(-max(known, default=0) // self.multiple) * self.multiple
        self.reach = whole if len(known) == len(reaches) else None

    def forward(self, source: Tensor) -> Tensor:
        """(batch, in_channels, *spatial) -> (batch, 1, *spatial), in float32."""
        return torch.stack([member(source).float() for member in self.members]).mean(dim=0)


def ensemble(predictors: Sequence[Predictor]) -> Predictor:
    """One model that predicts the mean of several.

    Args:
        predictors: At least one. It is stitched as the first one is, and computes as precisely.

    Raises:
        ConfigError: If they were trained on different data, or see different patches.
    """
    if not predictors:
        raise ConfigError("an ensemble needs at least one model")
    first = predictors[0]
    for other in predictors[1:]:
        if other.checkpoint.data.anonymous() != first.checkpoint.data.anonymous():
            raise ConfigError("an ensemble needs models of the same shards")
        for name in SHARD_FIELDS:
            here, there = (getattr(each.checkpoint.config.data, name) for each in (first, other))
            if here != there:
                raise ConfigError(f"an ensemble needs one data.{name}, got {here} and {there}")
    members = EnsembleGenerator([each.generator for each in predictors])
    name = " + ".join(each.name for each in predictors)
    return replace(first, generator=members.eval(), name=name)
