"""A whole study in miniature by the command line: `python small_study.py FOLDER COMMAND...`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from warm_workers import PROGRAMS

SECONDS = 240
"""A study that takes longer hangs."""


def study_commands(folder: Path) -> dict[str, list[str]]:
    """The commands of a study that writes into a folder, by name and in order."""
    cohort, shards, run = folder / "cohort", folder / "shards", folder / "run"
    lines = {
        "phantom": f"phantom {cohort} --specimens 4 --shape 32 28 24",
        "pair": f"phantom {cohort} --specimens 2 --shape 32 28 24",
        "shard": (
            f"shard {cohort}/cohort.csv -o {shards} --patch-size 16 16 --stride 8"
            " --patches-per-specimen 24 --val-slices 4 --workers 1"
        ),
        "prepare": (
            f"prepare {cohort}/cohort.csv -o {folder}/prepared --workers 1"
            " --correct.iterations 2 2 --correct.spline-mm 8"
            " --register.affine-shrink 2 1 --register.affine-iterations 8"
            " --register.deform-shrink 2 --register.deform-iterations 3"
        ),
        "train": f"train small -o {run} {_run_options(shards)}",
        "sweep": (
            f"sweep small --space learning-rates --name tiny --storage {folder}/sweeps --trials 2"
            f" --local {_run_options(shards)}"
        ),
        "trial": (
            f"sweep small --space learning-rates --name tiny --storage {folder}/sweeps --trials 1"
            f" --local {_run_options(shards)}"
        ),
        "reproduce": (
            f"reproduce {cohort}/cohort.csv -o {folder}/reproduction --rows dcgan-1 rfsr --local"
            f" --shards {shards} --budget.epochs 0.04 --budget.stride 8"
            " --budget.trees 3 --budget.tree-rows 500"
        ),
        "predict": (
            f"predict {run}/checkpoints/best.pt {cohort}/phantom-00_source.nii.gz"
            f" -o {folder}/phantom-00_synthetic.nii.gz"
        ),
        "evaluate": f"evaluate {run} --cohort {cohort}/cohort.csv -o {folder}/evaluation",
        "report": f"report {run} -o {folder}/report.html --evaluation {folder}/evaluation",
        "export": f"export {run} -o {folder}/export",
    }
    return {name: line.split() for name, line in lines.items()}


def _run_options(shards: Path) -> str:
    return (
        f"--data.shards {shards} --data.patch-size 16 16 --stitch.stride 8 --stitch.trim 0"
        " --generator.channels 4 --generator.kernels 3 --discriminator.channels 4"
        " --train.epochs 2 --train.batch-size 12 --train.log-every 1 --train.device cpu"
        " --train.precision no --tracking.samples 2"
    )


def run_study(
    folder: Path,
    names: Sequence[str],
    before: Sequence[str] = (),
    umask: int = -1,
    **environment: str,
) -> None:
    """Run commands of a study one after the other in a process of their own.

    Args:
        folder: Where the study lies.
        names: The commands.
        before: What starts the process, such as strace with its options.
        umask: Of the process; that of this process if negative.
        environment: Variables to set besides those of this process.

    Raises:
        AssertionError: If one fails, with what it said.
    """
    ended = subprocess.run(
        [*before, sys.executable, __file__, str(folder), *names],
        env={key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
        | {"OMP_NUM_THREADS": "1"}
        | ({} if before else PROGRAMS)
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        umask=umask,
    )
    assert ended.returncode == 0, ended.stdout


def main(folder: str, *names: str) -> int:
    """Run the named commands, up to the first that fails."""
    from distsynth.cli.main import main as distsynth

    commands = study_commands(Path(folder))
    for name in names:
        if status := distsynth(commands[name]):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
