"""The commands that go from shards to an evaluated model."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from distsynth.cli.arguments import (
    Checkpoint,
    Cohort,
    Out,
    SourcePattern,
    TargetPattern,
    chosen_families,
    columns,
    parse,
)
from distsynth.cli.continuing import RESUME, continued_by
from distsynth.cli.listed_names import PRESET_NAMES
from distsynth.cli.messages import UsageError
from distsynth.cli.short_help import HELP, train_help

WHICH_PRESET = """\
Take quick for a first look (2 minutes on two cores), best for the best images (30 minutes),
best-gpu where there is a GPU; cut shards for them by distsynth shard --for-preset best.
dcgan, unet, pix2pix, fcn and dcsrn are the paper's rows; small and the others train on slices.
distsynth presets NAME prints a whole configuration, discriminator and learning rates included."""

PATTERN = (
    "Glob of the sources of a folder; for a BIDS folder below each subject's folder, such as "
    "**/*_T1w.nii.gz."
)

PredictedIn = Annotated[
    Literal["auto", "no", "bf16"],
    arg(
        help="auto predicts in bf16 with a model that was trained in it, where the device "
        "multiplies natively in it; no predicts in float32."
    ),
]


@dataclass(frozen=True)
class Stitch:
    """How patches are stitched, where it differs from the checkpoint's configuration."""

    stride: int | None = None
    """Voxels between patches."""
    trim: int | None = None
    """Voxels cut from each side of a patch."""
    weights: Literal["uniform", "smooth"] | None = None
    """Plain average of overlaps, or weights that fall towards the patch border."""
    axes: tuple[int, ...] | None = None
    """Slicing axes to average over."""
    flips: tuple[int, ...] | None = None
    """Axes to flip: the mean over all their combinations is predicted."""
    method: Literal["auto", "windows", "whole"] | None = None
    """Windows, or whole slices at once; auto takes whole slices where the result is the same."""
    memory_mb: int | None = None
    """Limit on the memory of the activations of one forward pass, in MiB."""


def presets(args: Sequence[str]) -> None:
    """list the presets, or print one as a configuration"""

    @dataclass(frozen=True)
    class Presets:
        """List the presets, or print the whole configuration of one.

            distsynth presets
            distsynth presets small > mine.json

        Edit the file, and distsynth train mine.json trains it.
        """

        name: Positional[Annotated[str | None, arg(metavar="[PRESET]")]] = None
        """The preset to print; without it all are listed."""
        json: bool = False
        """Print JSON instead of a table."""

    given = parse("presets", Presets, args)
    from distsynth.config import to_json
    from distsynth.presets import PRESETS, describe, preset

    if given.name:
        print(to_json(preset(given.name)), end="")
    elif given.json:
        print(json.dumps([describe(name) for name in PRESETS], indent=2))
    else:
        rows = [["preset", "generator", "weights", "losses"]]
        for row in map(describe, PRESETS):
            weights = f"{row['generator_parameters']:,}"
            rows.append([row["preset"], row["generator"], weights, row["losses"]])
        print(f"{WHICH_PRESET}\n\n{columns(rows)}")


def train(args: Sequence[str]) -> None:
    """train a preset or a configuration file"""
    named = len(args) > 0 and not args[0].startswith("-")
    if set(HELP) & set(args):
        print(train_help(args[0]) if named else train_help())
        return
    if not named:
        usage = "usage: distsynth train PRESET|CONFIG.json -o RUN [options]"
        names = f"presets: {', '.join(PRESET_NAMES)}"
        raise UsageError(f"name a preset or a configuration file\n{usage}\n{names}")
    from distsynth.api import load_config
    from distsynth.config import RunConfig, validate, with_overrides

    name, *rest = args
    start = chosen_families(load_config(name), rest)

    @dataclass(frozen=True)
    class Train:
        """Train from the named preset; every field of the configuration is an option."""

        run_dir: Annotated[str, arg(aliases=["-o"], metavar="RUN")]
        """Folder of the run: a path, or a URL such as s3://bucket/runs/one."""
        config: Annotated[RunConfig, arg(name="")] = field(default_factory=lambda: start)
        fold: int = 0
        """Train on this fold of shards that were cut with --folds; 0 for shards without folds."""
        resume: bool = False
        """Continue from the last checkpoint in the folder."""
        overwrite: bool = False
        """Replace a run in the folder."""

    given = parse(f"train {name}", Train, rest)
    config = validate(given.config)
    if given.fold:
        folder = f"{config.data.shards.rstrip('/')}/fold-{given.fold}"
        config = with_overrides(config, {"data.shards": folder})

    from distsynth.training.loop import train as run_training

    with continued_by("train", args, RESUME):
        result = run_training(config, given.run_dir, resume=given.resume, overwrite=given.overwrite)
    # One line, however many ranks a launcher started.
    if os.environ.get("RANK", "0") == "0":
        print(result.best)


