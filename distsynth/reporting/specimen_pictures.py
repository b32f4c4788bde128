"""Specimens through trained models, as slices and pictures for a page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distsynth.errors import ConfigError
from distsynth.inference.predictor import Predictor
from distsynth.inference.stitching import border_planes
from distsynth.reporting.evaluation_page import figure_picture
from distsynth.reporting.seam_figures import consistency_figure, seam_figure
from distsynth.reporting.viewer_slices import Slices, Volumes, cut_slices
from sharding.io.page import Picture
from sharding.volumes.cohort import Specimen, Split
from sharding.volumes.contrasts import in_order
from sharding.volumes.pair import Pair, prepare_pair
from sharding.volumes.slabs import Empty, in_memory

MOST_CHECKS = 8
"""Volumes whose seams and consistency are drawn, one row each: those of the first specimens."""


@dataclass
class SpecimenPictures:
    """What a page shows of specimens.

    Attributes:
        slices: The slices of each specimen.
        checks: Pictures of seams and consistency.
        left_out: Specimens beyond those that were asked for.
    """

    slices: list[Slices] = field(default_factory=list)
    checks: list[Picture] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def show_specimens(
    predictors: Mapping[str, Predictor],
    specimens: Sequence[Specimen],
    split: Split = "test",
    names: Collection[str] = (),
    most: int = 6,
    empty: Empty = in_memory,
) -> SpecimenPictures:
    """Predict specimens and keep what a page shows of them.

    Args:
        predictors: Method -> model; all trained on the same data.
        specimens: The cohort.
        split: Which specimens, by the split of the shards; one that the shards did not hold counts
            as test.
        names: Names of those to show; all if empty.
        most: Specimens at most, in the cohort's order.
        empty: Makes the arrays that are as large as a volume.

    Raises:
        ConfigError: If the models were trained on different data, or no specimen is left.
        DataError: If a test specimen's scan was seen in training, a file is bad, or a specimen has
            other contrasts than the models.
    """
    data = next(iter(predictors.values())).checkpoint.data
    for name, predictor in predictors.items():
        if predictor.checkpoint.data.anonymous() != data.anonymous():
            raise ConfigError(f"{name} was trained on other shards: report it by itself")
    chosen = [
        specimen
        for specimen in specimens
        if data.split_of(specimen.name) == split and (not names or specimen.name in names)
    ]
    if not chosen:
        evaluated = f" that was evaluated ({', '.join(sorted(names))})" if names else ""
        raise ConfigError(f"the cohort has no specimen in the split {split}{evaluated}")
    shown = SpecimenPictures(left_out=[specimen.name for specimen in chosen[most:]])
    for specimen in chosen[:most]:
        specimen = in_order(specimen, data.contrasts)
        pair = prepare_pair(specimen, data.preprocess, data.standards, empty)
        if split == "test":
            data.refuse_seen(specimen, pair)
        seen = pair.network_source
        made = {
            name: model(seen, f"{name}, {pair.name}", empty=empty)
            for name, model in predictors.items()
        }
        add_specimen(shown, pair, made, predictors)
        del pair, seen, made  # Before the next one takes its room.
    return shown


def _checked_specimens(predictors: Mapping[str, Predictor]) -> int:
    """How many specimens get pictures of seams and consistency."""
    return max(1, MOST_CHECKS // len(predictors))


def add_specimen(
    shown: SpecimenPictures,
    pair: Pair,
    made: Mapping[str, NDArray[np.float32]],
    predictors: Mapping[str, Predictor],
) -> None:
    """Add one specimen to what is shown.

    Args:
        shown: What is added to.
        pair: The specimen.
        made: Model -> what it predicts, standardised.
        predictors: The models.
    """
    source, target = pair.source, pair.target
    spacing = pair.grid.spacing_mm
    shown.slices.append(
        cut_slices(
            Volumes(pair.name, source, target, made, pair.mask, spacing, pair.grid.orientation),
            pair.empty,
        )
    )
    if len(shown.slices) > _checked_specimens(predictors):
        return
    borders = {name: _borders(model, target.shape) for name, model in predictors.items()}
    shown.checks.append(
        figure_picture(
            seam_figure(made, target, borders, pair.mask, spacing, pair.empty),
            f"{pair.name}. Left: synthetic less target, blue positive, red negative, with the "
            "borders of all patches. Right: how much that error jumps between neighbouring voxels, "
            "by their distance from a patch border; a peak at 0 is a seam.",
        )
    )
    native_mask = pair.native_mask
    if not native_mask.any():
        return
    native = pair.native
    degraded = {name: pair.degrade(volume) for name, volume in made.items()}
    shown.checks.append(
        figure_picture(
            consistency_figure(
                degraded, native, native_mask, pair.native_source.spacing_mm, pair.empty
            ),
            f"{pair.name}, on the source's own grid. Right: what of the source no global map of "
            "the synthetic's intensities explains, in standard deviations of the source.",
        )
    )


def _borders(predictor: Predictor, shape: tuple[int, ...]) -> list[NDArray[np.intp]]:
    """Planes where patches of a prediction start or end."""
    x, y, z = shape
    config = predictor.checkpoint.config
    return border_planes(
        predictor.locations((x, y, z)),
        shape,
        config.data.sides,
        config.stitch.trim,
        config.data.start_multiple,
    )
