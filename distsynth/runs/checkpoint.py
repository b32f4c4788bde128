"""All that is needed to resume a run or to predict, in one atomic file."""

from __future__ import annotations

import pickle
import random
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import TypedDict

from distsynth.config import RunConfig, dotted_fields, from_dict, to_dict, with_overrides
from distsynth.errors import ConfigError
from distsynth.runs.data_record import DataRecord
from sharding.io.atomic import atomic_path
from sharding.io.errors import DataError, file_errors
from sharding.io.records import first_complaint

FORMAT_VERSION = 1
MAY_CHANGE = (
    "data.shards",
    "data.workers",
    "data.cache_gb",
    "data.resident",
    "train.compile",
    "train.device",
    "train.start_from",
    "loss.vgg_weights",
)
"""Fields that may change when a run is resumed, and tracking.*; MAY_END too if the learning rates
are constant. All others would change its numbers by more than rounding."""
PRECISION = "train.precision"
MAY_END = ("train.epochs", "train.minutes")
"""Fields that say when a run ends by itself."""
MAY_FORK = ("loss.lambda_", "optim.lr_")
"""Prefixes of the fields in which a run may differ from the one that it is forked from."""


_DATA_RECORD = TypeAdapter(DataRecord)


@dataclass(frozen=True)
class Position:
    """The progress of a run.

    Attributes:
        epoch: Epoch to work on next, from 0.
        step_in_epoch: Steps of that epoch already taken.
        step: Steps taken in the run.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if min(self.epoch, self.step_in_epoch, self.step) < 0:
            raise ValueError(f"epoch and steps must be >= 0, got {self}")


_POSITION = TypeAdapter(Position)
_TENSORS = ConfigDict(arbitrary_types_allowed=True)


@with_config(_TENSORS)
class LearnerState(TypedDict):
    """The form of Learner.state_dict."""

    network: dict[str, Tensor]
    average: NotRequired[dict[str, Tensor]]
    optimizer: NotRequired[dict[str, Any]]
    scaler: NotRequired[dict[str, Any]]


_LEARNERS = TypeAdapter(dict[str, LearnerState])
_RANDOM = TypeAdapter(list[dict[str, Any]])
_RECORD = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        config: The run's configuration.
        data: What it was trained on.
        position: How far the run is.
        learners: Name to Learner.state_dict().
        random: One entry for each rank, from random_state().
        record: Other state of the loop: best score, sums since the last row, training time.
    """

    config: RunConfig
    data: DataRecord
    position: Position
    learners: dict[str, Any]
    random: list[dict[str, Any]]
    record: dict[str, Any]

    def weights(self, learner: str = "generator") -> dict[str, Tensor]:
        """The weights of a network as it predicts: their average, if the run keeps one.

        Raises:
            KeyError: If there is no such network.
        """
        state = self.learners[learner]
        return state.get("average", state["network"])


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the old file stays until the new one is complete.

    Raises:
        DataError: If there is no space for it.
    """
    state = {
        "version": FORMAT_VERSION,
        "config": to_dict(checkpoint.config),
        "data": _DATA_RECORD.dump_python(checkpoint.data, mode="json"),
        "position": asdict(checkpoint.position),
        "learners": checkpoint.learners,
        "random": checkpoint.random,
        "record": checkpoint.record,
    }
    try:
        with atomic_path(path) as partial:
            torch.save(state, partial)
    except RuntimeError as error:
        # PyTorch's writer does not pass the error of the operating system on.
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        rule = "the checkpoint could not be written, most likely because the disk is full"
        raise DataError(path, rule, "Free some space and continue with --resume") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is executed (weights_only).

    Raises:
        DataError: If the file is missing, damaged or not a checkpoint of this version.
    """
    if not path.is_file():
        raise DataError(path, "the checkpoint does not exist", "Check the path")
    with file_errors(path):
        return _read(path)


