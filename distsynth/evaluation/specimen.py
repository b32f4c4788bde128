"""One specimen through every method: its figures, and a slice for pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from distsynth.evaluation.artefacts import Prediction, artefacts, predictions
from distsynth.evaluation.baselines import Baseline, Cubic
from distsynth.evaluation.pairs import lies_on_disk
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
from distsynth.metrics.views import Difference
from distsynth.metrics.windows import Moments
from distsynth.runs.data_record import DataRecord
from sharding.io.parallel import available_cores
from sharding.volumes.pair import Pair
from sharding.volumes.slabs import by_slabs, planes
from sharding.volumes.volume import write_volume

logger = logging.getLogger(__name__)

AXIS = 2
"""Slicing axis of the pictures."""
MOST_THREADS = 4
"""Predictions that are measured at a time, each with its own volume in memory."""
Item = TypeVar("Item")
Result = TypeVar("Result")


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


@dataclass(frozen=True)
class Wanted:
    """What an evaluation asks for besides its figures.

    Attributes:
        volumes: Folder for the models' synthetic volumes; None writes none.
        conventions: Whether to compute PSNR and SSIM under every convention as well.
        whole: Whether to keep what the models predict.
    """

    volumes: Path | None = None
    conventions: bool = False
    whole: bool = False


@dataclass(eq=False)
class Measured:
    """What came of one method.

    Attributes:
        method: Its name.
        row: Key of METRICS -> value.
        picture: Its slice, standardised.
        curve: How its uncertainty ranks its error; None if it has no uncertainty.
        conventions: PSNR and SSIM under each convention; None where they are not wanted.
        whole: The prediction; None where it is not wanted.
    """

    method: str
    row: dict[str, float]
    picture: NDArray[np.float32]
    curve: RiskCoverage | None = None
    conventions: Values | None = None
    whole: NDArray[np.float32] | None = None


@dataclass(eq=False)
class SpecimenEvaluation:
    """What came of one specimen.

    Attributes:
        example: Its slice through every method.
        methods: Method -> what came of it, baselines first.
    """

    example: Example
    methods: dict[str, Measured]

    @property
    def predicted(self) -> dict[str, NDArray[np.float32]]:
        """Model -> what it predicts, of those that were kept."""
        kept = ((name, measured.whole) for name, measured in self.methods.items())
        return {name: whole for name, whole in kept if whole is not None}


def evaluate_specimen(
    pair: Pair,
    data: DataRecord,
    baselines: Sequence[Baseline],
    predictors: Mapping[str, Predictor],
    wanted: Wanted,
) -> SpecimenEvaluation:
    """Predict a specimen by every method, and measure each prediction.

    While one method predicts, those before it are measured by other cores; where volumes lie on
    disk because they are large, each is measured before the next one is predicted.

    Args:
        pair: The specimen.
        data: The record of the data that the models were trained on.
        baselines: Fitted.
        predictors: Name of the row to model.
        wanted: What is asked for besides.
    """
    index = central_slice(pair.mask, AXIS)
    ruler = _Ruler.of(pair, data, frozenset(predictors), wanted, index)
    made = _predictions(pair, baselines, predictors)
    threads = 0 if lies_on_disk(pair) else min(available_cores() - 1, MOST_THREADS)
    methods = {measured.method: measured for measured in _each(ruler, made, threads)}
    shown = {name: measured.picture for name, measured in methods.items()}
    return SpecimenEvaluation(_example(pair, index, shown), methods)


def _predictions(
    pair: Pair, baselines: Sequence[Baseline], predictors: Mapping[str, Predictor]
) -> Iterator[Prediction]:
    """Yield the prediction of each baseline and each model for a pair."""
    for baseline in baselines:
        yield Prediction(baseline.name, baseline.predict(pair))
    yield from predictions(pair, predictors)


def _each(
    function: Callable[[Item], Result], items: Iterator[Item], threads: int
) -> Iterator[Result]:
    """The function of each item, in order, in threads while the next item is made.

    Args:
        function: Leaves Python to other threads most of the time.
        items: As many as there are threads are alive at a time, and one that is made.
        threads: 0 calls the function here.
    """
    if threads < 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="measure") as pool:
        running: list[Future[Result]] = []
        for item in items:
            running.append(pool.submit(function, item))
            del item
            if len(running) > threads:
                yield running.pop(0).result()
        for future in running:
            yield future.result()


@dataclass(frozen=True, eq=False)
class _Ruler:
    """Measures predictions of one specimen; what they share is computed once, before."""

    pair: Pair
    data: DataRecord
    models: frozenset[str]
    wanted: Wanted
    index: int
    windows: Moments | None
    native: NDArray[np.float32]
    inside: NDArray[np.bool_]
    is_consistent: bool

    @classmethod
    def of(
        cls, pair: Pair, data: DataRecord, models: frozenset[str], wanted: Wanted, index: int
    ) -> _Ruler:
        windows = target_windows(pair.measured_target, pair.measured_transform, pair.empty)
        native, inside = pair.native, pair.native_mask
        # A small mask may hold no voxel of a coarse source.
        is_consistent = bool(inside.any()) and _varies(native, inside)
        _say_what_is_missing(pair, inside)
        return cls(pair, data, models, wanted, index, windows, native, inside, is_consistent)

    def __call__(self, prediction: Prediction) -> Measured:
        """Every figure of a prediction."""
        pair, synthetic = self.pair, prediction.synthetic
        target, transform = pair.measured_target, pair.measured_transform
        is_model = prediction.method in self.models
        measured = _on_measured_scale(prediction, pair)
        row = volume_metrics(measured.synthetic, target, transform, pair.mask, self.windows)
        row["psnr_unlent"] = psnr(
            mse(_unlent(synthetic, pair, self.data), target, pair.mask), transform.data_range
        )
        row |= artefacts(measured, target, pair.mask)
        found = Measured(prediction.method, row, planes(synthetic, [self.index], AXIS))
        if measured.spread is not None:
            error = Difference(measured.synthetic, target)
            found.curve = risk_coverage(error, measured.spread, pair.mask)
            row |= found.curve.metrics
        row["consistency_error"] = math.nan
        if self.is_consistent:
            degraded = pair.degrade(synthetic)
            row["consistency_error"] = consistency_error(degraded, self.native, self.inside)
        if self.wanted.conventions and (is_model or prediction.method == Cubic.name):
            found.conventions = conventional_values(
                measured.synthetic, pair.grid.data, transform, pair.mask, pair.empty
            )
        if is_model and self.wanted.volumes:
            restored = pair.grid.with_data(pair.source_transform.restore(synthetic, pair.empty))
            path = self.wanted.volumes / f"{pair.name}_{prediction.method}.nii.gz"
            write_volume(path, restored)
        if is_model and self.wanted.whole:
            found.whole = synthetic
        return found


def _on_measured_scale(prediction: Prediction, pair: Pair) -> Prediction:
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


def _example(pair: Pair, index: int, shown: dict[str, NDArray[np.float32]]) -> Example:
    """A slice of the pair, and of what every method made of it."""
    return Example(
        specimen=pair.name,
        axis=AXIS,
        index=index,
        spacing_mm=pair.grid.spacing_mm,
        source=pair.source_transform.standardise_scaled(planes(pair.source_scaled, [index], AXIS)),
        target=pair.target_transform.standardise_scaled(planes(pair.target_scaled, [index], AXIS)),
        mask=planes(pair.mask, [index], AXIS),
        synthetic=shown,
    )
