"""The runs of a cross-validation, each evaluated on the specimens that it did not train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distsynth.errors import ConfigError
from distsynth.evaluation.evaluate import Evaluation, evaluate
from distsynth.inference.predictor import Predictor
from sharding.volumes.cohort import Specimen
from sharding.volumes.slabs import Empty, in_memory

NAME = "folds"
"""Row of the models of all folds."""


def evaluate_folds(
    predictors: Sequence[Predictor],
    specimens: Sequence[Specimen],
    volumes: Path | None = None,
    conventions: bool = False,
    empty: Empty = in_memory,
) -> Evaluation:
    """Evaluate the models of all folds as one method; baselines are fitted in each fold anew.

    The specimens of a fold chose its best epoch, so that the numbers flatter a little; the last
    checkpoint of each run, which nothing chose, does not.

    Args:
        predictors: One for each fold.
        specimens: The cohort that the folds were cut from.
        volumes: As for evaluate.
        conventions: As for evaluate.
        empty: As for evaluate.

    Raises:
        ConfigError: If a specimen validated two of the models: they are of no cross-validation.
        DataError: As evaluate.
    """
    whole = Evaluation({}, [], "val", 0, [NAME])
    for predictor in predictors:
        part = evaluate(
            {NAME: predictor},
            specimens,
            "val",
            volumes=volumes,
            conventions=conventions,
            empty=empty,
        )
        if twice := set(part.specimens) & set(whole.specimens):
            raise ConfigError(
                f"{min(twice)} validated two of the models: give one checkpoint for each fold"
            )
        whole.training = max(whole.training, part.training)
        whole.specimens += part.specimens
        whole.examples += part.examples
        for found, own in (
            (whole.results, part.results),
            (whole.conventions, part.conventions),
            (whole.risk_coverage, part.risk_coverage),
        ):
            for method, by_specimen in own.items():
                found.setdefault(method, {}).update(by_specimen)  # type: ignore[arg-type]
    return whole
