"""One scan's file to the file of its prediction, and the record beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distsynth.inference.memory_budget import MEGABYTE
from distsynth.inference.predictor import Predictor
from distsynth.inference.reading import read_scan
from distsynth.inference.scan import PredictedScan, ScanOptions, predict_scan
from distsynth.prediction.inputs import Input, single_input
from distsynth.prediction.record import (
    held_key,
    key_of,
    model_sha256,
    scan_sha256,
    write_record,
)
from sharding.io.atomic import refuse_existing
from sharding.volumes.header import Orientation
from sharding.volumes.output import Dtype, Output
from sharding.volumes.slabs import Scratch
from sharding.volumes.volume import write_volume


@dataclass(frozen=True)
class FileOptions:
    """How a scan's file is read, predicted and written.

    Attributes:
        like: A volume whose grid to predict on; None takes the source's own if its voxels have the
            size of the training targets, or else one of that size over its field of view.
        orientation: "array" accepts a source without orientation; the result has none either, and
            its array lies like that of the source.
        scan: How the scan is predicted.
        dtype: Type of the voxels that are written.
        keep_patient: Copy the patient and the study of a DICOM source into a DICOM output.
        overwrite: Replace what is there.
    """

    like: Path | None = None
    orientation: Orientation = "header"
    scan: ScanOptions = field(default_factory=ScanOptions)
    dtype: Dtype = "float32"
    keep_patient: bool = False
    overwrite: bool = False


def predict_file(
    predictor: Predictor,
    path: str | Path | Sequence[str | Path],
    out: str | Path,
    options: FileOptions | None = None,
) -> Path:
    """Predict a source volume and write the result, which any viewer shows in the right place.

    Arrays of a volume that take more than `stitch.memory_mb` lie in files without a name in the
    folder of `out`, so that a volume larger than memory streams through. A JSON file beside `out`
    says how it was made.

    Args:
        predictor: From load_predictor.
        path: The source, a file or a DICOM folder; of a model of several contrasts one for each, in
            its order.
        out: What to write, see sharding.volumes.output.Output.
        options: How.

    Raises:
        DataError: If the file is bad, nearly constant or too unlike training, `out` exists or
            cannot be written, the grid is too large or does not meet the source, the volume is
            smaller than a patch, or the disk is full.
    """
    options = options or FileOptions()
    paths = [path] if isinstance(path, str | Path) else path
    item = single_input([Path(each) for each in paths], Path(out))
    check_outputs(item, options)
    write_prediction(predictor, item, options, settings_of(predictor, item, options))
    return item.out


def settings_of(
    predictor: Predictor, item: Input, options: FileOptions, model: str | None = None
) -> dict[str, Any]:
    """All that a prediction depends on, as JSON values.

    Args:
        predictor: The model.
        item: The scan.
        options: How it is predicted.
        model: The digest of the model, where it is known already.

    Raises:
        DataError: If a file is missing.
    """
    further = [scan_sha256(path) for path in item.sources[1:]]
    return {
        "model": model or model_sha256(predictor),
        "scan_sha256": scan_sha256(item.source),
        **({"further_contrasts_sha256": further} if further else {}),
        "like_sha256": options.like and scan_sha256(options.like),
        "orientation": options.orientation,
        "units": options.scan.units,
        "dtype": options.dtype,
        "uncertainty": options.scan.uncertainty,
        "region": options.scan.region,
        "precision": predictor.computes_in,
        "stitching": vars(predictor.checkpoint.config.stitch),
    }


def check_outputs(item: Input, options: FileOptions) -> None:
    """Refuse outputs that exist or cannot be written, before anything is computed.

    The record of a prediction that was interrupted may be replaced.

    Raises:
        DataError: If there are such.
    """
    _output(item, options).check()
    held = held_key(item.record)
    if held == "":
        refuse_existing([item.record], options.overwrite)
    if options.scan.uncertainty and not held:
        refuse_existing([item.uncertainty], options.overwrite)


def is_finished(item: Input, settings: dict[str, Any]) -> bool:
    """Whether the prediction exists, of this model, scan and settings."""
    return item.out.exists() and held_key(item.record) == key_of(settings)


def write_prediction(
    predictor: Predictor, item: Input, options: FileOptions, settings: dict[str, Any]
) -> PredictedScan:
    """Predict a scan and write the record, the uncertainty and the prediction, in this order.

    An interruption leaves none of them.

    Raises:
        DataError: As predict_file.
    """
    memory = predictor.checkpoint.config.stitch.memory_mb * MEGABYTE
    empty = Scratch(item.out.parent, memory)
    least = predictor.checkpoint.data.preprocess.min_overlap
    scan, grid = read_scan(item.sources, options.like, options.orientation, least, empty)
    _output(item, options).check_grid(grid or scan.first)
    predicted = predict_scan(predictor, scan, grid, options.scan, empty)
    if item.out.is_file():
        # The record that is written now does not describe it.
        item.out.unlink()
    try:
        write_record(item, predictor, settings, predicted)
        if predicted.uncertainty is not None:
            write_volume(item.uncertainty, predicted.uncertainty)
        _output(item, options).write(predicted.synthetic)
    except BaseException:
        # Neither says anything without the prediction, which may be there already.
        if not item.out.exists():
            for beside in (item.record, item.uncertainty):
                beside.unlink(missing_ok=True)
        raise
    return predicted


def _output(item: Input, options: FileOptions) -> Output:
    return Output(
        item.out,
        item.source,
        "synthetic",
        options.keep_patient,
        options.overwrite,
        options.dtype,
    )
