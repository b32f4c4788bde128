"""How far a run has come, and the learning rates that follow from it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from distsynth.config import OptimConfig, TrainConfig

Clock = Callable[[], float]
"""Seconds since some moment."""


class Pace:
    """The progress of a run: by its steps, or by its clock where that is nearer to the end.

    The clock counts the time of steps alone, without setup, validations and checkpoints. A
    checkpoint keeps it, so that a resumed run ends after as much training as one that was not
    interrupted.

    Args:
        total_steps: Optimizer steps of all epochs.
        minutes: Budget in time; 0 for none.
        accelerator: The ranks, which follow the clock of the first; None for a single process.
        now: A clock in seconds.

    Attributes:
        seconds: Training time so far.
    """

    def __init__(
        self,
        total_steps: int,
        minutes: float = 0.0,
        accelerator: Accelerator | None = None,
        now: Clock = time.perf_counter,
    ) -> None:
        self.seconds = 0.0
        self._total, self._budget = total_steps, 60 * minutes
        self._accelerator, self._now = accelerator, now
        self._since = now()

    def start(self) -> None:
        """Start the clock."""
        self._since = self._now()

    def tick(self) -> None:
        """Add the time since the last tick or start."""
        now = self._now()
        self.seconds, self._since = self.seconds + now - self._since, now
        # Without a budget the clock decides nothing.
        if self._budget and self._accelerator and self._accelerator.num_processes > 1:
            self.seconds = self._of_first_rank(self.seconds, self._accelerator)

    @property
    def over(self) -> bool:
        """Whether the budget in time is used up."""
        return 0 < self._budget <= self.seconds

    def __call__(self, step: int) -> float:
        """The share of the run that is done before a step, counted from 0: from 0 to 1."""
        by_steps = step / self._total
        return min(max(by_steps, self.seconds / self._budget) if self._budget else by_steps, 1)

    @staticmethod
    def _of_first_rank(seconds: float, accelerator: Accelerator) -> float:
        own = seconds if accelerator.is_main_process else 0.0
        total: Tensor = accelerator.reduce(  # type: ignore[assignment]
            torch.tensor(own, dtype=torch.float64, device=accelerator.device), "sum"
        )
        return float(total)


def schedule(name: str, progress: float) -> float:
    """Factor on the learning rate: constant, or to zero along a line or half a cosine."""
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if name == "linear" else 1.0


def rate_factor(config: OptimConfig, pace: Pace, step: int) -> float:
    """Factor on the learning rate of a step: its warm-up times its schedule."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * schedule(config.schedule, pace(step))


def run_pace(
    config: TrainConfig, steps_an_epoch: int, accelerator: Accelerator, clock: Clock
) -> Pace:
    """The pace of a run at its start."""
    return Pace(steps_an_epoch * config.epochs, config.minutes, accelerator, clock)
