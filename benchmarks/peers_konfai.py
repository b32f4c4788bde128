"""A network of ours as KonfAI's own command trains it and predicts with it."""

# No "from __future__ import annotations": KonfAI reads the types of a network's arguments.
# KonfAI is no need of the project: it may be absent where types are checked.
# pyright: reportMissingImports=false

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from konfai.network import network  # type: ignore

from benchmarks.race_konfai import Model, command, prediction, training, write
from distsynth.models import build_generator
from distsynth.presets import preset

SIDE, OVERLAP, BATCH = 32, 16, 2
NAME = "best"
"""The preset whose generator all tools train."""
HEAD = "Generator"


class Shared(network.Network):  # type: ignore[misc]
    """Our generator as a network of KonfAI."""

    def __init__(
        self,
        optimizer: network.OptimizerLoader = network.OptimizerLoader(),  # noqa: B008
        schedulers: dict[str, network.LRSchedulersLoader] = {  # noqa: B006
            "default|StepLR": network.LRSchedulersLoader(0)  # noqa: B008
        },
        outputs_criterions: dict[str, network.TargetCriterionsLoader] = {  # noqa: B006
            "Generator": network.TargetCriterionsLoader()  # noqa: B008
        },
    ) -> None:
        super().__init__(
            in_channels=1,
            optimizer=optimizer,
            schedulers=schedulers,
            outputs_criterions=outputs_criterions,
            dim=3,
        )
        self.add_module(HEAD, build_generator(preset(NAME).generator, (SIDE,) * 3))


def _model(overlap: int | None) -> Model:
    patches = {
        "patch_size": [SIDE] * 3,
        "overlap": "None" if overlap is None else overlap,
        "pad_value": 0,
        "extend_slice": 0,
    }
    return Model("benchmarks.peers_konfai:Shared", {}, HEAD, patches, BATCH)


def train(volumes: list[tuple[np.ndarray, np.ndarray]], epochs: int, folder: Path) -> None:
    """So many epochs through all blocks of the volumes."""
    folder.mkdir(parents=True)
    for number, (source, target) in enumerate(volumes):
        write(folder / "Dataset" / f"case{number}", SOURCE=source, TARGET=target)
    _write_config(folder / "Config.yml", training(_model(None), 0, epochs, every=10_000))
    _run(folder, "TRAIN", "-c", "Config.yml")


def predict(volumes: list[np.ndarray], folder: Path) -> None:
    """Predict volumes with a network that nobody trained."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, source in enumerate(volumes):
        write(folder / "Asked" / f"case{number}", SOURCE=source)
    _write_config(folder / "Prediction.yml", prediction(_model(OVERLAP)))
    torch.save({"Model": {"Shared": Shared().state_dict()}}, folder / "weights.pt")
    _run(folder, "PREDICTION", "-c", "Prediction.yml", "--models", str(folder / "weights.pt"))


def _write_config(file: Path, values: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(values, sort_keys=False))


def _run(folder: Path, *words: str) -> None:
    log = folder / "konfai.log"
    with log.open("wb") as out:
        done = subprocess.run(command(*words), cwd=folder, stdout=out, stderr=out)
    if done.returncode:
        raise SystemExit(f"konfai failed: {log}\n{log.read_text()[-2000:]}")
