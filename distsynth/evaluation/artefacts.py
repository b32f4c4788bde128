"""Artefacts of patches and strides: seams, disagreement of windows, checkerboards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsynth.inference.predictor import Predictor
from distsynth.inference.stitching import border_planes
from distsynth.inference.uncertainty import count, predict_with_uncertainty
from distsynth.inference.windows import overlap, without_windows
from distsynth.metrics.checkerboard import checkerboard
from distsynth.metrics.overlap import Overlap
from distsynth.metrics.seams import Borders, seams
from distsynth.metrics.views import Outside
from sharding.volumes.pair import Pair

NO_BORDERS: Borders = (np.array([], np.int64),) * 3


@dataclass(frozen=True, eq=False)
class Prediction:
    """A synthetic volume, and how it was predicted.

    Attributes:
        method: Its name.
        synthetic: Shape (x, y, z), standardised.
        borders: Planes where its patches start or end; a baseline has none.
        overlap: The disagreement of its windows; None if it has none.
        whole: The same generator's prediction without windows; None if there is none.
        spread: The deviation of members and flips, standardised; None if there is one of each.
    """

    method: str
    synthetic: NDArray[np.float32]
    borders: Borders = NO_BORDERS
    overlap: Overlap | None = None
    whole: NDArray[np.float32] | None = None
    spread: NDArray[np.float32] | None = None


def predictions(pair: Pair, predictors: Mapping[str, Predictor]) -> Iterator[Prediction]:
    """Yield the predictions of each model for a pair, with windows and without them.

    The prediction without windows is made once for models that differ in how they stitch alone.
    """
    source, shape = pair.network_source, pair.grid.shape
    without: dict[tuple[int, Sequence[int]], NDArray[np.float32]] = {}
    for name, predictor in predictors.items():
        config = predictor.checkpoint.config
        variance = None if predictor.whole_images else pair.empty(shape)
        title = f"{name}, {pair.name}"
        if count(predictor) > 1 and variance is None:
            synthetic, spread = predict_with_uncertainty(predictor, source, title, empty=pair.empty)
        else:
            synthetic = predictor(source, title=title, empty=pair.empty, variance=variance)
            spread = None
            if count(predictor) > 1:
                _, spread = predict_with_uncertainty(predictor, source, title, empty=pair.empty)
        key = id(predictor.generator), tuple(config.stitch.axes)
        reference = without_windows(predictor, shape)
        if reference is not None and key not in without:
            without[key] = reference(source, title=f"{title}, without windows", empty=pair.empty)
        yield Prediction(
            name,
            synthetic,
            border_planes(
                predictor.locations(shape),
                shape,
                config.data.sides,
                config.stitch.trim,
                config.data.start_multiple,
            ),
            None if variance is None else overlap(predictor, variance),
            None if reference is None else without[key],
            spread,
        )


def artefacts(
    prediction: Prediction, target: NDArray[np.float32], mask: NDArray[np.bool_]
) -> dict[str, float]:
    """Metrics of the artefacts of patches and strides; NaN if a prediction has neither.

    Args:
        prediction: What was predicted.
        target: Standardised, same shape.
        mask: Foreground.
    """
    beyond = Outside(mask)
    inside, outside = seams(prediction.synthetic, target, prediction.borders, (mask, beyond))
    windows, whole = prediction.overlap, prediction.whole
    relative = math.nan
    if whole is not None:
        (reference,) = seams(whole, target, prediction.borders, (mask,))
        if 0 < reference.index < math.inf:
            relative = inside.index / reference.index
    return {
        "seam_index": inside.index,
        "seam_index_outside": outside.index,
        "seam_excess": inside.excess,
        "seam_excess_outside": outside.excess,
        "seam_index_relative": relative,
        "overlap_disagreement": math.nan if windows is None else windows.disagreement(mask),
        "overlap_disagreement_outside": (
            math.nan if windows is None else windows.disagreement(beyond)
        ),
        "checkerboard": checkerboard(prediction.synthetic, target, mask),
    }
