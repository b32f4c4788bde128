"""The JSON file beside a prediction: which model made it of what, how, and what to think of it.

It names no path and holds no text of a header. Its key sums up all that a prediction depends on.
The record is written before the prediction, and the prediction last: where both are there and the
key is the one wanted, the prediction is finished.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distsynth.inference.predictor import Predictor
from distsynth.prediction.inputs import Input
from distsynth.runs.package import exported_config
from distsynth.runs.versions import installed_versions
from sharding.io.atomic import atomic_write
from sharding.io.records import json_text
from sharding.volumes.formats.registry import files_of

if TYPE_CHECKING:
    from distsynth.inference.scan import PredictedScan

PROGRAM = "distsynth"
DESCRIPTION = "Synthetic higher-field image predicted by a network. Research use only."
DATASET = "dataset_description.json"
BIDS_VERSION = "1.9.0"


def model_sha256(predictor: Predictor) -> str:
    """Digest of weights, configuration and data: the same for a checkpoint and its export."""
    digest = hashlib.sha256()
    for name, value in sorted(predictor.generator.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    config = exported_config(predictor.checkpoint.config)
    data = asdict(predictor.checkpoint.data.anonymous())
    digest.update(json.dumps([config, data], sort_keys=True).encode())
    return digest.hexdigest()


def scan_sha256(path: Path) -> str:
    """Digest of the bytes of a scan's files.

    Raises:
        DataError: If one is missing.
    """
    digest = hashlib.sha256()
    for part in files_of(path):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def key_of(settings: dict[str, Any]) -> str:
    """The key of what a prediction depends on, all as JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def held_key(path: Path) -> str | None:
    """The key in the record at a path; None if there is no record, "" if it is none of ours."""
    try:
        held = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return ""
    own = held.get(PROGRAM) if isinstance(held, dict) else None
    key = own.get("key") if isinstance(own, dict) else None
    return key if isinstance(key, str) else ""


def write_record(
    item: Input, predictor: Predictor, settings: dict[str, Any], predicted: PredictedScan
) -> None:
    """Write the record of a prediction that is about to be written.

    Args:
        item: What was predicted.
        predictor: The model.
        settings: All that the prediction depends on.
        predicted: The result.
    """
    comparison, grid = predicted.comparison, predicted.synthetic
    own = {
        "key": key_of(settings),
        **settings,
        "version": installed_versions((PROGRAM,))[PROGRAM],
        "model": {
            "name": predictor.name,
            "sha256": settings["model"],
            "family": predictor.checkpoint.config.generator.family,
            "steps": predictor.checkpoint.position.step,
            "shards_sha256": predictor.checkpoint.data.manifest_sha256,
        },
        "grid": {
            "shape": grid.shape,
            "spacing_mm": [round(side, 6) for side in grid.spacing_mm],
            "orientation": grid.orientation,
        },
        "training_scans": comparison.scans,
        "unlike_training": [asdict(each) for each in comparison.differences],
    }
    record = {
        "Description": DESCRIPTION,
        "GeneratedBy": [{"Name": PROGRAM, "Version": own["version"]}],
        **({"Sources": [f"bids::{item.name}"]} if item.bids else {}),
        PROGRAM: own,
    }
    atomic_write(item.record, json_text(record))


def describe_dataset(out: Path) -> None:
    """Make the folder of the outputs of a BIDS folder a BIDS derivative, if it is not one yet."""
    path = out / DATASET
    if path.exists():
        return
    version = installed_versions((PROGRAM,))[PROGRAM]
    content = {
        "Name": "Synthetic higher-field images",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": PROGRAM, "Version": version}],
    }
    atomic_write(path, json_text(content))
