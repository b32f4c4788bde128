"""The model card of an export, in Markdown, from what is on record and nothing else."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsynth.config import RunConfig
from distsynth.evaluation.baselines import Cubic, Identity, IntensityMap, NeighbourhoodRegression
from distsynth.export.onnx import SOURCE, SYNTHETIC, TOLERANCE, OnnxModel
from distsynth.metrics.image import METRICS
from distsynth.metrics.objective import OBJECTIVES
from distsynth.metrics.results import Table, format_interval, format_value, summary_note
from distsynth.models import AnyGenerator, Generator, build_discriminator, parameter_count
from distsynth.runs.checkpoint import Checkpoint, DataRecord
from sharding.volumes.cohort import SPLITS

BASELINES = (Identity.name, Cubic.name, IntensityMap.name, NeighbourhoodRegression.name)
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Judged:
    """A test of the model by `distsynth evaluate`.

    Attributes:
        table: All that was judged.
        row: The model's row in it.
    """

    table: Table
    row: str


def model_card(
    checkpoint: Checkpoint,
    generator: Generator,
    weights: bytes,
    versions: Mapping[str, str],
    onnx: OnnxModel | None = None,
    judged: Judged | None = None,
) -> str:
    """Write the card.

    It names no path and no specimen, and of other judged models none but the baselines.

    Args:
        checkpoint: What is exported.
        generator: Its network.
        weights: The file of weights.
        versions: Package to version, of those that make the export.
        onnx: The ONNX model, if there is one.
        judged: The evaluation, if there was one.
    """
    config = checkpoint.config
    sections = {
        "Intended use and limits": _limits(),
        "Network": _network(config, generator, weights),
        "Data": _data(checkpoint.data),
        "Training": _training(checkpoint, versions),
        "Validation": _validation(checkpoint),
        "Test": _test(checkpoint.data, judged),
        "Stitching": _stitching(config),
        "How to predict": _use(config, onnx is not None),
        "ONNX": _onnx(config, onnx, generator.multiple),
        "Not recorded": _unknown(),
    }
    title = (
        f"# distsynth model: {config.generator.family}, {parameter_count(generator):,} parameters"
    )
    lead = (
        "Turns a lower-field MRI into a synthetic higher-field one of the same specimen: patches "
        "through a network, stitched to a volume."
    )
    parts = [title, lead, *(f"## {name}\n\n{text}" for name, text in sections.items())]
    return "\n\n".join(parts) + "\n"


def _limits() -> str:
    return _bullets(
        "Research only. Not for diagnosis, nor for any decision about a patient.",
        "Synthetic detail is not measured detail: what the source did not resolve is guessed from "
        "the training scans, and a lesion may be missing or made up.",
        "Only for scans prepared as the training scans were (see Data): other contrasts, "
        "resolutions, scanners, anatomy or preparation give results that nobody has tested.",
        "Numbers below hold for the specimens that they were measured on.",
    )


def _network(config: RunConfig, generator: Generator, weights: bytes) -> str:
    made, data = config.generator, config.data
    sides = f"divisible by {generator.multiple}" if generator.multiple > 1 else "any"
    return _facts(
        {
            **_fields(made),
            "parameters": f"{parameter_count(generator):,}",
            "patch": f"{_sides(data.sides)} voxels",
            "channels of a source": f"{data.channels}"
            + (f", a slice and {data.channels // 2} on each side" if data.channels > 1 else ""),
            "sides that the network takes": sides,
            "sha256 of the weights": hashlib.sha256(weights).hexdigest(),
        }
    )


def _data(data: DataRecord) -> str:
    count = Counter(data.splits.values())
    low, high = data.preprocess.clip_percentiles
    facts = {
        "fingerprint": f"{data.manifest_sha256} (sha256 of the shards' manifest)",
        "specimens": ", ".join(f"{count[split]} {split}" for split in SPLITS),
        "voxel size of the targets": " x ".join(f"{mm:.4g}" for mm in data.spacing_mm) + " mm",
        "orientation of the targets": data.orientation,
        "clipping": f"percentiles {low:g} and {high:g} of each volume",
        "intensities": "scaled to [0, 1], then to zero mean and unit variance, volume by volume",
        "foreground": f"target over {data.preprocess.foreground_threshold:g} of its range, holes "
        "filled, or the specimen's mask",
        "field strengths, contrasts, species, scanners": UNKNOWN,
    }
    return _facts(facts) + (
        "\n\nSplits are by specimen. `distsynth.json` holds digests of specimens' names and of the "
        "voxels seen in training and validation, by which `distsynth evaluate` refuses them as "
        "test scans. Who knows a name or has a scan can tell its split by them; nothing more is in "
        "them."
    )


def _training(checkpoint: Checkpoint, versions: Mapping[str, str]) -> str:
    config, position = checkpoint.config, checkpoint.position
    optim, train = config.optim, config.train
    done = f"{position.epoch} of {train.epochs}"
    if position.step_in_epoch:
        done += f", and {position.step_in_epoch} steps of the next"
    rates = f"{optim.lr_generator:g} (generator)"
    judge, parameters = "none", ""
    if config.adversarial:
        network = build_discriminator(config.discriminator, config.data.sides, config.data.channels)
        judge, parameters = config.discriminator.label, f"{parameter_count(network):,}"
        rates += f", {optim.lr_discriminator:g} (discriminator)"
    facts = {
        "epochs": done,
        "optimizer steps": f"{position.step:,}",
        "batch": f"{train.batch_size} patches a step, in {train.accumulation} micro-batches a rank",
        "ranks": str(len(checkpoint.random) or UNKNOWN),
        "losses": config.loss.description,
        "discriminator": judge + (f", {parameters} parameters" if parameters else ""),
        "optimizer": f"Adam, betas {optim.beta1:g} and {optim.beta2:g}",
        "learning rate": f"{rates}, {optim.schedule}",
        "gradient norm": f"clipped to {optim.clip_norm:g}" if optim.clip_norm else "not clipped",
        "precision": {"no": "float32"}.get(train.precision, train.precision),
        "seed": str(train.seed),
        "versions in training": UNKNOWN,
        "versions of this export": ", ".join(f"{name} {found}" for name, found in versions.items()),
    }
    return _facts(facts)


def _validation(checkpoint: Checkpoint) -> str:
    train, record = checkpoint.config.train, checkpoint.record
    epoch = checkpoint.position.epoch
    past: Sequence[Mapping[str, Any]] = record.get("reports", ())
    metrics = next((report["metrics"] for report in past if report["epoch"] == epoch), {})
    best = record.get("best_score", -math.inf)
    better = "higher" if OBJECTIVES[train.objective] else "lower"
    words = [f"The best epoch is chosen by stitched validation {train.objective}, {better} better"]
    if train.seam_penalty:
        words.append(f", less {train.seam_penalty:g} for each unit of the seam index off 1")
    words.append(". The best score of the run up to this checkpoint, signed so that higher is ")
    words.append(f"better: {best:.6g}." if math.isfinite(best) else "better: not known.")
    text = "".join(words)
    if not metrics:
        return f"{text}\n\nHow the network stood at this very checkpoint: not known, not validated."
    rows = [(name.removeprefix("val/"), f"{value:.6g}") for name, value in metrics.items()]
    note = (
        f"After epoch {epoch}, mean over the validation specimens, in the mask, in standardised "
        "units; the model was chosen by these, so they flatter it. psnr is in dB at the target's "
        "own range, psnr255 at peak 255; recon and gradient are loss terms. Intervals: "
        f"{UNKNOWN}."
    )
    return f"{text}\n\n{note}\n\n" + _table(("metric", "value"), rows)


def _test(data: DataRecord, judged: Judged | None) -> str:
    if judged is None:
        return "Not known: no evaluation was given to the export (`--evaluation`)."
    table, row = judged.table, judged.row
    count = Counter(data.split_of(name) for name in table.specimens)
    splits = ", ".join(f"{count[split]} {split}" for split in SPLITS if count[split])
    methods = [row, *(name for name in BASELINES if name in table.summary and name != row)]
    rows = []
    for key in table.columns:
        cells = []
        for method in methods:
            interval = table.summary[method][key]
            span = format_interval(key, interval)
            cells.append(format_value(key, interval.mean) + (f" ({span})" if span else ""))
        rows.append((METRICS[key][0], "higher" if METRICS[key][1] else "lower", *cells))
    note = (
        f"By `distsynth evaluate`, on whole stitched volumes. Judged specimens by split: {splits}. "
        f"{summary_note(table).replace(' below it', ' in brackets')} The stitching of the "
        "evaluation, where it was not that below: not recorded."
    )
    return f"{note}\n\n" + _table(("metric", "better", "this model", *methods[1:]), rows)


def _stitching(config: RunConfig) -> str:
    stitch, flat = config.stitch, config.data.spatial_dims == 2
    facts = {
        "patches": _sides(config.data.sides),
        "stride": f"{stitch.stride} voxels",
        "trim": f"{stitch.trim} voxels from each side, never at the volume's own faces",
        "weights of overlaps": stitch.weights,
        "method": f"{stitch.method} (windows, or whole slices where these give the same: auto)",
    }
    if flat:
        facts["slices along axes"] = ", ".join(map(str, stitch.axes))
    return _facts(facts)


def _use(config: RunConfig, onnx: bool) -> str:
    steps = (
        "With the distsynth program (Python 3.11 or later), from the folder that this file is in; "
        "the same voxels, to the bit, as from the checkpoint on the same machine and versions:\n\n"
        "    sha256sum --check SHA256SUMS\n"
        "    distsynth predict . scan.nii.gz -o synthetic.nii.gz\n\n"
        "It brings the scan to the voxel size and orientation of the targets, clips and "
        "standardises it as above, and returns the scan's own scale of intensities. Weights are "
        "read from `model.safetensors`; nothing is unpickled."
    )
    if not onnx:
        return steps
    shape = (1, config.data.channels, *config.data.sides)
    return (
        f"{steps}\n\nThe network alone, on standardised patches, without distsynth:\n\n"
        "    import numpy, onnxruntime\n"
        '    session = onnxruntime.InferenceSession("model.onnx")\n'
        f"    patches = numpy.zeros({shape}, numpy.float32)  # standardised source\n"
        f'    (synthetic,) = session.run(["{SYNTHETIC}"], {{"{SOURCE}": patches}})'
    )


def _onnx(config: RunConfig, onnx: OnnxModel | None, multiple: int) -> str:
    if onnx is None:
        return "None: exported with `--no-onnx`."
    shapes = ", ".join(_sides(shape) for shape in onnx.checked)
    facts = {
        "operators": f"opset {onnx.opset}",
        f"input `{SOURCE}`": " x ".join(onnx.shapes) + ", float32; a name is any number",
        f"output `{SYNTHETIC}`": "the same with one channel",
        "checked": f"ONNX Runtime against PyTorch on the CPU, random normal input of {shapes}",
        "largest difference": f"{onnx.difference:.3g} standardised units, the largest output "
        f"being {onnx.largest:.3g}",
        "tolerance": f"{TOLERANCE:g} of the largest output, at least {TOLERANCE:g}; above it "
        "nothing is exported",
    }
    notes = ["`model.onnx` is the network alone: preparation and stitching are distsynth's."]
    if multiple > 1:
        notes.append(f"Sides that are not divisible by {multiple} give an error or a wrong shape.")
    if config.train.precision == "bf16":
        notes.append(
            "distsynth predicts with this model in bfloat16, as it was trained; the ONNX model "
            "and the check are float32."
        )
    return _facts(facts) + "\n\n" + " ".join(notes)


def _unknown() -> str:
    return (
        "The checkpoint does not tell these, so this card cannot: hardware and duration of the "
        "training, versions of the packages it ran with, who trained it, the scans' scanners, "
        "sequences and ethics, and a licence of the weights. Ask whoever gave you this folder."
    )


def _fields(network: AnyGenerator) -> dict[str, str]:
    """The fields of a network's configuration, whatever its family has."""
    return {name.replace("_", " "): _value(value) for name, value in vars(network).items()}


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _sides(sides: Iterable[int]) -> str:
    return "x".join(map(str, sides))


def _facts(facts: Mapping[str, str]) -> str:
    return _bullets(*(f"{name}: {value}" for name, value in facts.items()))


def _bullets(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
