"""Packed files: how they are recognised, how far they can expand, and what they unpack to."""

from __future__ import annotations

import bz2
import gzip
import sys
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Packing = Literal["gzip", "bzip2", "zstd", "zlib", "jpeg"]
MAGIC: dict[bytes, Packing] = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
"""How packed files begin."""
MAX_RATIO: dict[Packing, int] = {
    "gzip": 1032,
    "zlib": 1032,
    "bzip2": 22_500,
    "zstd": 33_000,
    "jpeg": 33_000,
}
"""No byte of these can expand to more, so a header that claims more is wrong; "jpeg" stands for all
that DICOM files are compressed by, and no image is compressed by more."""
UNPACKING_ERRORS = (zstd.ZstdError,)


def packing_of(path: Path) -> Packing | None:
    """How a file is packed; None if it is not."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)


def open_unpacked(path: Path, packing: Packing | None) -> BufferedIOBase:
    """Open a file for reading as what it unpacks to.

    Reading to its end raises EOFError, OSError or one of UNPACKING_ERRORS if a packed file is cut
    short or its checksum fails.
    """
    if packing == "gzip":
        return gzip.GzipFile(path, "rb")
    if packing == "bzip2":
        return bz2.BZ2File(path, "rb")
    if packing == "zstd":
        return zstd.ZstdFile(path, "rb")
    return path.open("rb")
