"""A checkpoint made into a folder to hand on: weights, configuration, ONNX model, model card."""

from __future__ import annotations

from pathlib import Path

from distsynth.export.model_card import ModelEvaluation, model_card
from distsynth.export.onnx import PACKAGES as ONNX_PACKAGES
from distsynth.export.onnx import onnx_model, require_onnx
from distsynth.inference.predictor import load_predictor, run_dir_of
from distsynth.metrics.results import RESULTS_FILE, read_results
from distsynth.models import Generator
from distsynth.runs.package import RECORD, WEIGHTS, export_files, is_export, write_files
from distsynth.runs.versions import installed_versions
from sharding.io.atomic import atomic_folder
from sharding.io.errors import DataError, file_errors
from sharding.io.storage import Folder

CARD, ONNX = "README.md", "model.onnx"
PACKAGES = ("distsynth", "torch", "safetensors")


def write_export(
    path: str | Path,
    out: str | Path,
    *,
    evaluation: str | Path | None = None,
    row: str | None = None,
    onnx: bool = True,
    overwrite: bool = False,
) -> Path:
    """Export a checkpoint; the folder appears whole or not at all.

    Args:
        path: A checkpoint, or a run's folder for its best one; a path or a URL.
        out: Folder to write: model.safetensors, config.json, distsynth.json, model.onnx, README.md
            and SHA256SUMS.
        evaluation: Folder that `distsynth evaluate` wrote, for the card.
        row: The model's name in it; None takes that of the run's folder.
        onnx: Write model.onnx.
        overwrite: Replace an export.

    Returns:
        The path of the folder.

    Raises:
        ConfigError: If model.onnx is wanted and its packages are not installed.
        DataError: If the checkpoint or the evaluation is bad, `out` may not be written, or the ONNX
            model differs from PyTorch.
    """
    out = Path(out)
    with file_errors(out), atomic_folder(out, RECORD, overwrite) as folder:
        if onnx:
            require_onnx()
        if is_export(path):
            raise DataError(path, "this is an export already", "Copy the folder")
        predictor = load_predictor(path, "cpu")
        checkpoint, generator = predictor.checkpoint, predictor.generator
        assert isinstance(generator, Generator)
        evaluated = None
        if evaluation is not None:
            evaluated = read_evaluation(evaluation, row or run_dir_of(path).name)
        data = checkpoint.config.data
        model = onnx_model(generator, data.sides, data.channels) if onnx else None
        files = export_files(checkpoint)
        packages = (*PACKAGES, *ONNX_PACKAGES) if model else PACKAGES
        versions = installed_versions(packages)
        card = model_card(checkpoint, generator, files[WEIGHTS], versions, model, evaluated)
        files[CARD] = card.encode()
        if model:
            files[ONNX] = model.content
        write_files(folder, files)
    return out


def read_evaluation(evaluation: str | Path, row: str) -> ModelEvaluation:
    """A model's row among the results of an evaluation.

    Raises:
        DataError: If there are no results, or none of that name.
    """
    folder = Folder(evaluation)
    table = read_results(folder.read(RESULTS_FILE), folder / RESULTS_FILE)
    if row not in table.summary:
        rule = f"no model of the name {row} was evaluated there, but {', '.join(table.summary)}"
        raise DataError(folder / RESULTS_FILE, rule, "Name its row with --row")
    return ModelEvaluation(table, row)
