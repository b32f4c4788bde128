"""One scan through a network: its grid, the comparison with training, and the result's units."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from distsynth.errors import ConfigError
from distsynth.inference.comparison import Comparison, compare, together
from distsynth.inference.duration import expected_seconds, in_words
from distsynth.inference.reading import Scan
from distsynth.inference.region import Region, find_region
from distsynth.inference.uncertainty import check_uncertainty, predict_with_uncertainty
from distsynth.runs.data_record import DataRecord
from sharding.io.errors import DataError
from sharding.volumes.grid import MOST_VOXELS, check_grid_size, same_spacing, spaced_grid
from sharding.volumes.intensities import SCALED_MAX, IntensityTransform, check_foreground_varies
from sharding.volumes.pair import place_source
from sharding.volumes.profile import known_steps, profile_scan
from sharding.volumes.slabs import Empty, in_memory, slabs
from sharding.volumes.volume import Volume

if TYPE_CHECKING:
    from distsynth.inference.predictor import Predictor

logger = logging.getLogger(__name__)

Units = Literal["source", "scaled", "standardised"]
"""Units of intensity of a result: the source's own; 0 to 1000 between its clipping percentiles, as
`distsynth prepare` writes; or what the network returns."""
UNITS_IN_WORDS = {
    "source": "the source's units of intensity",
    "scaled": f"units from 0 to {SCALED_MAX:g}",
    "standardised": "the network's standardised units",
}


INEXACT = (
    "the network sees each slice as a whole, so that within the region its prediction differs from "
    "that of the whole scan"
)


@dataclass(frozen=True)
class ScanOptions:
    """How a scan is predicted.

    Attributes:
        max_voxels: Voxels that the grid may have.
        units: Units of intensity of the result.
        force: Predict a scan that is too unlike training.
        quiet: Show no progress and log nothing but warnings.
        uncertainty: Also give the spread of members and flips.
        region: Predict only where the scan has data, see distsynth.inference.region.
    """

    max_voxels: int = MOST_VOXELS
    units: Units = "source"
    force: bool = False
    quiet: bool = False
    uncertainty: bool = False
    region: bool = False


@dataclass(frozen=True, eq=False)
class PredictedScan:
    """A predicted scan.

    Attributes:
        synthetic: The result.
        comparison: The scan beside the training scans.
        uncertainty: The spread in the same units, if it was asked for.
    """

    synthetic: Volume
    comparison: Comparison
    uncertainty: Volume | None = None


def predict_scan(
    predictor: Predictor,
    scan: Scan,
    like: Volume | None = None,
    options: ScanOptions | None = None,
    empty: Empty = in_memory,
) -> PredictedScan:
    """Predict a scan on the grid of `like`, or on one like that of the training targets.

    Two lines are logged: what is done, and what is unlike training.

    Args:
        predictor: The model.
        scan: Its contrasts, in the order of the model. The first one decides the grid and the units
            of the result.
        like: A volume whose grid to predict on.
        options: How.
        empty: Makes the arrays that are as large as a volume.

    Raises:
        DataError: If the scan has other contrasts than the model, or is nearly constant, too unlike
            training or smaller than a patch, or the grid is too large.
    """
    options = options or ScanOptions()
    if options.uncertainty:
        check_uncertainty(predictor)
    data, source, where = predictor.checkpoint.data, scan.first, scan.where
    scan.check_count(data.contrasts)
    grid = like or prediction_grid(
        source, data.spacing_mm, data.orientation, where, options.max_voxels
    )
    comparison = compare_scan(predictor, scan)
    region = None
    if options.region:
        region = find_region(predictor, source, grid, *scan.contrasts[1:])
    try:
        predictor.methods(grid.shape, in_memory)
        seconds = expected_seconds(predictor, region.read_shape if region else grid.shape)
    except ConfigError as error:
        raise _too_small(where, error) from None
    if not options.quiet:
        done = _what_is_done(predictor, scan, grid, options, seconds)
        logger.info("%s: %s%s", where, done, _within(region) if region else "")
    if region and not region.exact:
        logger.warning("%s: %s", where, INEXACT)
    if not options.force:
        comparison.check(where)
    if comparison.differences or not options.quiet:
        level = logging.WARNING if comparison.differences else logging.INFO
        logger.log(level, "%s: %s", where, comparison.line)
    standardised, transform = _standardised(data, scan, grid, empty)
    try:
        part = standardised[(..., *region.read)] if region else standardised
        synthetic, spread = _predicted(predictor, part, options, empty)
    except ConfigError as error:
        raise _too_small(where, error) from None
    if region:
        synthetic = region.put_back(synthetic, transform.background, empty)
        spread = None if spread is None else region.put_back(spread, 0.0, empty)
    results = [in_units(synthetic, transform, options.units, empty)]
    if spread is not None:
        results.append(spread_in_units(synthetic, spread, transform, options.units, empty))
    volumes = [grid.with_data(data) for data in results]
    if not like and not source.has_orientation:
        # Without orientation only the arrays can be compared: these lie like the source's.
        volumes = [volume.reoriented("RAS") for volume in volumes]
    return PredictedScan(volumes[0], comparison, volumes[1] if len(volumes) > 1 else None)


def _standardised(
    data: DataRecord, scan: Scan, grid: Volume, empty: Empty
) -> tuple[NDArray[np.float32], IntensityTransform]:
    """What the network sees of a scan, and the intensity transform of its first contrast.

    Returns:
        Shape (x, y, z) of the grid, or (contrasts, x, y, z).

    Raises:
        DataError: If a contrast is nearly constant, or covers too little of the first one.
    """
    count, shape = len(scan.contrasts), grid.shape
    stacked = empty((count, *shape)) if count > 1 else None
    inside, transforms = None, []
    for index, (volume, where) in enumerate(zip(scan.contrasts, scan.places, strict=True)):
        placed = place_source(volume, shape, grid.affine, data.preprocess, where, empty)
        if inside is None:
            inside = placed.inside
        else:
            _check_covers(where, inside, placed.inside, data.preprocess.min_overlap)
        transform = placed.transform.to_standard(data.standards.of_source(index))
        check_foreground_varies(where, volume, transform, data.preprocess.foreground_threshold)
        transforms.append(transform)
        standardised = transform.standardise_scaled(placed.scaled, empty)
        if stacked is None:
            return standardised, transform
        for slab in slabs(shape):
            stacked[index][slab] = standardised[slab]
    assert stacked is not None
    return stacked, transforms[0]


def _check_covers(
    where: str | Path, first: NDArray[np.bool_], own: NDArray[np.bool_], least: float
) -> None:
    """Refuse a contrast whose field of view holds too little of the first one's.

    Raises:
        DataError: If so.
    """
    counts = [
        (np.count_nonzero(first[slab]), np.count_nonzero(first[slab] & own[slab]))
        for slab in slabs(first.shape)
    ]
    both, whole = sum(count for _, count in counts), sum(count for count, _ in counts)
    if both < least * whole or not both:
        raise DataError(
            where,
            f"the contrasts of a scan must overlap: this one covers {both / max(1, whole):.0%} of "
            f"the first one, at least {least:.0%} is needed",
            "Check the affines, or that the files belong together",
        )


def compare_scan(predictor: Predictor, scan: Scan) -> Comparison:
    """A scan beside the scans that a model was trained on, contrast by contrast.

    Args:
        predictor: The model.
        scan: Its files may have a record beside them that says how they were prepared.

    Raises:
        DataError: If the scan has other contrasts than the model.
    """
    data = predictor.checkpoint.data
    scan.check_count(data.contrasts)
    if None in data.profiles:
        return Comparison(0)
    found = [
        compare(
            profile_scan(volume, known_steps(Path(where))), profile, data.preprocess.intensities
        )
        for volume, where, profile in zip(scan.contrasts, scan.places, data.profiles, strict=True)
    ]
    if len(found) == 1:
        return found[0]
    return together(dict(zip(data.contrasts, found, strict=True)))


def in_units(
    synthetic: NDArray[np.float32],
    transform: IntensityTransform,
    units: Units,
    empty: Empty = in_memory,
) -> NDArray[np.float32]:
    """A standardised prediction in other units of intensity.

    Args:
        synthetic: Shape (x, y, z).
        transform: That of the source.
        units: See Units.
        empty: Makes the array of the result.
    """
    if units == "standardised":
        return synthetic
    if units == "scaled":
        transform = replace(transform, low=0.0, high=SCALED_MAX)
    return transform.restore(synthetic, empty)


def spread_in_units(
    synthetic: NDArray[np.float32],
    spread: NDArray[np.float32],
    transform: IntensityTransform,
    units: Units,
    empty: Empty = in_memory,
) -> NDArray[np.float32]:
    """A standardised deviation in other units: half of what lies between a deviation on each side.

    Args:
        synthetic: The prediction, shape (x, y, z), standardised.
        spread: Its deviation, same shape.
        transform: That of the source.
        units: See Units.
        empty: Makes the arrays that are as large as a volume.
    """
    ends = []
    for sign in (-1, 1):
        end = empty(synthetic.shape)
        for slab in slabs(synthetic.shape):
            end[slab] = synthetic[slab] + sign * spread[slab]
        ends.append(in_units(end, transform, units, empty))
    found = empty(synthetic.shape)
    for slab in slabs(synthetic.shape):
        found[slab] = (ends[1][slab] - ends[0][slab]) / 2
    return found


def prediction_grid(
    source: Volume,
    spacing_mm: tuple[float, float, float],
    orientation: str,
    where: object = "source",
    max_voxels: int = MOST_VOXELS,
) -> Volume:
    """The grid to predict on: oriented and spaced like the training targets.

    The first voxel's centre stays where it is, so that a source downsampled from the targets'
    grid comes back onto it.

    Args:
        source: Volume to predict from.
        spacing_mm: Voxel size of the training targets along their axes.
        orientation: Orientation of the training targets, such as RAS.
        where: Names the source in errors.
        max_voxels: Voxels that the grid may have.

    Returns:
        A volume whose shape, affine and header matter; its data is zero and takes no memory.

    Raises:
        DataError: If the grid has more voxels.
    """
    no_data = np.broadcast_to(np.float32(0), source.shape)
    oriented = source.with_data(no_data).reoriented(orientation)
    shape, affine = spaced_grid(oriented, spacing_mm)
    check_grid_size(where, shape, spacing_mm, max_voxels)
    return Volume(np.broadcast_to(np.float32(0), shape), affine, source.header)


def _predicted(
    predictor: Predictor, source: NDArray[np.float32], options: ScanOptions, empty: Empty
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The prediction and, if it is asked for, its spread; standardised."""
    if not options.uncertainty:
        return predictor(source, quiet=options.quiet, empty=empty), None
    return predict_with_uncertainty(predictor, source, quiet=options.quiet, empty=empty)


