"""KonfAI in the race: its U-Net on five slices, L1, trained and predicting by its own command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk  # noqa: N813
import yaml

from benchmarks.race_peers import Array, Trained
from distsynth.evaluation.baselines import PairLike
from sharding.volumes.pair import Pair

NAME = "konfai"
SIDE = 128
"""Of a patch, in voxels."""
PAUSE_SECONDS = 0.2
EVERY = 20
"""Steps from one checkpoint to the next: the last of them in time is the one that predicts."""


@dataclass(frozen=True)
class Model:
    """A network of KonfAI and what it is fed.

    Attributes:
        classpath: Where KonfAI finds the class.
        options: Of the class, without criterions, optimizer and schedulers.
        head: The module whose output is the image.
        patches: What is cut from a volume.
        batch_size: Patches in a batch of the training.
    """

    classpath: str
    options: Mapping[str, Any]
    head: str
    patches: Mapping[str, Any]
    batch_size: int

    @property
    def name(self) -> str:
        """Of the class."""
        return self.classpath.replace(":", ".").rpartition(".")[2]


UNET = Model(
    "segmentation.UNet.UNet",
    {"dim": 2, "channels": [5, 32, 64, 128, 256], "nb_class": 1, "ModelPatch": "None"},
    "UNetBlock_0:Head:Conv",
    {"patch_size": [1, SIDE, SIDE], "overlap": "None", "pad_value": 0, "extend_slice": 4},
    4,
)
"""The U-Net of the race."""


def train(pairs: Mapping[str, Pair], seconds: float, seed: int, folder: Path) -> Trained:
    """Train KonfAI for so many processor seconds, counted from when it has read the volumes.

    Args:
        pairs: Training specimens by name.
        seconds: Processor time.
        seed: Of its weights and patches.
        folder: Where it works; emptied first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, pair in pairs.items():
        write(folder / "Dataset" / name, SOURCE=pair.source, TARGET=pair.target)
    (folder / "Config.yml").write_text(yaml.safe_dump(training(UNET, seed), sort_keys=False))
    spent = _until(folder, seconds)
    checkpoints = sorted((folder / "Checkpoints" / NAME).glob("2*.pt"), key=os.path.getmtime)
    if not checkpoints:
        raise SystemExit(f"konfai wrote no checkpoint in {seconds:g} s: {folder / 'train.log'}")

    def predict(pair: PairLike) -> Array:
        return _predicted(folder, checkpoints[-1], pair)

    return Trained(NAME, spent, EVERY * len(checkpoints), None, predict)


def write(folder: Path, **volumes: Any) -> None:
    """Volumes of a case as KonfAI reads them."""
    folder.mkdir(parents=True)
    for name, volume in volumes.items():
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T, np.float32))
        sitk.WriteImage(image, str(folder / f"{name}.mha"))


def group(name: str, is_input: bool) -> dict[str, Any]:
    destination = {"transforms": "None", "patch_transforms": "None", "is_input": is_input}
    return {name: {"groups_dest": {name: destination}}}


def training(model: Model, seed: int, epochs: int = 1000, every: int = EVERY) -> dict[str, Any]:
    """The configuration of a training by L1 on the volumes below Dataset/.

    Args:
        model: What is trained.
        seed: Of its weights and patches.
        epochs: How long; in the race it is stopped when its time is over.
        every: Steps from one checkpoint to the next.
    """
    constant = {"Constant": {"nb_step": 0, "value": 1}}
    mae = {"is_loss": True, "schedulers": constant, "group": 0, "start": 0, "stop": "None"}
    loss = {"MAE": mae | {"accumulation": False, "reduction": "mean"}}
    criterions = {model.head: {"targets_criterions": {"TARGET": {"criterions_loader": loss}}}}
    steps = {"step_size": 10, "gamma": 0.75, "last_epoch": -1, "nb_step": 0}
    network = {
        **model.options,
        "outputs_criterions": criterions,
        "optimizer": {"name": "AdamW", "lr": 0.001},
        "schedulers": {"StepLR": steps},
    }
    return {
        "Trainer": {
            "Model": {"classpath": model.classpath, model.name: network},
            "Dataset": {
                "groups_src": group("SOURCE", True) | group("TARGET", False),
                "augmentations": "None",
                "Patch": dict(model.patches),
                "subset": "None",
                "shuffle": True,
                "dataset_filenames": ["./Dataset/:a:mha"],
                "batch_size": model.batch_size,
                "validation": "None",
                "num_workers": 0,
            },
            "train_name": NAME,
            "manual_seed": seed,
            "epochs": epochs,
            "it_validation": every,
            "ema_decay": 0,
            "data_log": "None",
            "save_checkpoint_mode": "ALL",
            "EarlyStopping": "None",
        }
    }


def prediction(model: Model) -> dict[str, Any]:
    """The configuration of a prediction of the volumes below Asked/."""
    return {
        "Predictor": {
            "Model": {
                "classpath": model.classpath,
                model.name: {**model.options, "outputs_criterions": "None"},
            },
            "Dataset": {
                "groups_src": group("SOURCE", True),
                "augmentations": "None",
                "Patch": dict(model.patches),
                "subset": "None",
                "filter": "None",
                "dataset_filenames": ["./Asked/:a:mha"],
                "batch_size": 8,
                "num_workers": 0,
            },
            "outputs_dataset": {
                model.head: {
                    "OutputDataset": {
                        "name_class": "OutputDataset",
                        "before_reduction_transforms": "None",
                        "after_reduction_transforms": "None",
                        "final_transforms": "None",
                        "dataset_filename": "Dataset:mha",
                        "group": "SYNTHETIC",
                        "same_as_group": "SOURCE:SOURCE",
                        "patch_combine": "None",
                        "inverse_transform": False,
                        "reduction": "Mean",
                        "Mean": {},
                        "attributes": "None",
                    }
                }
            },
            "train_name": NAME,
            "manual_seed": 0,
            "combine": "Mean",
            "data_log": "None",
        }
    }


def command(*words: str) -> Sequence[str]:
    """KonfAI's own command on one processor."""
    return [sys.executable, "-m", "konfai.main", *words, "-y", "--cpu", "1"]


def _until(folder: Path, seconds: float) -> float:
    """Run the training until it has used its time; kill it. Returns the time that it used."""
    log = folder / "train.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command("TRAIN", "-c", "Config.yml"), cwd=folder, stdout=out, stderr=out
        )
        before, spent = 0.0, 0.0
        while process.poll() is None and spent < seconds:
            time.sleep(PAUSE_SECONDS)
            used = _used(psutil.Process(process.pid))
            if b"Training :" not in log.read_bytes():
                before = used
            spent = used - before
    if process.poll() is not None:
        raise SystemExit(f"konfai ended by itself: {log}")
    family = psutil.Process(process.pid).children(recursive=True)
    for one in (*family, psutil.Process(process.pid)):
        one.kill()
    process.wait()
    return spent


def _used(process: psutil.Process) -> float:
    """Processor seconds of a process and all below it."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total


def _predicted(folder: Path, checkpoint: Path, pair: PairLike) -> Array:
    for stale in ("Asked", "Predictions"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    write(folder / "Asked" / "case", SOURCE=pair.source)
    (folder / "Prediction.yml").write_text(yaml.safe_dump(prediction(UNET), sort_keys=False))
    words = command("PREDICTION", "-c", "Prediction.yml", "--models", str(checkpoint.resolve()))
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    (found,) = (folder / "Predictions").rglob("SYNTHETIC.mha")
    made = sitk.GetArrayFromImage(sitk.ReadImage(str(found)))
    return np.squeeze(made).T.astype(np.float32)
