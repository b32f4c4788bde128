"""The records of a shard: how blocks of patches are written into a tar and mapped from it.

sharding.shards.manifest describes the schema.
"""

from __future__ import annotations

import io
import mmap
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sharding.shards.config import ShardConfig

ARRAYS = ("source", "target", "where")


QUANTUM = 65535
"""Largest stored value; one step is 1.5e-5 of the intensity range."""


@dataclass(frozen=True, eq=False)
class Block:
    """One record of a shard, as arrays over the mapped file.

    Attributes:
        source: uint16, shape (n, channels, *patch_size).
        target: uint16, shape (n, *patch_size).
        where: int32, shape (n, 4).
        specimen: Name of the specimen.
    """

    source: NDArray[np.uint16]
    target: NDArray[np.uint16]
    where: NDArray[np.int32]
    specimen: str


def read_blocks(path: Path, config: ShardConfig, channels: int) -> list[Block]:
    """Map the records of one tar, whose sources have this many channels.

    Raises:
        ValueError: If a record lacks an array, has one twice, or one of another type or shape than
            the schema.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = list(tar)
    records: dict[str, dict[str, NDArray[Any]]] = {}
    for member in members:
        name = member.name
        key, _, array = name.partition(".")
        array = array.removesuffix(".npy")
        if array not in ARRAYS:
            raise ValueError(f"unknown member {name}")
        if array in records.get(key, ()):
            raise ValueError(f"the member {name} is there twice")
        records.setdefault(key, {})[array] = _map_array(mapped, member)
    blocks = [
        Block(**arrays, specimen=specimen_of(key))
        for key, arrays in records.items()
        if len(arrays) == len(ARRAYS)
    ]
    if len(blocks) != len(records):
        raise ValueError("a record lacks one of its arrays")
    for block in blocks:
        if block.where.shape[1:] != (4,) or block.where.dtype != np.int32:
            raise ValueError("locations must be int32 of 4 columns")
        target = (len(block.where), *config.patch_size)
        source = (len(block.where), channels, *config.patch_size)
        if (block.source.shape, block.target.shape) != (source, target):
            raise ValueError(
                f"patches have shapes {block.source.shape} and {block.target.shape}, "
                f"not {source} and {target}"
            )
        if block.source.dtype != np.uint16 or block.target.dtype != np.uint16:
            raise ValueError("patches must be uint16")
    return blocks


def write_record(file: BinaryIO, key: str, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Add a record to a tar; fixed owner and time, so that its bytes depend on the patches only.

    Returns:
        Bytes written.
    """
    written = 0
    for name in ARRAYS:
        array = np.ascontiguousarray(arrays[name])
        header = _npy_header(array)
        member = tarfile.TarInfo(f"{key}.{name}.npy")
        member.size = len(header) + array.nbytes
        member.mode, member.uname, member.gname = 0o444, "distsynth", "distsynth"
        padding = bytes(-member.size % tarfile.BLOCKSIZE)
        # The array as it lies in memory: tarfile would copy it three times.
        for part in (member.tobuf(), header, array.data, padding):
            written += file.write(part)
    return written


def record_key(specimen: str, number: int) -> str:
    """Key of a specimen's record: WebDataset ends keys at their first dot."""
    return f"{specimen.replace('.', '+')}-{number:06d}"


def specimen_of(key: str) -> str:
    """Inverse of record_key."""
    return key.rpartition("-")[0].replace("+", ".")


def quantise(scaled: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Intensities in [0, 1] as stored."""
    return np.rint(scaled * np.float32(QUANTUM)).astype(np.uint16)


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """The content of a mask file: eight voxels a byte."""
    bits = np.packbits(mask)
    return _npy_header(bits) + bits.tobytes()


def _npy_header(array: NDArray[Any]) -> bytes:
    """The header of an .npy file of version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    return buffer.getvalue()


def _map_array(mapped: mmap.mmap, member: tarfile.TarInfo) -> NDArray[Any]:
    """An array over the mapped bytes of a tar member that holds an .npy file."""
    header = io.BytesIO(mapped[member.offset_data : member.offset_data + min(member.size, 1024)])
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError(f"{member.name} is not a version 1.0 npy file")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    count = int(np.prod(shape))
    if fortran or dtype.hasobject or member.size != header.tell() + count * dtype.itemsize:
        raise ValueError(f"{member.name} is not a plain array of its size")
    offset = member.offset_data + header.tell()
    return np.frombuffer(mapped, dtype, count, offset).reshape(shape)