def predict(args: Sequence[str]) -> None:
    """predict synthetic targets from source volumes"""

    @dataclass(frozen=True)
    class Predict:
        """Predict the synthetic target of a source volume, or of every one in a folder.

            distsynth predict runs/small scan.nii.gz -o synthetic.nii.gz
            distsynth predict runs/small scans/ -o predicted
            distsynth predict runs/two-contrasts t1.nii.gz t2.nii.gz -o synthetic.nii.gz

        Says what is unlike the training scans, and refuses what is too unlike them.

        Research use only: synthetic detail is not measured detail.
        """

        checkpoint: Positional[Checkpoint]
        """A checkpoint, a run's folder for its best one, or a folder of distsynth export; a path or
        a URL."""
        volumes: Positional[Annotated[tuple[Path, ...], arg(metavar="VOLUME...")]]
        """The source: a file, or the folder of a DICOM series or OME-Zarr; of a model of several
        contrasts one for each, in its order. Or many: a folder of sources, a cohort.csv, or a BIDS
        folder."""
        out: Out
        """File to write: .nii.gz, .nii, .mgz, .mgh, .nrrd, .ome.zarr. If the source is a DICOM
        series, a name without an ending is the folder of a DICOM series. For many sources the
        folder to write to; what is finished there is not predicted again."""
        ensemble: tuple[str, ...] = ()
        """More checkpoints, runs or exports of the same shards: their mean is predicted, stitched
        as the first one is."""
        source_pattern: Annotated[str | None, arg(help=PATTERN)] = None
        like: Path | None = None
        """Predict on the grid of this volume."""
        units: Literal["source", "scaled", "standardised"] = "source"
        """Intensities of the result: in the source's own units; scaled, 0 to 1000; or standardised,
        as the network returns them."""
        dtype: Literal["float32", "int16", "uint16"] = "float32"
        """Type of the voxels that are written; integers are rounded intensities."""
        uncertainty: bool = False
        """Also write the standard deviation, in the same units, of what the models of --ensemble
        and the flips of --stitch.flips predict of a voxel."""
        region: bool = False
        """Predict only where the source has data, and fill the rest with its background."""
        force: bool = False
        """Predict a source that is too unlike the training scans."""
        orientation: Literal["header", "array"] = "header"
        """array accepts a source that has lost its orientation; the result then has none either,
        and its array lies like that of the source."""
        max_voxels: int = 1_000_000_000
        """Refuse a grid of more voxels."""
        keep_patient: bool = False
        """Copy patient and study of a DICOM source into a DICOM output, so that an archive files it
        beside the source. By default no field of a patient is copied."""
        stitch: Stitch = field(default_factory=Stitch)
        device: Literal["auto", "cpu"] = "auto"
        precision: PredictedIn = "auto"
        overwrite: bool = False

    given = parse("predict", Predict, args)
    if not given.volumes:
        raise UsageError("name the volume to predict\nusage: distsynth predict MODEL VOLUME -o OUT")
    from distsynth.prediction.inputs import are_one_scan
    from distsynth.prediction.run import predict as run_prediction

    many = not are_one_scan(given.volumes)
    # With --overwrite the very same line continues.
    with continued_by("predict", args, begun=lambda: many and not given.overwrite):
        written = run_prediction(
            (given.checkpoint, *given.ensemble),
            given.volumes,
            given.out,
            pattern=given.source_pattern,
            like=given.like,
            orientation=given.orientation,
            max_voxels=given.max_voxels,
            stitching=vars(given.stitch),
            units=given.units,
            dtype=given.dtype,
            uncertainty=given.uncertainty,
            region=given.region,
            force=given.force,
            keep_patient=given.keep_patient,
            device=given.device,
            precision=given.precision,
            overwrite=given.overwrite,
        )
    for path in written:
        print(path)


def evaluate(args: Sequence[str]) -> None:
    """compare checkpoints with the baselines on stitched volumes"""

    @dataclass(frozen=True)
    class Evaluate:
        """Compare checkpoints with the baselines on stitched volumes.

        distsynth evaluate runs/small runs/unet-7 --cohort cohort.csv -o evaluation
        """

        checkpoints: Positional[Annotated[tuple[str, ...], arg(metavar="CHECKPOINT...")]]
        """Checkpoints, run folders (their best checkpoint) or exports, as paths or URLs. Rows of
        the tables are named after the folder of the run or export."""
        cohort: Cohort
        """The cohort that the shards were cut from."""
        out: Out
        """Folder for results.csv, results.json, table.txt, pictures and report.html."""
        split: Literal["train", "val", "test"] = "test"
        """Which specimens to evaluate, by the split of the shards."""
        source_pattern: SourcePattern = None
        target_pattern: TargetPattern = None
        stitch: Stitch = field(default_factory=Stitch)
        folds: bool = False
        """The checkpoints are those of the folds of a cross-validation: each is evaluated on the
        specimens that validated it, and all together are one row."""
        ensemble: bool = False
        """Add the mean of what all checkpoints predict as a row of its own."""
        save_volumes: bool = False
        """Write the synthetic volumes as well."""
        conventions: bool = False
        """Write conventions.csv, .md and .html too: the same predictions, and cubic interpolation,
        under the conventions by which papers compute PSNR and SSIM."""
        device: Literal["auto", "cpu"] = "auto"
        precision: PredictedIn = "auto"
        overwrite: bool = False

    given = parse("evaluate", Evaluate, args)
    from distsynth.api import evaluate as run_evaluation
    from sharding.volumes.cohort import read_cohort

    evaluation = run_evaluation(
        given.checkpoints,
        read_cohort(given.cohort, given.source_pattern, given.target_pattern),
        given.out,
        split=given.split,
        stitching=vars(given.stitch),
        folds=given.folds,
        with_ensemble=given.ensemble,
        save_volumes=given.save_volumes,
        conventions=given.conventions,
        device=given.device,
        precision=given.precision,
        overwrite=given.overwrite,
    )
    print((given.out / "table.txt").read_text(encoding="utf-8"))
    print(given.out / "report.html")
    # Last, where it is seen.
    for verdict in evaluation.verdicts:
        print(verdict)
