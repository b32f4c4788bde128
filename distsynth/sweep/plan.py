"""What a sweep is asked to do: written once, compared when it is resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from distsynth.config import RunConfig, dotted_fields
from distsynth.errors import ConfigError
from distsynth.metrics.objective import check_objective
from distsynth.runs.checkpoint import MAY_CHANGE
from sharding.io.records import STRICT, first_complaint

FORMAT_VERSION = 1
FREE = ("trials", "concurrent", "retries", "top", "final", "final_epochs", "cohort")
"""Fields of a SweepConfig that may change on resuming: no trial's numbers depend on them. With
fewer trials than before, those that exist already are still run."""


@dataclass(frozen=True)
class SweepConfig:
    """How to search, and with what."""

    __pydantic_config__ = STRICT

    trials: int = 20
    """Sets of hyperparameters to try; a grid search tries every combination."""
    search: Literal["random", "grid", "optuna"] = "random"
    """optuna suggests the next hyperparameters from the scores so far (TPE)."""
    scheduler: Literal["fifo", "asha", "pbt"] = "fifo"
    """fifo trains all to the end, asha stops the worse early, pbt lets the worse copy the better
    and mutates loss weights and learning rates on the way."""
    objective: tuple[str, ...] = ("psnr",)
    """Stitched validation metric in the mask: psnr, ssim_2d, ssim_global or mse. Several are
    searched as a Pareto front (optuna with fifo); the first one ranks the leaderboard."""
    seam_penalty: float = 0.0
    """Penalty of a seam index of 2, in units of the objective."""
    presets_first: bool = False
    """Try the presets of Table 1 that lie in the space before anything else."""
    seed: int = 0
    """Seed of the search. Trials are seeded by train.seed."""
    cpus: int = 1
    """CPU cores, and so threads, of each worker of a trial."""
    gpus: float = 0.0
    """GPUs of each worker: whole ones, or a fraction so that trials share one."""
    workers: int = 1
    """Processes of a trial: DDP ranks, on one node or on several."""
    concurrent: int = 0
    """Most trials at a time; 0 leaves that to the resources."""
    retries: int = 3
    """How often a trial that crashes, or loses its node, is continued from its checkpoint."""
    asha_grace: int = 1
    """Epochs that every trial gets."""
    asha_reduction: float = 3.0
    """One in this many trials passes each halving."""
    pbt_every: int = 1
    """Epochs between perturbations."""
    pbt_quantile: float = 0.25
    """Share of the population that copies, and that is copied."""
    pbt_resample: float = 0.25
    """Probability that a value is drawn again rather than scaled."""
    top: int = 1
    """Best trials that are exported and evaluated on the test split."""
    final: Literal["taken", "retrained", "none"] = "taken"
    """taken: the best trials as they are; retrained: trained again with other seeds."""
    final_epochs: int | None = None
    """Epochs of retraining; None keeps those of the trials."""
    cohort: str | None = None
    """The cohort that the shards were cut from: after the search the best trials are
    evaluated on its test split, once."""

    def __post_init__(self) -> None:
        plain = tuple(check_objective(name) for name in self.objective)
        object.__setattr__(self, "objective", plain)
        for name, ok, rule in self._rules():
            if not ok:
                raise ConfigError(f"sweep.{name} must be {rule}, got {getattr(self, name)}")

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Yield (field, holds, rule)."""
        for name in ("trials", "cpus", "workers", "asha_grace", "pbt_every", "top"):
            yield name, getattr(self, name) >= 1, ">= 1"
        for name in ("seed", "concurrent", "retries"):
            yield name, getattr(self, name) >= 0, ">= 0"
        yield "seam_penalty", 0 <= self.seam_penalty < math.inf, ">= 0"
        integral = self.gpus % 1 == 0
        yield "gpus", self.gpus >= 0 and (self.gpus < 1 or integral), "a fraction of 1 or whole"
        shares = self.workers > 1 and 0 < self.gpus < 1
        yield "gpus", not shares, "0 or whole for several workers: two ranks cannot share a GPU"
        yield "asha_reduction", 1 < self.asha_reduction < math.inf, "> 1"
        yield "pbt_quantile", 0 < self.pbt_quantile <= 0.5, "in (0, 0.5]"
        yield "pbt_resample", 0 <= self.pbt_resample <= 1, "in [0, 1]"
        yield "final_epochs", self.final_epochs is None or self.final_epochs >= 1, ">= 1"
        several = len(self.objective) > 1
        yield "objective", len(set(self.objective)) == len(self.objective) > 0, "distinct"
        multi = not several or (self.search == "optuna" and self.scheduler == "fifo")
        yield "objective", multi, "a single one unless search is optuna and scheduler fifo"
        suggested = self.search == "optuna" and self.scheduler == "pbt"
        yield "search", not suggested, "random or grid with pbt, which does its own search"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as it was asked for.

    Attributes:
        name: The name of the sweep and its folder.
        id: Made once; the first part of the ids of its trials.
        base: What every trial starts from.
        space: Dotted field to domain, in the plain form of tune_spaces.plain.
        sweep: How to search.
        extends: The sweep that this one extends, if there is one.
        version: The version of the format.
    """

    __pydantic_config__ = STRICT

    name: str
    id: str
    base: RunConfig
    space: dict[str, Any]
    sweep: SweepConfig
    extends: str | None = None
    version: Literal[1] = field(default=FORMAT_VERSION)

    def trial_id(self, trial: str) -> str:
        """The id of a trial's W&B run."""
        return f"{self.id}-{trial}"

    def to_json(self) -> str:
        """Indented JSON."""
        return _PLAN.dump_json(self, indent=1).decode() + "\n"


_PLAN = TypeAdapter(SweepPlan)


def plan_from_json(text: str | bytes, where: str) -> SweepPlan:
    """Inverse of SweepPlan.to_json.

    Raises:
        ConfigError: If it is no plan of this version; names the file and the field.
    """
    try:
        return _PLAN.validate_json(text)
    except ValidationError as error:
        rule = f"is not a sweep that can be read ({first_complaint(error)})"
        raise ConfigError(f"{where} {rule}") from None


def check_same_sweep(before: SweepPlan, now: SweepPlan) -> None:
    """Refuse to resume with another space or another configuration.

    Raises:
        ConfigError: Shows every difference, before and now.
    """
    differences = list(_differences(before.space, now.space, "space."))
    free = {f"sweep.{name}" for name in FREE}
    differences += [
        line
        for name, line in _field_differences(before.sweep, now.sweep, "sweep.")
        if name not in free
    ]
    old, new = dict(dotted_fields(before.base)), dict(dotted_fields(now.base))
    for name in dict.fromkeys([*old, *new]):
        free = name in MAY_CHANGE or name.startswith("tracking.")
        was, wanted = old.get(name, "absent"), new.get(name, "absent")
        if not free and was != wanted:
            differences.append(f"{name}: {was} before, {wanted} now")
    if differences:
        raise ConfigError(
            f"sweep {before.name} was started with other settings and can only be resumed "
            "with these unchanged:\n  "
            + "\n  ".join(differences)
            + "\nResume it by its name alone, or start another sweep under a new name"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new = (json.dumps(part[name]) if name in part else "absent" for part in (before, now))
        if old != new:
            yield f"{prefix}{name}: {old} before, {new} now"


def _field_differences(before: Any, now: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for item in fields(before):
        old, new = getattr(before, item.name), getattr(now, item.name)
        if old != new:
            yield f"{prefix}{item.name}", f"{prefix}{item.name}: {old} before, {new} now"
