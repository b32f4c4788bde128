"""The model card of an export, in Markdown, from what is on record and nothing else.

templates/model_card.md is its text; the functions here give it the values.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distsynth.evaluation.baselines import Cubic, Identity, IntensityMap, NeighbourhoodRegression
from distsynth.export.onnx import SOURCE, SYNTHETIC, TOLERANCE, OnnxModel
from distsynth.inference.averaging import AVERAGE_OF
from distsynth.metrics.definitions import METRICS
from distsynth.metrics.objective import OBJECTIVES
from distsynth.metrics.results import ResultsTable
from distsynth.models import (
    AnyDiscriminator,
    AnyGenerator,
    Generator,
    build_discriminator,
    parameter_count,
)
from distsynth.runs.checkpoint import Checkpoint
from distsynth.runs.data_record import DataRecord
from sharding.io.page import render
from sharding.io.tables import Cell, Column, Table, table_markdown
from sharding.volumes.cohort import SPLITS
from sharding.volumes.config import Intensities
from sharding.volumes.intensities import CENTRE, WIDTH
from sharding.volumes.profile import Range, TrainingProfile

BASELINES = (Identity.name, Cubic.name, IntensityMap.name, NeighbourhoodRegression.name)
UNKNOWN = "not recorded"
FIXED = f"by a fixed map, (x - {CENTRE:g}) / {WIDTH:g}; the high percentile is that of tissue"
INTENSITIES: dict[Intensities, str] = {
    "standardise": "to zero mean and unit variance, volume by volume",
    "percentile": FIXED,
    "foreground": "to zero mean and unit variance of tissue, volume by volume; the high percentile "
    "is that of tissue",
    "landmarks": f"percentiles of tissue moved to those of the training scans, then {FIXED}",
}
"""How intensities are brought to the scale of the network, after they are scaled to [0, 1]."""
LABELS = {
    "norm": "normalisation",
    "norm_first": "normalisation in the first layer",
    "output": "output activation",
    "residual": "residual (the source is added to the output)",
    "sharpen": "sharpening",
}
"""Field of a network's configuration -> how the card calls it; others by their own name."""


@dataclass(frozen=True)
class ModelEvaluation:
    """An evaluation of the model by `distsynth evaluate`.

    Attributes:
        table: All that was evaluated.
        row: The model's row in it.
    """

    table: ResultsTable
    row: str


def model_card(
    checkpoint: Checkpoint,
    generator: Generator,
    weights: bytes,
    versions: Mapping[str, str],
    onnx: OnnxModel | None = None,
    evaluation: ModelEvaluation | None = None,
) -> str:
    """Write the card.

    It names no path and no specimen, and of other evaluated models none but the baselines.

    Args:
        checkpoint: What is exported.
        generator: Its network.
        weights: The file of weights.
        versions: Package to version, of those that make the export.
        onnx: The ONNX model, if there is one.
        evaluation: How the model did on test scans, if it was evaluated.
    """
    config, data = checkpoint.config, checkpoint.data
    return render(
        "distsynth.export/model_card.md",
        config=config,
        data=data,
        unknown=UNKNOWN,
        parameters=parameter_count(generator),
        generator=_network(config.generator),
        multiple=generator.multiple,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        specimens=_splits(data.splits.values()),
        spacing=" x ".join(f"{mm:.4g}" for mm in data.spacing_mm),
        intensities=INTENSITIES[data.preprocess.intensities],
        sources=_sources(data),
        training=_training(checkpoint, versions),
        chosen_by=_chosen_by(checkpoint),
        epoch=checkpoint.position.epoch,
        validation=_validation(checkpoint),
        patch_shape=(1, config.data.channels, *config.data.sides),
        onnx=onnx,
        checked=", ".join("x".join(map(str, shape)) for shape in onnx.checked) if onnx else "",
        input=SOURCE,
        output=SYNTHETIC,
        tolerance=TOLERANCE,
        **_test(data, evaluation),
    )


def _network(network: AnyGenerator | AnyDiscriminator) -> dict[str, str]:
    """Every field of a network's configuration in words; those without a value are left out."""
    facts = {}
    for name, value in asdict(network).items():
        if isinstance(value, list | tuple):
            value = "-".join(map(str, value))
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        if value != "":
            facts[LABELS.get(name, name.replace("_", " "))] = str(value)
    return facts


