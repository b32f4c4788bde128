"""What an evaluation leaves: tables, pictures and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distsynth.evaluation.evaluate import Evaluation
from distsynth.inference.predictor import Predictor
from distsynth.metrics.results import RESULTS_FILE, results_table, table_csv, table_json, table_text
from distsynth.reporting.evaluation_page import Picture, evaluation_page
from distsynth.reporting.figures import comparison_figure, curves_figure, figure_png
from distsynth.runs.folder import METRICS_FILE
from distsynth.runs.tracking import public_config, read_rows
from sharding.io.atomic import atomic_write


def write_evaluation(
    out: Path,
    evaluation: Evaluation,
    predictors: Mapping[str, Predictor],
    run_dirs: Mapping[str, Path],
) -> str:
    """Write table.txt, results.csv, results.json, pictures and report.html.

    Args:
        out: Folder to write to.
        evaluation: From evaluate.
        predictors: The models judged.
        run_dirs: Model to the folder of its run, for the loss curves.

    Returns:
        The table as text.
    """
    table = results_table(evaluation.results)
    text = table_text(table)
    for name, content in (
        ("table.txt", text + "\n"),
        ("results.csv", table_csv(table)),
        (RESULTS_FILE, table_json(table)),
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
        pictures.append(Picture(figure, caption))
        atomic_write(out / "pictures" / f"{example.specimen}.png", figure_png(figure))
    curves = []
    for name, run_dir in run_dirs.items():
        if rows := read_rows(run_dir / METRICS_FILE):
            figure = curves_figure(rows)
            curves.append(Picture(figure, f"{name}: losses and stitched validation by step."))
            atomic_write(out / "pictures" / f"{name}_curves.png", figure_png(figure))
    page = evaluation_page(
        "distsynth evaluation: " + ", ".join(predictors),
        _judged(evaluation, predictors),
        table,
        pictures,
        curves,
        config={
            name: public_config(predictor.checkpoint.config)
            for name, predictor in predictors.items()
        },
    )
    atomic_write(out / "report.html", page)
    return text


def _judged(evaluation: Evaluation, predictors: Mapping[str, Predictor]) -> dict[str, str]:
    """What was judged and how, for the head of the report."""
    data = next(iter(predictors.values())).checkpoint.data
    stitching = {name: _stitching(predictor) for name, predictor in predictors.items()}
    return {
        "split": f"{evaluation.split}: {', '.join(evaluation.specimens)}",
        "intensities": "standardised by the target's own clip, mean and deviation",
        "mask": (
            f"target over {data.preprocess.foreground_threshold} of its range, holes filled, "
            "within the source's field of view"
        ),
        "intervals": "95 %, resampled over specimens",
        "fitted baselines": f"on {evaluation.training} training specimens",
        **{f"stitching, {name}": value for name, value in stitching.items()},
        "data fingerprint": data.manifest_sha256[:16],
    }


def _stitching(predictor: Predictor) -> str:
    """How a model's patches become a volume, in words."""
    config = predictor.checkpoint.config
    size, stitch = config.data.patch_size, config.stitch
    if predictor.whole_images and not predictor.exact:
        axes = ", ".join(map(str, stitch.axes))
        return f"whole slices along axes {axes}" if len(size) == 2 else "the whole volume at once"
    cut = f"{'x'.join(map(str, size))} patches, stride {stitch.stride}, trim {stitch.trim}"
    if len(size) == 2:
        cut += f", slices along axes {', '.join(map(str, stitch.axes))}"
    return f"{cut}, {stitch.weights} weights"
