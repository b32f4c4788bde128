"""The short help of `train PRESET` and `sweep PRESET`: the common options, grouped.

The whole help lists every field of the configuration, with the preset's defaults; for these the
networks must be loaded, which takes seconds. The short one is plain text.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from distsynth.cli.listed_names import PRESET_NAMES, SPACE_NAMES
from distsynth.sections import Precision

HELP, WHOLE_HELP = ("-h", "--help"), "--help-all"
WIDTH = 80


class Option(NamedTuple):
    """An option of the short help.

    Attributes:
        name: As it is written on the command line.
        value: What its argument is called; empty for a switch.
        text: What it does.
    """

    name: str
    value: str
    text: str


Groups = Mapping[str, Sequence[Option]]

DATA = (
    Option("--data.shards", "SHARDS", "folder or URL that distsynth shard wrote"),
    Option("--data.workers", "N", "processes that read batches ahead"),
)
LENGTH = (
    Option("--train.epochs", "N", "passes through the training patches"),
    Option(
        "--train.minutes", "MINUTES", "end after this time, if the epochs take longer; 0: never"
    ),
    Option("--train.patience", "N", "end after N validations without a new best; 0: never"),
    Option("--train.validate-every", "N", "epochs between stitched validations"),
)
LEARNING = (
    Option("--train.batch-size", "N", "patches of an optimizer step, over all ranks"),
    Option("--optim.lr-generator", "RATE", "learning rate of the generator"),
    Option("--optim.lr-discriminator", "RATE", "learning rate of the discriminator"),
    Option("--optim.schedule", "constant|cosine|linear", "how learning rates fall to the end"),
    Option("--loss.lambda-recon", "WEIGHT", "weight of the reconstruction term"),
    Option("--loss.lambda-bce", "WEIGHT", "weight of the adversarial term"),
    Option("--loss.lambda-gradient", "WEIGHT", "weight of the gradient difference term"),
    Option("--train.seed", "SEED", "seed of weights, patches and augmentation"),
)
MACHINE = (
    Option("--train.device", "auto|cpu", "auto takes a GPU if there is one"),
    Option("--train.precision", "|".join(get_args(Precision)), "precision of the networks"),
)
TRACKING = (
    Option("--tracking.mode", "online|offline|disabled", "W&B; offline sends nothing"),
    Option("--tracking.project", "PROJECT", "W&B project"),
)

TRAIN: Groups = {
    "The run": (
        Option("-o, --run-dir", "RUN", "folder of the run, a path or a URL (required)"),
        Option("--resume", "", "continue from the last checkpoint in the folder"),
        Option("--overwrite", "", "replace a run in the folder"),
        Option("--fold", "FOLD", "train on this fold of shards cut with --folds"),
        Option("--train.start-from", "CHECKPOINT", "start with its weights, for fine-tuning"),
    ),
    "Data": DATA,
    "How long": LENGTH,
    "Learning": LEARNING,
    "Machine": MACHINE,
    "Tracking": TRACKING,
}

SWEEP: Groups = {
    "The sweep": (
        Option("--name", "NAME", "name of its folder and of its group in W&B (required)"),
        Option(
            "--space",
            "SPACE...",
            "what to search (required); of a field in several spaces the last one counts: "
            f"{', '.join(SPACE_NAMES)}; or a YAML file",
        ),
        Option("--storage", "FOLDER", "folder or URL of all sweeps"),
        Option("--resume", "", "continue a sweep of this name, if there is one"),
    ),
    "The search": (
        Option("--trials", "N", "sets of hyperparameters to try; a grid tries all"),
        Option("--search", "random|grid|optuna", "how hyperparameters are chosen"),
        Option("--scheduler", "fifo|asha|pbt", "asha stops the worse early, pbt mutates"),
        Option("--objective", "METRIC...", "stitched validation metrics; the first one ranks"),
        Option("--presets-first", "", "try the presets of the paper that lie in the space first"),
        Option("--seed", "SEED", "seed of the search"),
    ),
    "Machine": (
        Option("--concurrent", "N", "most trials at a time; 0 leaves that to the resources"),
        Option("--cpus", "N", "cores, and so threads, of each worker of a trial"),
        Option("--gpus", "N", "GPUs of each worker; a fraction lets trials share one"),
        Option("--workers", "N", "processes of a trial"),
        Option("--address", "ADDRESS", "running Ray cluster; auto for that of this machine"),
        *MACHINE,
    ),
    "At the end": (
        Option("--top", "N", "best trials that are exported and evaluated"),
        Option("--final", "taken|retrained|none", "the best trials as they are, or trained again"),
        Option("--cohort", "COHORT", "evaluate the best trials on its test split"),
    ),
    "Data": DATA,
    "What every trial starts from": (*LENGTH[:2], LEARNING[0], *LEARNING[4:]),
    "Tracking": TRACKING,
}

SECTIONS = {
    "--data.*": "which shards to read, and how",
    "--generator.*": "the network; each family has fields of its own",
    "--discriminator.*": "the network that tells target from synthetic",
    "--loss.*": "weights of the terms of the loss, and what they need",
    "--optim.*": "learning rates and the optimizer",
    "--train.*": "the loop: length, batches, seed, checkpoints, precision",
    "--augment.*": "random changes of the training patches",
    "--stitch.*": "how patches become a volume",
    "--tracking.*": "Weights & Biases",
}
"""Sections of the configuration, each with what it decides."""


def train_help(preset: str = "PRESET") -> str:
    """The common options of `distsynth train`.

    Args:
        preset: The preset or configuration file that was named, if one was.
    """
    shown = "small" if preset == "PRESET" else preset
    return "\n".join(
        [
            f"usage: distsynth train {_named(preset)} -o RUN [options]",
            "",
            "Train a preset or a configuration file. Every field of the configuration is an",
            "option; what is not given is as the preset has it.",
            "",
            f"  distsynth train {shown} -o runs/one --data.shards shards",
            f"  distsynth train {shown} -o runs/one --train.minutes 30 --train.seed 1",
            f"  distsynth train {shown} -o runs/one --data.shards shards --resume",
            *_groups(TRAIN),
            *_closing("train", preset),
        ]
    )


def sweep_help(preset: str = "PRESET") -> str:
    """The common options of `distsynth sweep`; `preset` as in train_help."""
    shown = "small" if preset == "PRESET" else preset
    return "\n".join(
        [
            f"usage: distsynth sweep {_named(preset)} --name NAME --space SPACE... [options]",
            "       distsynth sweep --resume NAME | --status NAME | --extend N --from NAME",
            "",
            "Search loss weights, learning rates and architectures with Ray Tune, from a",
            "preset or a configuration file.",
            "",
            f"  distsynth sweep {shown} --name rates --space learning-rates --trials 10",
            f"  distsynth sweep {shown} --name all --space everything --search optuna",
            "  distsynth sweep --status rates",
            *_groups(SWEEP),
            *_closing("sweep", preset),
            "Options of a sweep that exists: distsynth sweep --resume --help",
        ]
    )


def _named(preset: str) -> str:
    return "PRESET|CONFIG.json" if preset == "PRESET" else preset


def _groups(groups: Groups) -> list[str]:
    width = 2 + max(len(_call(option)) for group in groups.values() for option in group)
    width = min(width, 34)
    lines = []
    for title, options in groups.items():
        lines += ["", f"{title}:"]
        for option in options:
            call = f"  {_call(option)}"
            text = textwrap.wrap(option.text, WIDTH - width - 2, break_on_hyphens=False)
            if len(call) > width:
                lines.append(call)
                call = ""
            lines += [
                f"{start:{width}}  {line}".rstrip()
                for start, line in zip([call, *[""] * len(text)], text, strict=False)
            ]
    return lines


def _call(option: Option) -> str:
    return f"{option.name} {option.value}".rstrip()


def _closing(command: str, preset: str) -> list[str]:
    width = max(map(len, SECTIONS))
    example = "small" if preset == "PRESET" else preset
    if preset == "PRESET":
        names = textwrap.wrap(", ".join(PRESET_NAMES), WIDTH - 2, break_on_hyphens=False)
        more = ["", "Presets; distsynth presets says which to take:"]
        more += [f"  {line}" for line in names]
    elif preset.endswith(".json"):
        more = []
    else:
        more = ["", f"The preset's own values: distsynth presets {preset}"]
    return [
        "",
        f"Every option, with its default: distsynth {command} {example} {WHOLE_HELP}",
        *(f"  {name:{width}}  {text}" for name, text in SECTIONS.items()),
        *more,
    ]
