"""The plan and the decisions of a sweep whose scheduler is looked at alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import (
    TrialScheduler,
)

from distsynth.config import with_overrides
from distsynth.presets import preset
from distsynth.sweep.plan import SweepConfig, SweepPlan

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP

EPOCHS = 9

UNET = with_overrides(preset("unet-7"), {"train.epochs": EPOCHS})

NOBODY: Any = SimpleNamespace()


def plan(scheduler: Any, **sweep: Any) -> SweepPlan:
    return SweepPlan("lambdas", "0a1b2c3d", UNET, {}, SweepConfig(scheduler=scheduler, **sweep))
