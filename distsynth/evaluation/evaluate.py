"""Models and baselines on the specimens of a split, evaluated on stitched volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distsynth.errors import ConfigError
from distsynth.evaluation.baselines import Baseline, Cubic, Identity
from distsynth.evaluation.fits import kept_baselines
from distsynth.evaluation.pairs import prepared_pairs
from distsynth.evaluation.specimen import (
    Example,
    SpecimenEvaluation,
    Wanted,
    evaluate_specimen,
)
from distsynth.inference.predictor import Predictor
from distsynth.metrics.conventions import Values
from distsynth.metrics.risk_coverage import RiskCoverage
from distsynth.metrics.verdict import verdicts
from distsynth.runs.data_record import DataRecord
from sharding.volumes.cohort import Specimen, Split
from sharding.volumes.contrasts import in_order
from sharding.volumes.pair import Pair
from sharding.volumes.slabs import Empty, in_memory

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

OnSpecimen = Callable[[Pair, Mapping[str, NDArray[np.float32]]], None]
"""Gets a pair and, by model, what it predicts, standardised."""


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        results: Every number.
        specimens: The specimens, in order.
        split: The split they belong to.
        training: How many specimens the baselines were fitted on.
        models: The methods that are models; the others are baselines.
        examples: A slice of each specimen through every method, for pictures.
        conventions: Method -> specimen -> PSNR and SSIM under each convention, of the models and of
            cubic interpolation; empty unless they were asked for.
        risk_coverage: Method -> specimen -> how its uncertainty ranks the error, of the models that
            are ensembles or have flips.
    """

    results: dict[str, dict[str, dict[str, float]]]
    specimens: list[str]
    split: Split
    training: int
    models: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    conventions: dict[str, dict[str, Values]] = field(default_factory=dict)
    risk_coverage: dict[str, dict[str, RiskCoverage]] = field(default_factory=dict)

    @property
    def verdicts(self) -> list[str]:
        """What the numbers mean, a sentence or two for each model."""
        return verdicts(self.results, self.models)

    def add(self, found: SpecimenEvaluation) -> None:
        """Add what came of one specimen."""
        name = found.example.specimen
        self.specimens.append(name)
        self.examples.append(found.example)
        for method, measured in found.methods.items():
            self.results.setdefault(method, {})[name] = measured.row
            if measured.curve is not None:
                self.risk_coverage.setdefault(method, {})[name] = measured.curve
            if measured.conventions is not None:
                self.conventions.setdefault(method, {})[name] = measured.conventions

    def frame(self) -> pd.DataFrame:
        """Every number: a row for each (method, specimen), a column for each metric.

        `evaluation.frame().groupby("method", sort=False).mean()` gives means over specimens.
        """
        import pandas as pd

        rows = {
            (method, specimen): values
            for method, by_specimen in self.results.items()
            for specimen, values in by_specimen.items()
        }
        index = pd.MultiIndex.from_tuples(rows, names=["method", "specimen"])
        return pd.DataFrame(list(rows.values()), index=index)


def evaluate(
    predictors: Mapping[str, Predictor],
    specimens: Sequence[Specimen],
    split: Split = "test",
    volumes: Path | None = None,
    baselines: Sequence[Baseline] | None = None,
    data: DataRecord | None = None,
    conventions: bool = False,
    empty: Empty = in_memory,
    on_specimen: OnSpecimen | None = None,
) -> Evaluation:
    """Evaluate models beside the baselines.

    Everything is measured in the target's standardised units, by its percentiles, mean and
    deviation over all voxels, whatever the networks see. A prediction is made without looking at
    the target; to bring it to these units something of the target is used, see `lent`. The
    baselines that are fitted see training specimens only.

    Args:
        predictors: Name of the row to model. All must have been trained on the same data.
        specimens: The cohort, with the specimens that the models were trained on.
        split: Which specimens to evaluate, by the split of the shards; a specimen that the shards
            did not hold counts as test.
        volumes: Folder to write every model's synthetic volumes to, in the source's units.
        baselines: The baselines to evaluate; None fits the usual ones.
        data: The record of the data; None takes that of the models.
        conventions: Compute PSNR and SSIM under every convention as well.
        empty: Makes the arrays that are as large as a volume: with sharding.volumes.slabs.Scratch
            they lie on disk if they are large.
        on_specimen: Called with each pair and what the models predict of it.

    Returns:
        Every number, and slices for pictures.

    Raises:
        ConfigError: If the models were trained on different data, or no specimen is in the split.
        DataError: If a test specimen's scan was seen in training, a file is bad, or a specimen has
            other contrasts than the models.
    """
    first = data or next(iter(predictors.values())).checkpoint.data
    for name, predictor in predictors.items():
        if predictor.checkpoint.data.anonymous() != first.anonymous():
            raise ConfigError(f"{name} was trained on other shards: evaluate it by itself")
    groups: dict[str, list[Specimen]] = {"train": [], "val": [], "test": []}
    for specimen in specimens:
        groups[first.split_of(specimen.name)].append(in_order(specimen, first.contrasts))
    chosen = groups[split]
    if not chosen:
        there = ", ".join(f"{len(rows)} in {name}" for name, rows in groups.items() if rows)
        raise ConfigError(
            f"there is nothing to evaluate: no specimen of the cohort is in the split {split} "
            f"({there or 'it is empty'}); choose another split, or add specimens"
        )
    if baselines is None:
        if not groups["train"]:
            raise ConfigError(
                "the cohort has no training specimen to fit the baselines on: evaluate on the "
                "cohort that the shards were cut from, with specimens added to it"
            )
        baselines = usual_baselines(groups["train"], first, empty)
    for baseline in baselines:
        if baseline.name in predictors:
            raise ConfigError(f"a baseline is named {baseline.name} too: rename the run folder")
    if first.contrasts:
        logger.info(
            "identity, cubic interpolation and the intensity map see the contrast %s alone; the "
            "regression and the models see %s",
            first.contrasts[0],
            ", ".join(first.contrasts),
        )
    evaluation = Evaluation({}, [], split, len(groups["train"]), list(predictors))
    wanted = Wanted(volumes, conventions, whole=bool(on_specimen))
    pairs = prepared_pairs(chosen, first, empty)
    for specimen in chosen:
        pair = next(pairs)
        if split == "test":
            first.refuse_seen(specimen, pair)
        found = evaluate_specimen(pair, first, baselines, predictors, wanted)
        evaluation.add(found)
        if on_specimen:
            on_specimen(pair, found.predicted)
        del found, pair  # Before the next one takes its room.
    return evaluation


def usual_baselines(
    training: Sequence[Specimen], data: DataRecord, empty: Empty = in_memory
) -> list[Baseline]:
    """Identity, cubic, and the baselines that are fitted on training specimens."""
    return [Identity(), Cubic(), *kept_baselines(training, data, empty)]


def lent(data: DataRecord) -> str:
    """What of a target is used to bring its prediction to the target's units, in words."""
    own = {
        "standardise": "its own mean and deviation over all voxels, and ",
        "percentile": "",
        "foreground": "its own mean and deviation over tissue, and ",
        "landmarks": "its own landmarks, and ",
    }
    return (
        f"{own[data.preprocess.intensities]}its own clip, which is the scale of the numbers; "
        "PSNR with nothing lent uses the mean over training targets in place of the former"
    )
