"""KonfAI in the race: its U-Net on five slices, L1, trained and predicting by its own command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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
HEAD = "UNetBlock_0:Head:Conv"
UNET = {"dim": 2, "channels": [5, 32, 64, 128, 256], "nb_class": 1, "ModelPatch": "None"}


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
        _write(folder / "Dataset" / name, SOURCE=pair.source, TARGET=pair.target)
    (folder / "Config.yml").write_text(yaml.safe_dump(_training(seed), sort_keys=False))
    spent = _until(folder, seconds)
    checkpoints = sorted((folder / "Checkpoints" / NAME).glob("2*.pt"), key=os.path.getmtime)
    if not checkpoints:
        raise SystemExit(f"konfai wrote no checkpoint in {seconds:g} s: {folder / 'train.log'}")

    def predict(pair: PairLike) -> Array:
        return _predicted(folder, checkpoints[-1], pair)

    return Trained(NAME, spent, EVERY * len(checkpoints), None, predict)


def _write(folder: Path, **volumes: Any) -> None:
    folder.mkdir(parents=True)
    for name, volume in volumes.items():
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T, np.float32))
        sitk.WriteImage(image, str(folder / f"{name}.mha"))


def _group(name: str, is_input: bool) -> dict[str, Any]:
    destination = {"transforms": "None", "patch_transforms": "None", "is_input": is_input}
    return {name: {"groups_dest": {name: destination}}}


def _training(seed: int) -> dict[str, Any]:
    constant = {"Constant": {"nb_step": 0, "value": 1}}
    mae = {"is_loss": True, "schedulers": constant, "group": 0, "start": 0, "stop": "None"}
    loss = {"MAE": mae | {"accumulation": False, "reduction": "mean"}}
    criterions = {HEAD: {"targets_criterions": {"TARGET": {"criterions_loader": loss}}}}
    steps = {"step_size": 10, "gamma": 0.75, "last_epoch": -1, "nb_step": 0}
    network = UNET | {
        "outputs_criterions": criterions,
        "optimizer": {"name": "AdamW", "lr": 0.001},
        "schedulers": {"StepLR": steps},
    }
    return {
        "Trainer": {
            "Model": {"classpath": "segmentation.UNet.UNet", "UNet": network},
            "Dataset": {
                "groups_src": _group("SOURCE", True) | _group("TARGET", False),
                "augmentations": "None",
                "Patch": _patches(),
                "subset": "None",
                "shuffle": True,
                "dataset_filenames": ["./Dataset/:a:mha"],
                "batch_size": 4,
                "validation": "None",
                "num_workers": 0,
            },
            "train_name": NAME,
            "manual_seed": seed,
            # It is stopped when its time is over.
            "epochs": 1000,
            "it_validation": EVERY,
            "ema_decay": 0,
            "data_log": "None",
            "save_checkpoint_mode": "ALL",
            "EarlyStopping": "None",
        }
    }


def _patches() -> dict[str, Any]:
    return {"patch_size": [1, SIDE, SIDE], "overlap": "None", "pad_value": 0, "extend_slice": 4}


def _prediction() -> dict[str, Any]:
    return {
        "Predictor": {
            "Model": {
                "classpath": "segmentation.UNet.UNet",
                "UNet": UNET | {"outputs_criterions": "None"},
            },
            "Dataset": {
                "groups_src": _group("SOURCE", True),
                "augmentations": "None",
                "Patch": _patches(),
                "subset": "None",
                "filter": "None",
                "dataset_filenames": ["./Asked/:a:mha"],
                "batch_size": 8,
                "num_workers": 0,
            },
            "outputs_dataset": {
                HEAD: {
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


def _command(*words: str) -> Sequence[str]:
    return [sys.executable, "-m", "konfai.main", *words, "-y", "--cpu", "1"]


def _until(folder: Path, seconds: float) -> float:
    """Run the training until it has used its time; kill it. Returns the time that it used."""
    log = folder / "train.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            _command("TRAIN", "-c", "Config.yml"), cwd=folder, stdout=out, stderr=out
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
    _write(folder / "Asked" / "case", SOURCE=pair.source)
    (folder / "Prediction.yml").write_text(yaml.safe_dump(_prediction(), sort_keys=False))
    words = _command("PREDICTION", "-c", "Prediction.yml", "--models", str(checkpoint.resolve()))
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    (found,) = (folder / "Predictions").rglob("SYNTHETIC.mha")
    made = sitk.GetArrayFromImage(sitk.ReadImage(str(found)))
    return np.squeeze(made).T.astype(np.float32)
