"""Models and baselines on the specimens of a split, evaluated on stitched volumes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distsynth.errors import ConfigError
from distsynth.evaluation.artefacts import Prediction, artefacts, predictions
from distsynth.evaluation.baselines import Baseline, Cubic, Identity
from distsynth.evaluation.fits import kept_baselines
from distsynth.evaluation.pairs import prepared_pairs
from distsynth.inference.predictor import Predictor
from distsynth.metrics.consistency import consistency_error
from distsynth.metrics.conventions import Values, conventional_values
from distsynth.metrics.image import (
    SSIM_WINDOW,
    central_slice,
    masked_parts,
    mse,
    psnr,
    target_windows,
    volume_metrics,
)
from distsynth.metrics.risk_coverage import RiskCoverage, risk_coverage
from distsynth.metrics.verdict import verdicts
from distsynth.metrics.views import Difference
from distsynth.runs.data_record import DataRecord
from sharding.volumes.cohort import Specimen, Split
from sharding.volumes.contrasts import in_order
from sharding.volumes.pair import Pair
from sharding.volumes.slabs import Empty, by_slabs, in_memory
from sharding.volumes.volume import write_volume

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


@dataclass(frozen=True, eq=False)
class Example:
    """The slice of a specimen that holds most tissue, standardised.

    Attributes:
        specimen: Its name.
        axis: Slicing axis.
        index: Which slice of the volume.
        spacing_mm: Voxel size.
        source: Volume of one slice: shape (x, y, z), 1 along the axis; of the first contrast.
        target: Same shape.
        mask: Same shape.
        synthetic: Method to volume of the same shape.
    """

    specimen: str
    axis: int
    index: int
    spacing_mm: tuple[float, float, float]
    source: NDArray[np.float32]
    target: NDArray[np.float32]
    mask: NDArray[np.bool_]
    synthetic: dict[str, NDArray[np.float32]]


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
    pairs = prepared_pairs(chosen, first, empty)
    for specimen in chosen:
        pair = next(pairs)
        if split == "test":
            first.refuse_seen(specimen, pair)
        made = _evaluate_specimen(
            evaluation, pair, first, baselines, predictors, volumes, conventions, bool(on_specimen)
        )
        if on_specimen:
            on_specimen(pair, made)
        del made
        del pair  # Before the next one takes its room.
    return evaluation


def usual_baselines(
    training: Sequence[Specimen], data: DataRecord, empty: Empty = in_memory
) -> list[Baseline]:
    """Identity, cubic, and the baselines that are fitted on training specimens."""
    return [Identity(), Cubic(), *kept_baselines(training, data, empty)]


def _evaluate_specimen(
    evaluation: Evaluation,
    pair: Pair,
    data: DataRecord,
    baselines: Sequence[Baseline],
    predictors: Mapping[str, Predictor],
    volumes: Path | None,
    conventions: bool,
    keep: bool,
) -> dict[str, NDArray[np.float32]]:
    """Add one specimen to the evaluation; returns what the models predict, if it is kept."""
    kept: dict[str, NDArray[np.float32]] = {}
    target, transform = pair.measured_target, pair.measured_transform
    native, inside = pair.native, pair.native_mask
    # A small mask may hold no voxel of a coarse source.
    is_consistent = inside.any() and _varies(native, inside)
    _say_what_is_missing(pair, inside)
    axis = 2
    index = central_slice(pair.mask, axis)
    shown: dict[str, NDArray[np.float32]] = {}
    windows = target_windows(target, transform, pair.empty)
    for prediction in _predictions(pair, baselines, predictors):
        name, synthetic = prediction.method, prediction.synthetic
        measured = _measured(prediction, pair)
        row = volume_metrics(measured.synthetic, target, transform, pair.mask, windows)
        row["psnr_unlent"] = psnr(
            mse(_unlent(synthetic, pair, data), target, pair.mask), transform.data_range
        )
        row |= artefacts(measured, target, pair.mask)
        if measured.spread is not None:
            error = Difference(measured.synthetic, target)
            curve = risk_coverage(error, measured.spread, pair.mask)
            evaluation.risk_coverage.setdefault(name, {})[pair.name] = curve
            row |= curve.metrics
        row["consistency_error"] = math.nan
        if is_consistent:
            row["consistency_error"] = consistency_error(pair.degrade(synthetic), native, inside)
        evaluation.results.setdefault(name, {})[pair.name] = row
        shown[name] = np.take(synthetic, [index], axis)
        if keep and name in predictors:
            kept[name] = synthetic
        if conventions and (name in predictors or name == Cubic.name):
            values = conventional_values(
                measured.synthetic, pair.grid.data, transform, pair.mask, pair.empty
            )
            evaluation.conventions.setdefault(name, {})[pair.name] = values
        if volumes and name in predictors:
            restored = pair.grid.with_data(pair.source_transform.restore(synthetic, pair.empty))
            write_volume(volumes / f"{pair.name}_{name}.nii.gz", restored)
    evaluation.specimens.append(pair.name)
    evaluation.examples.append(
        Example(
            specimen=pair.name,
            axis=axis,
            index=index,
            spacing_mm=pair.grid.spacing_mm,
            source=pair.source_transform.standardise_scaled(
                np.take(pair.source_scaled, [index], axis)
            ),
            target=pair.target_transform.standardise_scaled(
                np.take(pair.target_scaled, [index], axis)
            ),
            mask=np.take(pair.mask, [index], axis),
            synthetic=shown,
        )
    )
    return kept


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


def _measured(prediction: Prediction, pair: Pair) -> Prediction:
    """The prediction on the scale on which it is measured."""
    overlap, whole = prediction.overlap, prediction.whole
    if overlap is not None:
        square = np.float32(pair.measured_unit**2)
        variance = by_slabs(lambda slab: slab * square, overlap.variance, pair.empty)
        overlap = replace(overlap, variance=variance)
    return replace(
        prediction,
        synthetic=pair.measured(prediction.synthetic),
        overlap=overlap,
        whole=None if whole is None else pair.measured(whole),
    )


def _unlent(synthetic: NDArray[np.float32], pair: Pair, data: DataRecord) -> NDArray[np.float32]:
    """A prediction on the same scale, brought there without anything of its target but the clip."""
    return by_slabs(
        lambda slab: pair.measured_scaled(data.without_target(slab)), synthetic, pair.empty
    )


def _varies(volume: NDArray[np.float32], mask: NDArray[np.bool_]) -> bool:
    """Whether the voxels in a mask differ."""
    ends = [(part.min(), part.max()) for (part,) in masked_parts(mask, volume) if part.size]
    return bool(max(high for _, high in ends) > min(low for low, _ in ends))


def _say_what_is_missing(pair: Pair, inside: NDArray[np.bool_]) -> None:
    """Log which metrics a specimen does not have, and why."""
    if min(pair.grid.shape) < SSIM_WINDOW:
        logger.warning(
            f"{pair.name}: no windowed SSIM, which needs {SSIM_WINDOW} voxels along each axis of "
            f"the volume, got {pair.grid.shape}"
        )
    if not inside.any():
        logger.warning(
            f"{pair.name}: no consistency error, as the mask is empty at the resolution of the "
            "source"
        )


def _predictions(
    pair: Pair, baselines: Sequence[Baseline], predictors: Mapping[str, Predictor]
) -> Iterator[Prediction]:
    """Yield the prediction of each baseline and each model for a pair."""
    for baseline in baselines:
        yield Prediction(baseline.name, baseline.predict(pair))
    yield from predictions(pair, predictors)