def _what_is_done(
    predictor: Predictor, scan: Scan, grid: Volume, options: ScanOptions, seconds: float
) -> str:
    """The grid, the resampling, size, units and expected time, in one line."""
    source, turned = scan.first, ""
    if grid.orientation != source.orientation:
        turned = f", reoriented from {source.orientation} to {grid.orientation}"
    how = "resampled by cubic splines"
    if all(_lies_on(volume, grid) for volume in scan.contrasts):
        how = "not resampled"
    names = predictor.checkpoint.data.contrasts
    grids = [_grid(volume) for volume in scan.contrasts]
    given = " and ".join(f"{name} of {found}" for name, found in zip(names, grids, strict=False))
    size = 4 * grid.data.size / 2**20
    return (
        f"{given or grids[0]} become {_grid(grid)}{turned}, {how}; {size:.3g} MB, in "
        f"{UNITS_IN_WORDS[options.units]}; {in_words(seconds)} on the {predictor.device.type}"
    )


def _lies_on(volume: Volume, grid: Volume) -> bool:
    """Whether a volume has a voxel at each of a grid's, so that nothing is interpolated."""
    upright = volume.reoriented(grid.orientation)
    return upright.shape == grid.shape and np.allclose(upright.affine, grid.affine, atol=1e-4)


def _within(region: Region) -> str:
    """What is predicted of the grid, for the line that says what is done."""
    return f"; predicted within {'x'.join(map(str, region.read_shape))} of these voxels"


def _grid(volume: Volume) -> str:
    sides = volume.spacing_mm
    alike = same_spacing(sides, (sides[0],) * 3)
    spacing = f"{sides[0]:.3g}" if alike else "x".join(f"{side:.3g}" for side in sides)
    return f"{'x'.join(map(str, volume.shape))} voxels of {spacing} mm"


def _too_small(where: str | Path, error: ConfigError) -> DataError:
    return DataError(where, str(error), "Give a larger volume, or use smaller patches")
