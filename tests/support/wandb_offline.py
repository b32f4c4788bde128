"""Read what W&B wrote offline: protobuf records in a log of 32 KiB blocks, as LevelDB has it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
FILE_HEADER, CHUNK_HEADER = 7, 7
FIRST, LAST, FULL = 2, 4, 1


@dataclass(frozen=True)
class Staged:
    """What lies outside the run's folder until an artifact of it is uploaded."""

    local_path: Path
    md5: bytes
    size: int


@dataclass
class OfflineRun:
    """What `wandb sync` would upload of a run."""

    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    host: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    staged: list[Staged] = field(default_factory=list)
    exit_code: int | None = None
    content: bytes = b""


def read_offline_run(path: Path) -> OfflineRun:
    """Every record of a .wandb file."""
    run = OfflineRun()
    for content in records(path.read_bytes()):
        run.content += content
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name = record.run.run_id, record.run.display_name
            run.project, run.group = record.run.project, record.run.run_group
            run.host = record.run.host
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.rows.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "files":
            run.files += [item.path for item in record.files.files]
        elif kind == "artifact":
            run.staged += [
                Staged(Path(entry.local_path), base64.b64decode(entry.digest), entry.size)
                for entry in record.artifact.manifest.contents
            ]
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def records(content: bytes) -> Iterator[bytes]:
    """The records: joined chunks, of which none crosses a block; a torn last one is left out."""
    assert content.startswith(b":W&B"), content[:FILE_HEADER]
    place = FILE_HEADER
    joined = b""
    while place + CHUNK_HEADER <= len(content):
        room = BLOCK - place % BLOCK
        size = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        if room < CHUNK_HEADER or kind == 0:
            place += room
            continue
        place += CHUNK_HEADER
        if kind in (FULL, FIRST):
            joined = b""
        joined += content[place : place + size]
        place += size
        if kind in (FULL, LAST) and place <= len(content):
            yield joined


def _items(items: Any) -> dict[str, Any]:
    """Values by key; a path of several keys becomes nested dictionaries."""
    values: dict[str, Any] = {}
    for item in items:
        *parents, leaf = item.nested_key or [item.key]
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = json.loads(item.value_json)
    return values