def _read(path: Path) -> Checkpoint:
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"holds a {type(state).__name__}")
        version = state["version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"version {version}, this program reads {FORMAT_VERSION}")
        return Checkpoint(
            config=from_dict(state["config"]),
            data=_DATA_RECORD.validate_python(state["data"]),
            position=_POSITION.validate_python(state["position"]),
            learners=_LEARNERS.validate_python(state["learners"]),
            random=_RANDOM.validate_python(state["random"]),
            record=_RECORD.validate_python(state["record"]),
        )
    except ValidationError as error:
        raise _unreadable(path, first_complaint(error)) from error
    except (
        AttributeError,
        EOFError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if "can't allocate memory" in str(error):
            raise MemoryError from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _unreadable(path, reason) from error


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        path, f"not a checkpoint that can be read ({reason})", "Take another checkpoint"
    )


def check_finite_weights(where: str | Path, network: Mapping[str, Tensor], remedy: str) -> None:
    """Refuse weights that would make every prediction NaN or infinite.

    Args:
        where: The file that holds them.
        network: Name to tensor.
        remedy: What the user can do about it.

    Raises:
        DataError: Names the tensors.
    """
    bad = [name for name, value in network.items() if not bool(torch.isfinite(value).all())]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(where, f"the weights must be finite, {bad[0]}{more} are not", remedy)


def _check_sums(path: Path) -> None:
    """Raise unless the file is intact: torch would read flipped bits as other weights.

    Checkpoints are not compressed: a file that unpacks to more than its size was not written by
    this program, and might fill the memory.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > path.stat().st_size:
            raise zipfile.BadZipFile(f"it unpacks to {unpacked} bytes, more than its size")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def check_same_run(config: RunConfig, checkpoint: Checkpoint, manifest_sha256: str) -> None:
    """Refuse to resume under another configuration or on other data.

    Raises:
        ConfigError: Names the field that may not change.
    """
    before, now = dict(dotted_fields(checkpoint.config)), dict(dotted_fields(config))
    for name, value in now.items():
        free = name in MAY_CHANGE or name.startswith("tracking.")
        free |= name in MAY_END and config.optim.schedule == "constant"
        if not free and before[name] != value:
            raise ConfigError(
                f"{name} must be {before[name]} as in the run being resumed, got {value}"
            )
    if checkpoint.data.manifest_sha256 != manifest_sha256:
        raise ConfigError(
            f"data.shards must hold the data of the run being resumed: {config.data.shards} has "
            "another fingerprint"
        )


def fork(donor: Checkpoint, config: RunConfig, own: Checkpoint | None) -> Checkpoint:
    """The state in which a run takes over another's networks and optimizers (PBT's exploit).

    Args:
        donor: The run whose networks, position and random states are continued.
        config: The run's own; loss weights and learning rates may differ from the donor's, whose
            precision it takes unless it asks for one.
        own: The run's own checkpoint, if it has one; its best score and past reports are kept.

    Raises:
        ConfigError: If anything else differs.
    """
    before = dict(dotted_fields(donor.config))
    if config.train.precision == "auto":
        config = with_overrides(config, {PRECISION: before[PRECISION]})
    for name, value in dotted_fields(config):
        free = name in MAY_CHANGE or name.startswith(("tracking.", *MAY_FORK))
        if not free and before[name] != value:
            raise ConfigError(f"{name} must be {before[name]} as in the run copied, got {value}")
    record = {"best_score": float("-inf"), "reports": []} | (own.record if own else {})
    past = [report for report in record["reports"] if report["epoch"] <= donor.position.epoch]
    # Sums since the last row are of losses with the donor's weights.
    record |= {"sums": {}, "summed": {}, "reports": past, "seconds": donor.record["seconds"]}
    return replace(donor, config=config, record=record)


def random_state(device: torch.device) -> dict[str, Any]:
    """The random states of this process, as plain values and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Inverse of random_state."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
