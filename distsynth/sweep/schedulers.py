"""Which trials continue, and with which hyperparameters: FIFO, ASHA, population based training.

Ray loses a scheduler's state when its driver dies. ASHA's is rebuilt here from the records of the
trials. The state of population based training is the population itself: its ranking is known again
once each member has completed its next epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from distsynth.sweep.folder import TrialRecord
from distsynth.sweep.hyperparameters import Space, bounded, draw, invalid, mutations
from distsynth.sweep.plan import SweepPlan


def make_scheduler(plan: SweepPlan, space: Space, records: Iterable[TrialRecord]) -> TrialScheduler:
    """The scheduler that a plan asks for, with the results of the trials so far."""
    sweep = plan.sweep
    if sweep.scheduler == "asha":
        scheduler = Halving(plan.base.train.epochs, sweep.asha_grace, sweep.asha_reduction)
        scheduler.remember(records)
        return scheduler
    if sweep.scheduler == "pbt":
        rng = np.random.default_rng(sweep.seed)

        def explored(config: dict[str, Any]) -> dict[str, Any]:
            trial = config["trial"]
            hyperparameters = bounded(space, trial["hyperparameters"])
            while invalid(plan.base, hyperparameters, keep_discriminator=True):
                # Drawn again: some weights are valid with the other fields, which are the donor's.
                hyperparameters |= draw(mutations(space), rng)
            return {**config, "trial": {**trial, "hyperparameters": hyperparameters}}

        return PopulationBasedTraining(
            time_attr="epoch",
            metric="score",
            mode="max",
            perturbation_interval=sweep.pbt_every,
            hyperparam_mutations={"trial": {"hyperparameters": _steps(space)}},
            quantile_fraction=sweep.pbt_quantile,
            resample_probability=sweep.pbt_resample,
            custom_explore_fn=explored,
            log_config=False,
            # An epoch without validation has no score.
            require_attrs=False,
        )
    return FIFOScheduler()


def _steps(space: Space) -> dict[str, Any]:
    """What PBT changes: choices are stepped through, a range is scaled or drawn again."""
    return {
        name: list(domain.categories) if hasattr(domain, "categories") else domain
        for name, domain in mutations(space).items()
    }


class Halving(AsyncHyperBandScheduler):
    """ASHA on the best score so far, with rungs that outlive the driver.

    At epochs `grace`, `grace * reduction`, ... a trial is compared with all trials that have
    reached that rung.
    """

    def __init__(self, epochs: int, grace: int, reduction: float) -> None:
        super().__init__(
            time_attr="epoch",
            metric="best_score",
            mode="max",
            max_t=epochs,
            grace_period=min(grace, epochs),
            reduction_factor=reduction,
            # A trial that ends is not compared again at rungs that it has passed.
            stop_last_trials=False,
        )

    def remember(self, records: Iterable[TrialRecord]) -> None:
        """Enter the scores of trials into the rungs, epoch by epoch, in the original order."""
        scored = [
            (report.epoch, record.name, report.best_score)
            for record in records
            for report in record.reports
            # Epochs without validation were not compared.
            if report.score is not None and report.best_score is not None
        ]
        for epoch, name, best in sorted(scored):
            self._brackets[0].on_result(SimpleNamespace(trial_id=name), epoch, best)  # type: ignore[arg-type]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Let a trial that continues keep its places: rungs now know it by Tune's new id."""
        super().on_trial_add(tune_controller, trial)
        for _, recorded in self._brackets[0]._rungs:
            if str(trial) in recorded:
                recorded[trial.trial_id] = recorded.pop(str(trial))
