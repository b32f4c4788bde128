"""The page of one run: its training, its evaluation, its predictions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsynth.config import RunConfig, from_json
from distsynth.inference.predictor import load_predictor
from distsynth.metrics.results import RESULTS_FILE, ResultsTable, read_results
from distsynth.metrics.verdict import verdicts
from distsynth.reporting.evaluation_page import figure_picture
from distsynth.reporting.figures import curves_figure
from distsynth.reporting.specimen_pictures import SpecimenPictures, show_specimens
from distsynth.reporting.viewer import viewer_html
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.data_record import DataRecord
from distsynth.runs.folder import BEST, CONFIG_FILE, METRICS_FILE, local_file
from distsynth.runs.rows import read_rows
from distsynth.runs.tracking import public_config
from distsynth.runs.versions import installed_versions
from sharding.io.page import Picture, render
from sharding.io.progress import duration
from sharding.io.storage import Folder
from sharding.volumes.cohort import Specimen, Split
from sharding.volumes.slabs import Empty, in_memory

EVALUATION_FOLDER = "evaluation"
HOW = "For slices, and pictures of seams and consistency, give the cohort with --cohort."


@dataclass(frozen=True)
class Extras:
    """What a page may show beyond what its folder holds.

    Attributes:
        specimens: The cohort, to predict from; None for a page without slices.
        split: Which of them.
        most: Specimens to show at most.
        evaluation: Folder of an evaluation, a path or a URL; None looks in the folder itself.
        device: auto takes a GPU where there is one.
        empty: Makes the arrays that are as large as a volume.
        shown: What is shown of specimens, where it was kept during an evaluation; else they are
            predicted anew.
    """

    specimens: Sequence[Specimen] | None = None
    split: Split = "test"
    most: int = 6
    evaluation: str | None = None
    device: str = "auto"
    empty: Empty = in_memory
    shown: SpecimenPictures | None = None


def run_page(folder: Folder, extras: Extras) -> str:
    """The page of a run's folder.

    Raises:
        DataError: If a file cannot be read, or specimens do not fit the run.
        ConfigError: If no specimen is in the split.
    """
    config = from_json(folder.read(CONFIG_FILE), folder / CONFIG_FILE)
    name = folder.url.rpartition("/")[2]
    rows = run_rows(folder)
    table = evaluated_table(folder, extras)
    return render(
        "distsynth.reporting/run.html",
        title=f"Run {name}",
        run=_facts(config, rows),
        curves=curves_pictures({name: rows}),
        config=public_config(config),
        **report_values({name: folder}, table, extras),
    )


def report_values(
    runs: Mapping[str, Folder], table: ResultsTable | None, extras: Extras
) -> dict[str, Any]:
    """What every report shows of its runs, by the names that the templates use."""
    viewer, checks, note = run_pictures(runs, table, extras)
    return {
        "results": table,
        "verdicts": verdicts(table.values, list(table.steps)) if table else [],
        "viewer": viewer,
        "note": note,
        "checks": checks,
        "data": data_facts(list(runs.values())),
        "versions": installed_versions(),
    }


def curves_pictures(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Picture]:
    """Curves of each run: name -> rows of its metrics.jsonl."""
    return [
        figure_picture(curves_figure(found), f"{name}: losses and stitched validation by step.")
        for name, found in rows.items()
    ]


def run_rows(folder: Folder) -> list[dict[str, Any]]:
    """The rows that a run logged; none if it has not started."""
    if not folder.exists(METRICS_FILE):
        return []
    return read_rows(local_file(folder / METRICS_FILE))


def evaluated_table(folder: Folder, extras: Extras) -> ResultsTable | None:
    """The evaluation that was named, or the one in the folder; None if there is none.

    Raises:
        DataError: If the one named is missing, or one cannot be read.
    """
    if extras.evaluation is not None:
        given = Folder(extras.evaluation)
        return read_results(given.read(RESULTS_FILE), given / RESULTS_FILE)
    for file in (RESULTS_FILE, f"{EVALUATION_FOLDER}/{RESULTS_FILE}"):
        if folder.exists(file):
            return read_results(folder.read(file), folder / file)
    return None


def run_pictures(
    runs: Mapping[str, Folder], table: ResultsTable | None, extras: Extras
) -> tuple[str, list[Picture], str]:
    """Slices, seams and consistency of runs' best checkpoints, and a note; needs the cohort.

    Of the split's specimens those are shown that the table has, if it has any of them.
    """
    if extras.specimens is None:
        return "", [], HOW
    runs = {name: run for name, run in runs.items() if run.exists(BEST.as_posix())}
    if not runs:
        return "", [], "There is no checkpoint to predict with yet."
    shown = extras.shown or _predicted(runs, table, extras, extras.specimens)
    note = f"Specimens of the split {extras.split}, predicted with each run's best checkpoint."
    if shown.left_out:
        note += f" Beyond --most, and not shown: {', '.join(shown.left_out)}."
    return viewer_html(shown.slices), shown.checks, note


def _predicted(
    runs: Mapping[str, Folder],
    table: ResultsTable | None,
    extras: Extras,
    specimens: Sequence[Specimen],
) -> SpecimenPictures:
    """What a page shows of specimens, predicted now."""
    predictors = {name: load_predictor(run.url, extras.device) for name, run in runs.items()}
    evaluated: Collection[str] = () if table is None else table.specimens
    known = {specimen.name for specimen in specimens}
    names = [name for name in evaluated if name in known]
    return show_specimens(predictors, specimens, extras.split, names, extras.most, extras.empty)


def data_facts(runs: Sequence[Folder]) -> dict[str, str]:
    """Fingerprint and make-up of the data, by the first run that has a checkpoint."""
    for run in runs:
        if run.exists(BEST.as_posix()):
            return record_facts(load_checkpoint(local_file(run / BEST.as_posix())).data)
    return {}


def record_facts(data: DataRecord) -> dict[str, str]:
    """Fingerprint and make-up of data that was recorded."""
    counts = {split: list(data.splits.values()).count(split) for split in ("train", "val", "test")}
    return {
        "data fingerprint": data.manifest_sha256[:16],
        "specimens in the shards": ", ".join(f"{n} {split}" for split, n in counts.items()),
        "voxel size of the targets": " x ".join(f"{mm:.3g}" for mm in data.spacing_mm) + " mm",
        "orientation of the targets": data.orientation,
    }


def _facts(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The progress of the run and what it trains."""
    weights = {
        name.removeprefix("lambda_"): value
        for name, value in vars(config.loss).items()
        if name.startswith("lambda_") and value
    }
    scored = [row for row in rows if f"val/{config.train.objective}" in row]
    done = max((row["step"] for row in rows), default=0)
    seconds = max((row.get("throughput/seconds", 0.0) for row in rows), default=0.0)
    # Of a training that the clock ends, the epochs are a bound that is seldom met.
    validated = f"{len(scored)} of {config.train.epochs} epochs validated"
    if config.train.minutes:
        times = "once" if len(scored) == 1 else f"{len(scored)} times"
        validated = f"validated {times}, {config.train.minutes:g} minutes given"
    rates = {"generator": config.optim.lr_generator}
    if config.adversarial:
        rates["discriminator"] = config.optim.lr_discriminator
    patch = "x".join(map(str, config.data.sides)) if config.data.patch_size else "of the shards"
    return {
        "generator": config.generator.label,
        "discriminator": config.discriminator.label,
        "loss weights": ", ".join(f"{name} {value:.4g}" for name, value in weights.items()),
        "learning rates": ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        + f", {config.optim.schedule}",
        "patches": f"{patch}, {config.train.batch_size} in a batch",
        "trained": f"{done} steps, {validated}",
        "training time": duration(seconds) if seconds else "not recorded",
        "chosen by": f"stitched validation {config.train.objective} in the mask",
    }
