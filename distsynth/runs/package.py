"""A trained generator in a folder to share: weights, configuration, record, checksums.

Nothing in it is pickled, and nothing names a path, host, user or specimen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from distsynth.config import RunConfig, from_json
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from distsynth.runs.tracking import public_config
from sharding.io.atomic import atomic_write
from sharding.io.errors import DataError
from sharding.io.storage import Folder, is_remote

FORMAT_VERSION = 1
WEIGHTS, CONFIG, RECORD = "model.safetensors", "config.json", "distsynth.json"
SUMS = "SHA256SUMS"
"""Checksums of all other files, as `sha256sum --check` reads them."""
COPY_AGAIN = "Copy the export again or make it again"

_RECORD = TypeAdapter(DataRecord)
_POSITION = TypeAdapter(Position)


def is_export(path: str | Path) -> bool:
    """Whether this is the folder of an export, a path or a URL, even a damaged one."""
    if is_remote(path):
        if str(path).endswith(".pt"):
            return False
    elif not Path(str(path).removeprefix("file://")).is_dir():
        return False
    folder = Folder(path)
    return any(folder.exists(name) for name in (RECORD, WEIGHTS))


def exported_config(config: RunConfig) -> dict[str, Any]:
    """The configuration without paths and without W&B's names, of which one is an account's."""
    values = public_config(config)
    del values["tracking"]
    return values


def export_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Name to content of the files that predicting needs; equal checkpoints give equal bytes."""
    weights: Mapping[str, Tensor] = checkpoint.weights()
    record = {
        "version": FORMAT_VERSION,
        "position": asdict(checkpoint.position),
        "data": _RECORD.dump_python(checkpoint.data.anonymous(), mode="json"),
    }
    return {
        WEIGHTS: safetensors.torch.save(
            {name: part.contiguous() for name, part in weights.items()}
        ),
        CONFIG: _json(exported_config(checkpoint.config)),
        RECORD: _json(record),
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of an export and their checksums."""
    for name, content in files.items():
        atomic_write(folder / name, content)
    sums = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    atomic_write(folder / SUMS, "".join(sums))


def read_export(path: str | Path) -> Checkpoint:
    """Read an export as a checkpoint that serves prediction and evaluation.

    Optimizers, random states and the loop's own record are empty; specimens have digests in the
    place of names.

    Args:
        path: Folder of the export: a path or a URL.

    Raises:
        DataError: If a file is missing, changed, or not of this version.
    """
    folder = Folder(path)
    sums = _read_sums(folder)
    # Also files that prediction does not read: the model card and the ONNX model.
    for name in sums.keys() - {WEIGHTS, CONFIG, RECORD}:
        _checked(folder, name, sums)
    weights = _checked(folder, WEIGHTS, sums)
    try:
        network = safetensors.torch.load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _unreadable(folder, WEIGHTS, error) from None
    try:
        config = from_json(_checked(folder, CONFIG, sums).decode())
    except DataError:
        raise
    except ValueError as error:
        raise _unreadable(folder, CONFIG, error) from None
    try:
        record = json.loads(_checked(folder, RECORD, sums))
        if record["version"] != FORMAT_VERSION:
            raise ValueError(f"version {record['version']}, this program reads {FORMAT_VERSION}")
        data = _RECORD.validate_python(record["data"])
        position = _POSITION.validate_python(record["position"])
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(folder, RECORD, error) from None
    return Checkpoint(config, data, position, {"generator": {"network": network}}, [], {})


def _read_sums(folder: Folder) -> dict[str, str]:
    """File to sha256."""
    try:
        lines = folder.read(SUMS).decode().splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except DataError:
        raise
    except ValueError as error:
        raise _unreadable(folder, SUMS, error) from None
    if bad := [name for name in sums if "/" in name or name in ("", ".", "..", SUMS)]:
        raise DataError(folder / SUMS, f"it names {bad[0]!r}, which is no file here", COPY_AGAIN)
    return sums


def _checked(folder: Folder, name: str, sums: Mapping[str, str]) -> bytes:
    """The content of a file, whose checksum is verified."""
    content = folder.read(name)
    found, expected = hashlib.sha256(content).hexdigest(), sums.get(name)
    if expected is None:
        raise DataError(folder / SUMS, f"it must hold the sha256 of {name}", COPY_AGAIN)
    if found != expected:
        rule = f"its sha256 must be {expected} as in {SUMS}, found {found}: it was changed or cut"
        raise DataError(folder / name, rule, COPY_AGAIN)
    return content


def _unreadable(folder: Folder, name: str, error: Exception) -> DataError:
    """The first complaint on one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    elif isinstance(error, KeyError):
        reason = f"{error} is missing"
    else:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(folder / name, f"not a file of an export ({reason})", COPY_AGAIN)


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()
