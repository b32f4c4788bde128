"""A row evaluated on the test split, on stitched volumes, once."""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from distsynth.evaluation.evaluate import Evaluation, evaluate, usual_baselines
from distsynth.evaluation.forest import fit_forest
from distsynth.inference.predictor import Predictor, load_predictor
from distsynth.metrics.results import results_table
from distsynth.reproduction.task import Task
from distsynth.runs.data_record import DataRecord
from sharding.io.errors import DataError, one_line
from sharding.io.records import STRICT, first_complaint
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import Specimen, read_cohort

EVALUATIONS = "evaluations"
BASELINES = "baselines"
EVALUATE_AGAIN = "Remove it and its .json and give --resume, which evaluates the row again"


@dataclass(frozen=True)
class RowEvaluation:
    """The results of a row on the test split.

    Attributes:
        name: The name of the run, or of the baseline.
        results: Method, or way of stitching, to specimen to metric; None where it has no meaning.
        seconds: That fitting (of what is no network) and predicting took.
        fitted_on: Training specimens that the baselines were fitted on; 0 for a row that is none.
        fit_seconds: That fitting a forest took.
    """

    __pydantic_config__ = STRICT

    name: str
    results: dict[str, dict[str, dict[str, float | None]]]
    seconds: float
    fitted_on: int = 0
    fit_seconds: float = 0.0

    def values(self, method: str) -> dict[str, dict[str, float]]:
        """Specimen to metric to value of a method; NaN where it has no meaning."""
        return {
            specimen: {key: np.nan if value is None else value for key, value in row.items()}
            for specimen, row in self.results[method].items()
        }


_EVALUATION = TypeAdapter(RowEvaluation)


def stitching_name(stitching: Mapping[str, Any]) -> str:
    """A way of stitching in words."""
    return f"trim {stitching['trim']}, {stitching['weights']} weights"


def evaluate_network(
    folder: Folder, task: Task, name: str, run_dir: str, stitchings: Sequence[Mapping[str, Any]]
) -> None:
    """Evaluate the best checkpoint of a run, as it is and under other ways of stitching."""
    predictor = load_predictor(run_dir)
    predictors: dict[str, Predictor] = {name: predictor}
    predictors |= {stitching_name(changes): predictor.stitched(**changes) for changes in stitchings}
    start = time.monotonic()
    evaluation = evaluate(predictors, _cohort(task), baselines=())
    _keep(folder, name, evaluation, start)


def evaluate_baselines(folder: Folder, task: Task) -> None:
    """Fit and evaluate identity, cubic, intensity map and neighbourhood regression."""
    data, training = _training(task)
    start = time.monotonic()
    baselines = usual_baselines(training, data)
    evaluation = evaluate({}, _cohort(task), baselines=baselines, data=data)
    pictures = {
        f"{example.specimen}/{name}": getattr(example, name)
        for example in evaluation.examples
        for name in ("source", "target", "mask")
    }
    _keep(folder, BASELINES, evaluation, start, pictures, fitted_on=len(training))


def evaluate_forest(folder: Folder, task: Task, name: str, jobs: int) -> None:
    """Fit a forest on the training patches and evaluate it."""
    start = time.monotonic()
    forest = fit_forest(name, ShardSet(task.shards), task.forest_config(name, jobs), quiet=True)
    evaluation = evaluate({}, _cohort(task), baselines=[forest], data=_training(task)[0])
    _keep(folder, name, evaluation, start, fit_seconds=round(forest.fit.seconds))


def read_evaluation(folder: Folder, name: str) -> RowEvaluation | None:
    """The results of a row; None if it has not been evaluated.

    Raises:
        DataError: If its record cannot be read.
    """
    file = f"{EVALUATIONS}/{name}.json"
    if not folder.exists(file):
        return None
    try:
        found = _EVALUATION.validate_json(folder.read(file))
        if name not in (BASELINES, *found.results):
            raise ValueError(f"results: {name} is missing")
        results_table({method: found.values(method) for method in found.results})
    except ValueError as error:
        raise _damaged(folder / file, error) from None
    return found


def read_slices(folder: Folder, name: str) -> dict[str, NDArray[Any]]:
    """SPECIMEN/METHOD to the slice that holds most tissue: shape (x, y, 1), standardised.

    Raises:
        DataError: If the file cannot be read.
    """
    file = f"{EVALUATIONS}/{name}.npz"
    content = io.BytesIO(folder.read(file))
    try:
        with np.load(content, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    # The file may be no zip file, be cut short, or hold no array or one of objects.
    except (
        EOFError,
        MemoryError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _damaged(folder / file, error) from None


def with_threads(threads: int) -> None:
    """Compute with so many threads in this process."""
    torch.set_num_threads(threads)


def _cohort(task: Task) -> list[Specimen]:
    return read_cohort(Path(task.cohort))


def _training(task: Task) -> tuple[DataRecord, list[Specimen]]:
    data = DataRecord.of(ShardSet(task.shards).manifest)
    return data, [row for row in _cohort(task) if data.splits.get(row.name) == "train"]


def _keep(
    folder: Folder,
    name: str,
    evaluation: Evaluation,
    start: float,
    pictures: Mapping[str, NDArray[Any]] | None = None,
    **facts: Any,
) -> None:
    """Write the slices, then the numbers, whose presence marks the evaluation as complete."""
    slices = dict(pictures or {}) | {
        f"{example.specimen}/{method}": synthetic
        for example in evaluation.examples
        for method, synthetic in example.synthetic.items()
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **slices)  # type: ignore[arg-type]
    folder.write(f"{EVALUATIONS}/{name}.npz", buffer.getvalue())
    results = {
        method: {
            specimen: {key: value if np.isfinite(value) else None for key, value in row.items()}
            for specimen, row in by.items()
        }
        for method, by in evaluation.results.items()
    }
    found = RowEvaluation(name, results, round(time.monotonic() - start, 1), **facts)
    folder.write(
        f"{EVALUATIONS}/{name}.json", _EVALUATION.dump_json(found, indent=1).decode() + "\n"
    )


def _damaged(where: str, error: Exception) -> DataError:
    complaint = first_complaint(error) if isinstance(error, ValidationError) else one_line(error)
    rule = f"this is no evaluation of a row ({complaint})"
    return DataError(where, rule, EVALUATE_AGAIN)
