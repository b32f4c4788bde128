"""A running average of a network's weights, which follows the network while it learns."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """An exponential moving average of the weights of a network.

    After step t, from 0, average = d average + (1 - d) weights with d = min(decay, (1 + t) /
    (10 + t)), so that the first weights, which are random, are soon forgotten. Buffers, such as
    the statistics of BatchNorm, are those of the network.

    Args:
        network: The network, without wrappers.
        decay: The share of the average that stays at each step, in (0, 1).

    Attributes:
        network: A copy of the network that has the averaged weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow the network after a step, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        own, new = tuple(self.network.parameters()), tuple(network.parameters())
        get_ema_multi_avg_fn(decay)(own, new, step)
        for kept, current in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(current)
