"""A training that ends with its processor time, and the commit and processor that it ran on."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import distsynth
from distsynth.config import RunConfig, with_overrides
from distsynth.inference.precision import multiplies_bf16
from distsynth.inference.predictor import Predictor, load_predictor
from distsynth.runs.folder import LAST


def train_for(
    config: RunConfig, shards: str, run: Path, seconds: float, seed: int
) -> tuple[Predictor, dict[str, Any]]:
    """Train for so many processor seconds; the schedule ends with them.

    Args:
        config: How to train.
        shards: Folder of the shards.
        run: Folder of the run; replaced.
        seconds: Of the whole process, counted during steps alone.
        seed: Of weights and patches.

    Returns:
        What predicts with the last weights, and numbers of the training: `spent` seconds, `steps`,
        `weights` of the generator, `precision`.
    """
    changes = {
        "data.shards": shards,
        "train.minutes": seconds / 60,
        "train.epochs": 1000,
        "train.validate_every": 1000,
        "train.seed": seed,
        "tracking.mode": "disabled",
    }
    changed = with_overrides(config, changes)
    distsynth.train(changed, run, overwrite=True, clock=time.process_time)
    predictor = load_predictor(run / LAST, "cpu")
    learnt = predictor.checkpoint.learners["generator"]["network"]
    return predictor, {
        "spent": predictor.checkpoint.record["seconds"],
        "steps": predictor.checkpoint.position.step,
        "weights": sum(part.numel() for part in learnt.values()),
        "precision": predictor.checkpoint.config.train.precision,
    }


SET_HERE = ("data.shards", "train.minutes", "train.epochs", "train.validate_every", "train.seed")
"""Fields that `train_for` sets, whatever a configuration says."""


def commit() -> str:
    """The commit of this tree, with `+` where files differ from it; `unknown` outside of git."""
    folder = Path(__file__).parent
    found = []
    for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno")):
        done = subprocess.run(("git", "-C", folder, *words), capture_output=True, text=True)
        if done.returncode:
            return "unknown"
        found.append(done.stdout.strip())
    return found[0] + ("+" if found[1] else "")


def processor() -> str:
    """The processor's name, and whether it multiplies natively in bf16."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    bf16 = "bf16" if multiplies_bf16(torch.device("cpu")) else "no bf16"
    return f"{names[0] if names else platform.machine()}, {bf16}"