def _training(checkpoint: Checkpoint, versions: Mapping[str, str]) -> dict[str, str]:
    config, position = checkpoint.config, checkpoint.position
    optim, train = config.optim, config.train
    done = f"{position.epoch} of {train.epochs}"
    if position.step_in_epoch:
        done += f", and {position.step_in_epoch} steps of the next"
    rates = f"{optim.lr_generator:g} (generator)"
    discriminator = "none"
    if config.adversarial:
        network = build_discriminator(config.discriminator, config.data.sides, config.data.channels)
        facts = ", ".join(
            f"{name} {value}" for name, value in _network(config.discriminator).items()
        )
        discriminator = f"{facts}, {parameter_count(network):,} parameters"
        rates += f", {optim.lr_discriminator:g} (discriminator)"
    return {
        "epochs": done,
        "optimizer steps": f"{position.step:,}",
        "batch": f"{train.batch_size} patches a step, in {train.accumulation} micro-batches a rank",
        "ranks": str(len(checkpoint.random) or UNKNOWN),
        "losses": config.loss.description,
        "discriminator": discriminator,
        "optimizer": f"AdamW, betas {optim.beta1:g} and {optim.beta2:g}, weight decay "
        f"{optim.weight_decay:g}",
        "learning rate": f"{rates}, {optim.schedule}, {optim.warmup_steps} steps of warm-up",
        "weights": _weights(checkpoint),
        "gradient norm": f"clipped to {optim.clip_norm:g}" if optim.clip_norm else "not clipped",
        "precision": {"no": "float32"}.get(train.precision, train.precision),
        "seed": str(train.seed),
        "versions in training": UNKNOWN,
        "versions of this export": ", ".join(f"{name} {found}" for name, found in versions.items()),
    }


def _weights(checkpoint: Checkpoint) -> str:
    """What the weights are a mean of, if of anything."""
    decay = checkpoint.config.optim.average
    found = f"averaged over steps, decay {decay:g}" if decay else "those of the last step"
    if parts := checkpoint.record.get(AVERAGE_OF):
        steps = ", ".join(f"{part['step']:,} (seed {part['seed']})" for part in parts)
        found = f"mean of {len(parts)} checkpoints, of each {found}; after steps {steps}"
    return found


def _chosen_by(checkpoint: Checkpoint) -> str:
    """How the best epoch is chosen, and its score."""
    if AVERAGE_OF in checkpoint.record:
        return "The weights are a mean of checkpoints, which was not validated itself."
    train, best = checkpoint.config.train, checkpoint.record.get("best_score", -math.inf)
    better = "higher" if OBJECTIVES[train.objective] else "lower"
    rule = f"The best epoch is chosen by stitched validation {train.objective}, {better} better"
    if train.validate_share < 1:
        rule += f", on {train.validate_share:.0%} of the slices of the validation specimens"
    if train.seam_penalty:
        rule += f", less {train.seam_penalty:g} for each unit of the seam index above 1"
    score = f"{best:.6g}" if math.isfinite(best) else "not known"
    return (
        f"{rule}. The best score of the run up to this checkpoint, signed so that higher is "
        f"better: {score}."
    )


def _validation(checkpoint: Checkpoint) -> str:
    """The metrics of this very epoch as a table; empty if it was not validated."""
    reports: Sequence[Mapping[str, Any]] = checkpoint.record.get("reports", ())
    epoch = checkpoint.position.epoch
    metrics = next((report["metrics"] for report in reports if report["epoch"] == epoch), {})
    rows = [
        [Cell(name.removeprefix("val/")), Cell(f"{value:.6g}")] for name, value in metrics.items()
    ]
    return table_markdown(Table([Column("metric"), Column("value")], [("", rows)])) if rows else ""


def _test(data: DataRecord, evaluation: ModelEvaluation | None) -> dict[str, str]:
    """The table of the model and the baselines on test scans, and what it is of."""
    if evaluation is None:
        return {"test": "", "test_splits": "", "test_note": ""}
    table, row = evaluation.table, evaluation.row
    methods = [row, *(name for name in BASELINES if name in table.summary and name != row)]
    columns = [Column(name) for name in ("metric", "better", "this model", *methods[1:])]
    rows = [
        [
            Cell(METRICS[key].title),
            Cell(METRICS[key].direction.removesuffix(" is better").removesuffix(" is best")),
            *(table.mean_cell(method, key) for method in methods),
        ]
        for key in table.columns
    ]
    return {
        "test": table_markdown(Table(columns, [("", rows)])),
        "test_splits": _splits([data.split_of(name) for name in table.specimens]),
        "test_note": table.note.replace(" below it", " in brackets"),
    }


def _sources(data: DataRecord) -> dict[str, str]:
    """What the training sources were like, contrast by contrast; empty if it is not known."""
    facts: dict[str, str] = {}
    for name, profile in zip(data.contrasts or ("",), data.profiles, strict=True):
        own = _source(profile) if profile else {}
        facts |= {f"{name}: {fact}" if name else fact: value for fact, value in own.items()}
    return facts


def _source(profile: TrainingProfile) -> dict[str, str]:
    """What the training sources of one contrast were like."""

    def sides(ranges: Sequence[Range]) -> str:
        return " x ".join(each.text() for each in ranges)

    return {
        "training sources": f"{profile.scans} scans, {', '.join(profile.orientations)}",
        "their voxel size": f"{sides(profile.spacing_mm)} mm (right, anterior, superior)",
        "their field of view": f"{sides(profile.field_of_view_mm)} mm",
        "their tissue": f"{sides(profile.tissue_mm)} mm, {profile.tissue_share.text('.0%')} of "
        "their voxels",
        "their noise": f"{profile.noise.text('.1%')} of the intensity of tissue",
        "their preparation": " and ".join(profile.steps) or UNKNOWN,
    }


def _splits(splits: Iterable[str]) -> str:
    """How many specimens are in each split."""
    count = Counter(splits)
    return ", ".join(f"{count[split]} {split}" for split in SPLITS if count[split])
