"""Values that a change of structure must not change: what they are and how they are computed.

    python tests/support/golden.py     records them anew; the commit message explains why

Hashes hold on processors and library versions like those that recorded them. Elsewhere rounding
differs in the last bits, so numbers are kept beside the hashes and compared within a tolerance.
Training a U-Net soon amplifies the last bits beyond any tolerance, so each kind of processor has a
recording of its own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distsynth.config import RunConfig, with_overrides
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import load_predictor
from distsynth.presets import preset
from distsynth.runs.folder import METRICS_FILE
from distsynth.runs.rows import read_rows
from distsynth.training.loop import train
from sharding.registration.bias_correction import CorrectConfig
from sharding.registration.config import PrepareConfig
from sharding.registration.prepare import prepare_cohort
from sharding.registration.register import RegisterConfig
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.simulation.simulate import SimulationConfig
from sharding.volumes.cohort import read_cohort
from sharding.volumes.volume import read_volume

FOLDER = Path(__file__).parents[1] / "golden"
VERSION = 2
"""Raised where numbers change deliberately: what other kinds of processors recorded before is then
compared within the tolerance, until they record it anew."""
SHAPE = (40, 36, 32)
PRESETS = ("small", "unet-7", "dcgan-1", "dcsrn-l1")
STEPS = 30
LIBRARIES = ("torch", "numpy", "scipy", "SimpleITK", "picsl_greedy", "scikit-learn", "scikit-image")
SHARDS = {
    "2d": ShardConfig(patch_size=(16, 16), patches_per_specimen=64, stride=8, val_slices=4, seed=3),
    "2.5d": ShardConfig(
        patch_size=(16, 16), patches_per_specimen=64, stride=8, val_slices=4, seed=3, neighbours=1
    ),
    "3d": ShardConfig(patch_size=(8, 8, 8), patches_per_specimen=64, stride=8, seed=3),
}
PREPARE = PrepareConfig(
    correct=CorrectConfig(iterations=(5, 5), spline_mm=8.0),
    register=RegisterConfig(
        affine_shrink=(2, 1), affine_iterations=40, deform_shrink=2, deform_iterations=(12,)
    ),
)


def environment() -> dict[str, str]:
    """What rounding depends on."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"version": str(VERSION), "processor": processor(), **versions}


def processor() -> str:
    """The kind of processor, as torch names it."""
    return torch.backends.cpu.get_cpu_capability()


def recording() -> Path:
    """The recording of this kind of processor, or that of another where there is none."""
    own = FOLDER / f"{processor()}.json"
    return own if own.exists() else FOLDER / "AVX512.json"


def compute(folder: Path) -> dict[str, Any]:
    """All golden values, as plain values."""
    torch.set_num_threads(1)
    cohort = folder / "cohort"
    write_phantom_cohort(cohort, specimens=5, shape=SHAPE, seed=3)
    specimens = read_cohort(cohort)
    for name, config in SHARDS.items():
        write_shards(specimens, folder / name, config, workers=1)
    training = replace(
        SHARDS["2d"], patch_size=(32, 32), patches_per_specimen=80, stride=16, val_slices=2
    )
    write_shards(specimens, folder / "training", training, workers=1)
    return {
        "shards": {name: tree_sha256(folder / name) for name in SHARDS},
        "losses": {name: losses(folder, name) for name in PRESETS},
        "evaluation": evaluation(folder, cohort),
        "prepared": prepared(folder),
    }


def tree_sha256(folder: Path) -> str:
    """Of the names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def run_config(folder: Path, name: str) -> RunConfig:
    """Thirty steps of a preset: three epochs of ten."""
    overrides = {
        "data.shards": str(folder / "training"),
        "data.patch_size": (32, 32),
        "train.epochs": 3,
        "train.batch_size": 24,
        "train.log_every": 5,
        "train.device": "cpu",
        "train.precision": "no",
        "stitch.stride": 16,
        "tracking.mode": "disabled",
        "tracking.samples": 0,
    }
    return with_overrides(preset(name), overrides)


def losses(folder: Path, name: str) -> list[dict[str, float]]:
    """The rows of a run, without what depends on the clock."""
    run = folder / "runs" / name
    train(run_config(folder, name), run)
    rows = read_rows(run / METRICS_FILE)
    assert rows[-1]["step"] == STEPS
    return [{key: row[key] for key in sorted(row) if "throughput" not in key} for row in rows]


def evaluation(folder: Path, cohort: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Method -> specimen -> metrics of the small network and the baselines."""
    predictor = load_predictor(folder / "runs" / "small" / "checkpoints" / "best.pt", "cpu")
    return dict(evaluate({"small": predictor}, read_cohort(cohort), "test").results)


def prepared(folder: Path) -> dict[str, Any]:
    """A specimen through N4, scaling, both registrations and resampling."""
    raw, out = folder / "raw", folder / "prepared"
    moved = SimulationConfig(rotation_degrees=4, shift_mm=0.4, bias=0.2, noise=0.01, seed=5)
    write_phantom_cohort(raw, 1, SHAPE, seed=5, simulation=moved)
    specimens = read_cohort(raw)
    prepare_cohort(specimens, out, PREPARE, workers=1)
    values: dict[str, Any] = {}
    for specimen in read_cohort(out):
        for role in ("source", "target"):
            path = getattr(specimen, role)
            voxels = read_volume(path).data
            values[role] = {
                "sha256": hashlib.sha256(np.ascontiguousarray(voxels).tobytes()).hexdigest(),
                "mean": float(voxels.mean(dtype=np.float64)),
                "std": float(voxels.std(dtype=np.float64)),
            }
    return values


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        recorded = {"environment": environment(), **compute(Path(temporary))}
    own = FOLDER / f"{processor()}.json"
    own.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
