"""torch.compile for the networks of a run, where the machine can."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import nn

logger = logging.getLogger(__name__)


def compile_networks(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Compile networks in place; parameters and their names, and so checkpoints, do not change.

    Without a working compiler the networks do not change either, and a warning says why.
    Rounding differs from that of the plain networks.
    """
    reason = why_not(device)
    if reason:
        logger.warning("train.compile is ignored: %s", reason)
        return
    for network in networks:
        network.compile()


def why_not(device: torch.device) -> str | None:
    """Why torch.compile does not work on a device; None if it works."""
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:
        # Each backend has errors of its own for a compiler that is missing or broken.
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


def _probe(value: torch.Tensor) -> torch.Tensor:
    return value.sin() + 1
