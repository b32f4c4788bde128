"""One checkpoint whose weights are the mean of several checkpoints of one architecture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distsynth.data.resolve import SHARD_FIELDS
from distsynth.errors import ConfigError
from distsynth.inference.predictor import Predictor, load_predictor
from distsynth.runs.checkpoint import Checkpoint, save_checkpoint
from distsynth.runs.folder import BEST
from sharding.io.atomic import atomic_folder
from sharding.io.errors import DataError, file_errors

AVERAGE_OF = "average_of"
"""Entry of a checkpoint's record that says which checkpoints were averaged."""


def average_checkpoints(
    checkpoints: Sequence[str | Path], out: str | Path, *, overwrite: bool = False
) -> Path:
    """Average the generators of several checkpoints into one that predicts and can be exported.

    Every weight is the arithmetic mean, and so is every statistic that BatchNorm has gathered: the
    averaged network's own statistics may differ, and are not measured. Counts, which are integers,
    are the largest. Of a run with a running average of its weights, that average counts. All else,
    such as how volumes are stitched and the precision to predict in, is the first checkpoint's;
    optimizers and discriminators are left out, so that a run can start from the result
    (`train.start_from`) but cannot be resumed from it.

    Args:
        checkpoints: Checkpoints, folders of runs (their best checkpoint) or exports, as paths or
            URLs.
        out: Folder to write; like a run's, it holds the checkpoint as checkpoints/best.pt.
        overwrite: Replace a folder that holds one.

    Returns:
        The path of the folder. The record of its checkpoint lists what it was made of.

    Raises:
        ConfigError: If no checkpoint is given.
        DataError: If a checkpoint is bad or of another architecture or other shards than the
            first; names the field. Also if `out` may not be written.
    """
    if not checkpoints:
        raise ConfigError("name at least one checkpoint, run folder or export to average")
    out = Path(out)
    with file_errors(out), atomic_folder(out, str(BEST), overwrite) as folder:
        members = [load_predictor(path, "cpu") for path in checkpoints]
        for path, member in zip(checkpoints[1:], members[1:], strict=True):
            _check_alike(path, member.checkpoint, checkpoints[0], members[0].checkpoint)
        (folder / BEST).parent.mkdir()
        save_checkpoint(folder / BEST, _averaged(members))
    return out


def _averaged(members: Sequence[Predictor]) -> Checkpoint:
    first = members[0].checkpoint
    furthest = max((each.checkpoint.position for each in members), key=lambda place: place.step)
    network = mean_weights([each.checkpoint.weights() for each in members])
    record = {AVERAGE_OF: [_described(each) for each in members]}
    return Checkpoint(
        first.config, first.data, furthest, {"generator": {"network": network}}, [], record
    )


def mean_weights(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of networks' tensors of the same names and shapes, summed in float64.

    Of tensors of integers, which count, the largest.
    """
    found = {}
    for name, value in parts[0].items():
        stacked = torch.stack([part[name] for part in parts])
        if value.is_floating_point():
            found[name] = stacked.double().mean(0).to(value.dtype)
        else:
            found[name] = stacked.amax(0)
    return found


def _described(member: Predictor) -> dict[str, Any]:
    """What an averaged checkpoint tells of one of its parts, without a path."""
    digest = hashlib.sha256()
    for name, value in sorted(member.checkpoint.weights().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return {
        "name": member.name,
        **asdict(member.checkpoint.position),
        "seed": member.checkpoint.config.train.seed,
        "weights_sha256": digest.hexdigest(),
    }


def _check_alike(
    path: str | Path, other: Checkpoint, first_path: str | Path, first: Checkpoint
) -> None:
    """Refuse a checkpoint of another architecture or of other data.

    Raises:
        DataError: Names the field.
    """
    for name, here, there in _differences(first, other):
        # A record of data may be long.
        values = f"{here!r}, got {there!r}" if len(f"{here!r}{there!r}") < 200 else "it is"
        raise DataError(
            path,
            f"{name} must be as in {first_path}, {values}",
            "Average checkpoints of one architecture that were trained on the same shards; "
            "distsynth predict --ensemble takes the mean of what others predict",
        )


def _differences(first: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    """Fields that differ: dotted name, the first one's value, the other's."""
    here, there = (asdict(each.config.generator) for each in (first, other))
    for name in ("family", *here):
        if here[name] != there.get(name):
            yield f"generator.{name}", here[name], there.get(name)
    for name in SHARD_FIELDS:
        values = [getattr(each.config.data, name) for each in (first, other)]
        if values[0] != values[1]:
            yield f"data.{name}", *values
    # An export has digests in the place of names.
    records = [each.data.anonymous() for each in (first, other)]
    for item in fields(records[0]):
        values = [getattr(each, item.name) for each in records]
        if values[0] != values[1]:
            yield f"the record of the data: {item.name}", *values
