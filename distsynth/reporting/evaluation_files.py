"""What an evaluation leaves: tables, pictures and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from distsynth.evaluation.evaluate import Evaluation, lent
from distsynth.inference.predictor import Predictor
from distsynth.metrics.results import (
    RESULTS_FILE,
    results_csv,
    results_json,
    results_table,
    results_text,
)
from distsynth.reporting.conventions import conventions_files
from distsynth.reporting.evaluation_page import evaluation_page, figure_picture
from distsynth.reporting.figures import comparison_figure, curves_figure
from distsynth.reporting.risk_coverage import (
    CSV,
    risk_coverage_caption,
    risk_coverage_csv,
    risk_coverage_figure,
)
from distsynth.runs.folder import METRICS_FILE
from distsynth.runs.rows import read_rows
from distsynth.runs.tracking import public_config
from sharding.io.atomic import atomic_write


def write_evaluation(
    out: Path,
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor],
    run_dirs: Mapping[str, Path],
) -> str:
    """Write table.txt, results.csv, results.json, pictures and report.html; conventions if asked.

    Args:
        out: Folder to write to.
        evaluation: From evaluate.
        predictors: The evaluated models.
        run_dirs: Model to the folder of its run, for the loss curves.

    Returns:
        The table as text.
    """
    steps = {name: predictor.checkpoint.position.step for name, predictor in predictors.items()}
    table = results_table(evaluation.results, steps)
    text = "\n".join([*evaluation.verdicts, "", results_text(table)])
    for name, content in (
        ("table.txt", text + "\n"),
        ("results.csv", results_csv(table)),
        (RESULTS_FILE, results_json(table)),
    ):
        atomic_write(out / name, content)
    pictures = []
    for example in evaluation.examples:
        figure = comparison_figure(
            example.synthetic,
            example.source,
            example.target,
            example.mask,
            example.spacing_mm,
            example.axis,
        )
        caption = (
            f"{example.specimen}, slice {example.index} along axis {example.axis}. Differences: "
            "blue positive, red negative."
        )
        pictures.append(figure_picture(figure, caption))
        atomic_write(out / "pictures" / f"{example.specimen}.png", pictures[-1].png)
    for name, found in evaluation.risk_coverage.items():
        figure = risk_coverage_figure(found)
        pictures.append(figure_picture(figure, risk_coverage_caption(name, found)))
        atomic_write(out / "pictures" / f"{name}_risk_coverage.png", pictures[-1].png)
    if evaluation.risk_coverage:
        atomic_write(out / CSV, risk_coverage_csv(evaluation.risk_coverage))
    curves = []
    for name, run_dir in run_dirs.items():
        if rows := read_rows(run_dir / METRICS_FILE):
            curves.append(
                figure_picture(
                    curves_figure(rows), f"{name}: losses and stitched validation by step."
                )
            )
            atomic_write(out / "pictures" / f"{name}_curves.png", curves[-1].png)
    if evaluation.conventions:
        title = "distsynth conventions: " + ", ".join(predictors)
        conventions_files(out, evaluation.conventions, title, steps)
    page = evaluation_page(
        "distsynth evaluation: " + ", ".join(predictors),
        _evaluated(evaluation, predictors),
        table,
        pictures,
        curves,
        verdicts=evaluation.verdicts,
        config={
            name: public_config(predictor.checkpoint.config)
            for name, predictor in predictors.items()
        },
    )
    atomic_write(out / "report.html", page)
    return text


def _evaluated(evaluation: Evaluation, predictors: Mapping[str, Predictor]) -> dict[str, str]:
    """What was evaluated and how, for the page."""
    data = next(iter(predictors.values())).checkpoint.data
    stitching = {name: _stitching(predictor) for name, predictor in predictors.items()}
    return {
        "split": f"{evaluation.split}: {', '.join(evaluation.specimens)}",
        "intensities": (
            "measured in the target's standardised units, by its clip, mean and deviation over all "
            f"voxels; networks see: {data.preprocess.intensities}"
        ),
        "lent of the target": lent(data),
        "mask": (
            f"target over {data.preprocess.foreground_threshold} of its range, holes filled, "
            "within the source's field of view"
        ),
        "intervals": "95 %, resampled over specimens",
        **_contrasts(data.contrasts),
        "fitted baselines": f"on {evaluation.training} training specimens",
        **{f"stitching, {name}": value for name, value in stitching.items()},
        "data fingerprint": data.manifest_sha256[:16],
    }


def _contrasts(names: Sequence[str]) -> dict[str, str]:
    """Who sees which contrasts; empty where there is one source."""
    if not names:
        return {}
    seen = f"models and the regression see {', '.join(names)}"
    return {"contrasts": f"{seen}; the other baselines see {names[0]} alone"}


def _stitching(predictor: Predictor) -> str:
    """How a model's patches become a volume, in words."""
    config = predictor.checkpoint.config
    size, stitch = config.data.sides, config.stitch
    if predictor.whole_images and not predictor.exact:
        axes = ", ".join(map(str, stitch.axes))
        return f"whole slices along axes {axes}" if len(size) == 2 else "the whole volume at once"
    cut = f"{'x'.join(map(str, size))} patches, stride {stitch.stride}, trim {stitch.trim}"
    if len(size) == 2:
        cut += f", slices along axes {', '.join(map(str, stitch.axes))}"
    return f"{cut}, {stitch.weights} weights"
