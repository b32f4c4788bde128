"""A copy of many small files in one object, for storages where each request takes its time.

The files stay the truth. The copy of a file is used only while the storage's listing gives the MD5
of that very content, so that a copy that is missing, cut short or out of date costs requests and
nothing else.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping

from sharding.io.errors import MissingError
from sharding.io.storage import Folder

SNAPSHOT_FILE = "trials.json.gz"
_DAMAGED = (OSError, EOFError, zlib.error, ValueError)
"""What unpacking a damaged copy raises; among the first is gzip's own."""


def write_snapshot(folder: Folder, contents: Mapping[str, str]) -> None:
    """Write the copy, in one atomic step: contents by the names of their files."""
    packed = gzip.compress(json.dumps(contents).encode(), compresslevel=1, mtime=0)
    folder.write(SNAPSHOT_FILE, packed)


def read_snapshot(folder: Folder, digests: Mapping[str, str | None]) -> dict[str, bytes]:
    """The files whose copies are what the storage holds now.

    Args:
        folder: Where the files and their copy are.
        digests: MD5 by the names of the wanted files, as Folder.digests lists them.

    Returns:
        Content by name; nothing if there is no copy or it is damaged.
    """
    if not any(digests.values()):
        return {}
    contents = {name: text.encode() for name, text in _copies(folder).items()}
    return {
        name: content
        for name, content in contents.items()
        if name in digests and digests[name] == _md5(content)
    }


def _copies(folder: Folder) -> dict[str, str]:
    """What the copy holds, current or not."""
    try:
        packed = folder.read(SNAPSHOT_FILE)
    except MissingError:
        return {}
    try:
        found = json.loads(gzip.decompress(packed))
    except _DAMAGED:
        return {}
    texts = isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
    return found if texts else {}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
