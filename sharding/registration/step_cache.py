"""A step of work and the folder of its results, which appears complete and is made again only when
the key of the step changes.

    FOLDER/STEP/...          what the step made
    FOLDER/STEP/step.json    its record: key, parameters, tools, inputs, measures, checksums
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sharding.io.atomic import atomic_folder, atomic_write
from sharding.io.records import STRICT, json_text

RECORD = "step.json"


@dataclass(frozen=True)
class Step:
    """What a step does; known before it is run.

    Attributes:
        name: The name of the step and of its folder.
        parameters: Everything but files that its outcome depends on; JSON values.
        tools: Program -> version, for the programs that the outcome depends on.
        inputs: What it reads -> sha256 of the raw file's bytes, or key of the step that makes it.
    """

    name: str
    parameters: Mapping[str, Any]
    tools: Mapping[str, str]
    inputs: Mapping[str, str]

    @property
    def key(self) -> str:
        """sha256 of all of these: the same key means the same outcome."""
        text = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class StepRecord:
    """What a step did."""

    __pydantic_config__ = STRICT

    step: str
    key: str
    """The key of the step; if it differs, the step must be run again."""
    order: tuple[str, ...]
    """The steps up to this one, first to last."""
    parameters: dict[str, Any]
    tools: dict[str, str]
    inputs: dict[str, str]
    """What it read -> sha256 of the raw file's bytes, or key of the step that made it."""
    measured: dict[str, Any]
    files: dict[str, str]
    """Name of each file in the folder -> sha256 of its bytes."""


def run_step(
    folder: Path, step: Step, order: Sequence[str], work: Callable[[Path], Mapping[str, Any]]
) -> StepRecord:
    """Do a step, unless it is done.

    Args:
        folder: Holds the folder of each step.
        step: What to do.
        order: The steps up to this one.
        work: Writes the step's files into the folder that it is given; returns its measures.

    Returns:
        The record, as written beside the files.
    """
    done = finished(folder, step)
    if done:
        return done
    with atomic_folder(folder / step.name, RECORD, overwrite=True) as made:
        measured = work(made)
        record = StepRecord(
            step=step.name,
            key=step.key,
            order=tuple(order),
            parameters=dict(step.parameters),
            tools=dict(step.tools),
            inputs=dict(step.inputs),
            measured=dict(measured),
            files={path.name: file_sha256(path) for path in sorted(made.iterdir())},
        )
        text = json_text(asdict(record))
        atomic_write(made / RECORD, text)
    # As it will be read: JSON knows no tuples.
    return TypeAdapter(StepRecord).validate_json(text)


def finished(folder: Path, step: Step) -> StepRecord | None:
    """The record of a step that was done with the same key and whose files are intact."""
    record = read_record(folder / step.name)
    if record is None or record.key != step.key:
        return None
    for name, digest in record.files.items():
        path = folder / step.name / name
        if not path.is_file() or file_sha256(path) != digest:
            return None
    return record


def read_record(folder: Path) -> StepRecord | None:
    """The record in a step's folder; None if there is none that can be read."""
    try:
        return TypeAdapter(StepRecord).validate_json((folder / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def file_sha256(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
