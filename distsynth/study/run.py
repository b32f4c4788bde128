"""A study from a cohort to a verdict, by its plan; what is done stays done.

STUDY/
  plan.json        the StudyPlan, which a person may change before or between runs
  prepared/        registered scans, if the plan registers; quality.html shows them
  shards/          what was cut
  model/           the training
  evaluation/      the test specimens, evaluated on whole volumes; report.html
  report.html      everything on one page
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distsynth import api
from distsynth.errors import ConfigError
from distsynth.inference.predictor import load_predictor
from distsynth.metrics.results import RESULTS_FILE, read_results
from distsynth.metrics.verdict import verdicts
from distsynth.reporting.specimen_pictures import SpecimenPictures, add_specimen
from distsynth.study.plan import StudyPlan, plan_from_json
from distsynth.training.loop import train
from sharding.io.atomic import atomic_write
from sharding.io.errors import CohortError
from sharding.registration.config import PrepareConfig
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.pair import Pair

logger = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
PREPARED, SHARDS, MODEL, EVALUATION = "prepared", "shards", "model", "evaluation"
PAGE = "report.html"
MOST_SHOWN = 6
"""Specimens whose slices the page shows."""


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes:
        page: Everything on one page.
        model: Folder of the run, for distsynth predict.
        verdict: What it means, in a sentence or two.
    """

    page: Path
    model: Path
    verdict: str


def run_study(folder: Path, plan: StudyPlan, workers: int = 0) -> StudyResult:
    """Carry out a plan, or what is left of it.

    Args:
        folder: Of the study.
        plan: What to do; kept in the folder.
        workers: Processes that prepare and cut; 0 starts one a core.

    Raises:
        DataError: If a scan is bad.
        ConfigError: If the folder holds a study of another plan that was begun.
    """
    keep_plan(folder, plan)
    specimens = read_cohort(plan.cohort)
    shown: list[SpecimenPictures | None] = []
    stages: list[tuple[str, Callable[[], None]]] = [
        (
            "cutting patches",
            lambda: _cut(folder, plan, _prepared(folder, plan, specimens), workers),
        ),
        ("training", lambda: _train(folder, plan)),
        ("evaluating", lambda: shown.append(_evaluate(folder, plan, specimens))),
        ("writing the page", lambda: _report(folder, plan, specimens, shown[-1])),
    ]
    if plan.prepare:
        stages.insert(0, ("preparing", lambda: _prepare(folder, plan, specimens, workers)))
    started = time.monotonic()
    for number, (title, work) in enumerate(stages, 1):
        spent = (time.monotonic() - started) / 60
        logger.info("stage %d of %d: %s (%.1f min so far)", number, len(stages), title, spent)
        work()
    table = read_results(
        (folder / EVALUATION / RESULTS_FILE).read_bytes(), str(folder / EVALUATION)
    )
    return StudyResult(folder / PAGE, folder / MODEL, " ".join(verdicts(table.values, [MODEL])))


def keep_plan(folder: Path, plan: StudyPlan) -> None:
    """Write the plan, unless the folder has begun by another.

    Raises:
        ConfigError: If shards or a model of another plan are there.
    """
    file = folder / PLAN_FILE
    begun = any((folder / name).exists() for name in (PREPARED, SHARDS, MODEL))
    if file.is_file() and begun and plan_from_json(file.read_bytes(), str(file)) != plan:
        raise ConfigError(
            f"{folder} holds a study that was begun by another plan: run it without a plan of its "
            "own to continue it, or choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, plan.to_json())


def kept_plan(folder: Path) -> StudyPlan | None:
    """The plan of a study; None if there is none yet."""
    file = folder / PLAN_FILE
    return plan_from_json(file.read_bytes(), str(file)) if file.is_file() else None


def _prepare(folder: Path, plan: StudyPlan, specimens: list[Specimen], workers: int) -> None:
    config = PrepareConfig(steps=plan.prepare)
    done = api.prepare(specimens, folder / PREPARED, config, workers=workers)
    for name, reasons in done.flags.items():
        logger.warning(
            "check %s in %s: %s", name, folder / PREPARED / "quality.html", "; ".join(reasons)
        )
    if done.failures:
        remedy = "Correct them, or leave them out of the cohort, and run the same command again"
        raise CohortError(folder / PREPARED, done.failures, len(specimens), remedy)


def _prepared(folder: Path, plan: StudyPlan, specimens: list[Specimen]) -> list[Specimen]:
    """The cohort as it is cut and evaluated."""
    return read_cohort(folder / PREPARED / "cohort.csv") if plan.prepare else specimens


def _cut(folder: Path, plan: StudyPlan, specimens: list[Specimen], workers: int) -> None:
    api.shard(specimens, folder / SHARDS, plan.shards, workers=workers)


def _train(folder: Path, plan: StudyPlan) -> None:
    train(plan.config(str(folder / SHARDS)), folder / MODEL, resume=True)


def _evaluate(folder: Path, plan: StudyPlan, specimens: list[Specimen]) -> SpecimenPictures | None:
    """Evaluate; returns what the page shows of the specimens, unless it was done before."""
    if (folder / EVALUATION / RESULTS_FILE).is_file():
        return None
    models = {MODEL: load_predictor(folder / MODEL)}
    shown = SpecimenPictures()

    def show(pair: Pair, made: Mapping[str, NDArray[np.float32]]) -> None:
        if len(shown.slices) < MOST_SHOWN:
            add_specimen(shown, pair, made, models)
        else:
            shown.left_out.append(pair.name)

    api.evaluate(
        folder / MODEL,
        _prepared(folder, plan, specimens),
        folder / EVALUATION,
        on_specimen=show,
    )
    return shown


def _report(
    folder: Path, plan: StudyPlan, specimens: list[Specimen], shown: SpecimenPictures | None
) -> None:
    api.write_report(
        folder / MODEL,
        folder / PAGE,
        _prepared(folder, plan, specimens),
        evaluation=folder / EVALUATION,
        most=MOST_SHOWN,
        overwrite=True,
        shown=shown,
    )
