"""The file in which W&B records an offline run: whether it holds the run to its end.

It is a log as LevelDB writes it: blocks of 32 KiB, and in them the pieces of protobuf records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32 * 1024
FILE_HEADER, PIECE_HEADER = 7, 7
WHOLE, FIRST, LAST = 1, 2, 4
"""Kinds of pieces; a record of several has others between the first and the last."""


FLUSH_SECONDS = 30.0
"""How long W&B's service may take to write what it was given before a run ended."""


def becomes_complete(path: Path) -> bool:
    """Whether the file of a run that has just ended holds it, now or FLUSH_SECONDS later."""
    deadline = time.monotonic() + FLUSH_SECONDS
    while not is_complete(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_complete(path: Path) -> bool:
    """Whether the record of a run's end is in its file.

    It is the last one, and W&B writes nothing more once it has failed to write: on a disk that was
    full it is missing, though W&B itself says nothing.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    last = b""
    for content in _last_records(path):
        last = content
    try:
        record = vars(wandb_internal_pb2)["Record"].FromString(
            last
        )  # its types are made at run time
        return record.WhichOneof("record_type") == "exit"
    except DecodeError:
        return False


def _last_records(path: Path) -> Iterator[bytes]:
    """The records of the last two blocks; the first one may lack its beginning."""
    with path.open("rb") as file:
        size = path.stat().st_size
        start = max(0, (size - 1) // BLOCK - 1) * BLOCK
        file.seek(start)
        content = file.read()
    place = 0 if start else FILE_HEADER
    joined = b""
    while place + PIECE_HEADER <= len(content):
        room = BLOCK - place % BLOCK
        kind = content[place + 6]
        if room < PIECE_HEADER or kind == 0:
            place += room
            continue
        size = int.from_bytes(content[place + 4 : place + 6], "little")
        place += PIECE_HEADER
        if kind in (WHOLE, FIRST):
            joined = b""
        joined += content[place : place + size]
        place += size
        if kind in (WHOLE, LAST):
            yield joined if place <= len(content) else b""
