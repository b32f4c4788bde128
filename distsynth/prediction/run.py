"""`predict`: one scan, or all of a folder, a cohort or a BIDS folder, with one model or several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from distsynth.errors import ConfigError
from distsynth.inference.ensemble import ensemble
from distsynth.inference.precision import PredictedIn
from distsynth.inference.predictor import Predictor, load_predictor
from distsynth.inference.scan import ScanOptions, Units
from distsynth.inference.uncertainty import check_uncertainty
from distsynth.prediction.file import (
    FileOptions,
    check_outputs,
    is_finished,
    predict_file,
    settings_of,
    write_prediction,
)
from distsynth.prediction.inputs import Input, are_one_scan, find_inputs
from distsynth.prediction.record import describe_dataset, model_sha256
from sharding.io.atomic import remove_leftovers
from sharding.io.errors import DISK_FULL, CohortError, DataError, cause
from sharding.io.lease import lease
from sharding.volumes.grid import MOST_VOXELS
from sharding.volumes.header import Orientation
from sharding.volumes.output import Dtype

logger = logging.getLogger(__name__)

Model = str | Path | Predictor
AGAIN = "Correct them and give the same line again: what is finished is not predicted again"


def predict(
    models: Model | Sequence[Model],
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    pattern: str | None = None,
    like: str | Path | None = None,
    orientation: Orientation = "header",
    max_voxels: int = MOST_VOXELS,
    stitching: Mapping[str, Any] | None = None,
    units: Units = "source",
    dtype: Dtype = "float32",
    uncertainty: bool = False,
    region: bool = False,
    force: bool = False,
    keep_patient: bool = False,
    device: Literal["auto", "cpu"] = "auto",
    precision: PredictedIn = "auto",
    overwrite: bool = False,
) -> list[Path]:
    """Predict the synthetic targets of scans and write them.

    Args:
        models: A checkpoint, a run's folder for its best one, an export, or what load_predictor
            returned; of several, which must be of the same shards, the mean is predicted.
        source: A scan (a file or the folder of a DICOM series); or a folder of scans, a cohort.csv
            or a folder with one, or a BIDS folder, of which every scan is predicted. For a model
            of several contrasts the scans of one specimen in its order, or a cohort.csv.
        out: For one scan the file to write; for several the folder.
        pattern: Glob of the scans of a folder, or below each subject's folder of a BIDS folder.
        like: Predict one scan on the grid of this volume.
        orientation: "array" accepts scans without orientation.
        max_voxels: Refuse a grid of more voxels.
        stitching: Fields of StitchConfig that differ from the first model's configuration.
        units: Units of intensity of the results, see distsynth.inference.scan.Units.
        dtype: Type of the voxels that are written.
        uncertainty: Also write the standard deviation of what several models, or one with flips,
            predict of a voxel, in the same units.
        region: Predict only where a scan has data, the rest is background.
        force: Predict scans that are too unlike training.
        keep_patient: Copy the patient of a DICOM series into a DICOM output.
        device: auto takes a GPU if there is one.
        precision: auto predicts in bf16 with a model that was trained in it, where the device
            multiplies natively in it.
        overwrite: Replace outputs. Of several scans those that are finished, by the same model with
            the same settings, are kept all the same.

    Returns:
        The predictions, in the order of their names.

    Raises:
        ConfigError: If models do not belong together, or options do not.
        DataError: If a scan, a model or an output is bad, or there are other contrasts than those
            of the model; of several scans, after the others have
            been predicted.
    """
    predictor = _predictor(models, device, precision).stitched(**(stitching or {}))
    sources = [source] if isinstance(source, str | Path) else source
    paths, out = [Path(each) for each in sources], Path(out)
    scan = ScanOptions(max_voxels, units, force, uncertainty=uncertainty, region=region)
    if uncertainty:
        check_uncertainty(predictor)
    grid = None if like is None else Path(like)
    options = FileOptions(grid, orientation, scan, dtype, keep_patient, overwrite)
    if are_one_scan(paths):
        if pattern:
            raise ConfigError("--source-pattern chooses the scans of a folder; this is one scan")
        return [predict_file(predictor, paths, out, options)]
    if like:
        raise ConfigError("--like gives the grid of one scan; there are several")
    if keep_patient:
        raise ConfigError("--keep-patient is for one DICOM series; several scans give NIfTI files")
    items = find_inputs(paths[0], out, pattern, predictor.checkpoint.data.contrasts)
    return _predict_all(predictor, items, out, options)


def _predictor(models: Model | Sequence[Model], device: str, precision: PredictedIn) -> Predictor:
    given = [models] if isinstance(models, str | Path | Predictor) else list(models)
    loaded = [
        each if isinstance(each, Predictor) else load_predictor(each, device, precision)
        for each in given
    ]
    return loaded[0] if len(loaded) == 1 else ensemble(loaded)


def _predict_all(
    predictor: Predictor, items: Sequence[Input], out: Path, options: FileOptions
) -> list[Path]:
    """Predict every scan that is not finished; failures do not stop the others.

    Raises:
        CohortError: If scans failed, with the reason of each.
    """
    with lease(out):
        remove_leftovers(out, recursive=True)
        if any(item.bids for item in items):
            describe_dataset(out)
        failures = _predict_unfinished(predictor, items, options)
    if failures:
        raise CohortError(out, failures, len(items), AGAIN, what="scans")
    return [item.out for item in items]


def _predict_unfinished(
    predictor: Predictor, items: Sequence[Input], options: FileOptions
) -> dict[str, str]:
    """Predict what is not finished; return the scans that failed, each with the reason."""
    model = model_sha256(predictor)
    failures: dict[str, str] = {}
    finished = 0
    for number, item in enumerate(items, start=1):
        try:
            settings = settings_of(predictor, item, options, model)
            if is_finished(item, settings):
                finished += 1
                continue
            check_outputs(item, options)
            logger.info("scan %d of %d", number, len(items))
            write_prediction(predictor, item, options, settings)
        except (DataError, FloatingPointError, MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            failures[item.name] = cause(error)
            logger.error("%s", failures[item.name])
    if finished:
        logger.info(
            "%d of %d scans were finished already, by the same model with the same settings",
            finished,
            len(items),
        )
    return failures
