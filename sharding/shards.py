"""The shard format: WebDataset tars of patch blocks and a manifest; one schema for both ways.

A shard set is a folder:

    manifest.json                   Manifest: configuration, specimens, checksum of each shard
    train/train-000000.tar ...      random patches, specimens mixed
    val/val-000000.tar ...          dense patches, specimen by specimen
    test/test-000000.tar ...        likewise
    masks/SPECIMEN.npy              foreground bits of a val or test specimen, for judging

A record holds a block of patches as three plain arrays, aligned by row:

    KEY.source.npy   uint16, (n, *patch_size)   source intensity, [0, 1] scaled to 0..65535
    KEY.target.npy   uint16, (n, *patch_size)   target, likewise
    KEY.where.npy    int32, (n, 5)              specimen index in the manifest, axis, corner

Standardising is left to the reader's device: z = (value / 65535 - mean) / std with the mean and
std of the specimen's intensity transform, which the manifest keeps.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from sharding.cohort import SPECIMEN_NAME, SPLITS, Split, split_sizes
from sharding.errors import DataError
from sharding.preprocess import STRICT, IntensityTransform, PreprocessConfig

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ARRAYS = ("source", "target", "where")
SHARD_NAME = re.compile(r"(train|val|test)/\1-\d{6}\.tar")
QUANTUM = 65535
"""Largest stored value; one step is 1.5e-5 of the intensity range."""


@dataclass(frozen=True)
class ShardConfig:
    """What to cut, and how to pack it."""

    __pydantic_config__ = STRICT

    patch_size: tuple[int, ...] = (64, 64)
    """Two sides for slices, three for blocks."""
    patches_per_specimen: int = 300
    """Random training patches (section 5.2)."""
    axes: tuple[int, ...] = (0, 1, 2)
    """Slicing axes of 2D training patches."""
    foreground: float = 0.8
    """Share of training patches centred on foreground; the others lie anywhere."""
    stride: int = 20
    """Voxels between dense validation and test patches (section 5.2)."""
    dense_axes: tuple[int, ...] = (2,)
    """Slicing axes of 2D dense patches."""
    val_slices: int = 0
    """Validate on this many evenly spaced slices an axis; 0 takes all. The test split is whole."""
    fractions: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Shares of specimens for train, val and test when the cohort does not say."""
    block: int = 256
    """Patches in a record."""
    shard_mb: float = 64.0
    """Size that the patches of a shard do not exceed, in MiB, unless one record does."""
    seed: int = 0
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        for name in ("patches_per_specimen", "stride", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("val_slices", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 < self.shard_mb < math.inf:
            raise ValueError(f"shard_mb must be > 0, got {self.shard_mb}")
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"foreground must be from 0 to 1, got {self.foreground}")
        if len(self.patch_size) not in (2, 3) or min(self.patch_size) < 4:
            raise ValueError(
                f"patch_size must be two or three sides of at least 4, got {self.patch_size}"
            )
        if self.stride > min(self.patch_size):
            raise ValueError(
                f"stride must be at most the smallest patch side {min(self.patch_size)}, got "
                f"{self.stride}: a larger one leaves voxels uncovered"
            )
        split_sizes(len(SPLITS), self.fractions)
        for name in ("axes", "dense_axes"):
            axes = getattr(self, name)
            if not axes or len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
                raise ValueError(f"{name} must be distinct axes of 0, 1, 2, got {axes}")

    @property
    def patch_bytes(self) -> int:
        """Bytes of one stored pair of patches."""
        return 2 * 2 * int(np.prod(self.patch_size))


@dataclass(frozen=True)
class SpecimenRecord:
    """One specimen in the manifest. Holds nothing of the header's free text and no path.

    Attributes:
        name: As in the cohort.
        split: train, val or test.
        shape: Target grid in voxels.
        spacing_mm: Target voxel size.
        orientation: Directions of the target's axes, such as RAS; one for the whole cohort.
        patches: How many lie in the shards.
        overlap: Share of the target's foreground that the source covers.
        source: Intensity transform of the source.
        target: Intensity transform of the target.
        source_sha256: Fingerprint of the source's voxels.
        target_sha256: Likewise for the target.
        mask_sha256: Checksum of the mask's file; None for training specimens, which have none.
    """

    __pydantic_config__ = STRICT

    name: str
    split: Split
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    patches: int
    overlap: float
    source: IntensityTransform
    target: IntensityTransform
    source_sha256: str
    target_sha256: str
    mask_sha256: str | None


@dataclass(frozen=True)
class ShardRecord:
    """One tar: its name within the set, how many patches, its size and checksum."""

    __pydantic_config__ = STRICT

    name: str
    split: Split
    patches: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What closes a shard set."""

    __pydantic_config__ = STRICT

    config: ShardConfig
    specimens: tuple[SpecimenRecord, ...]
    shards: tuple[ShardRecord, ...]
    version: Literal[1] = FORMAT_VERSION

    def names(self, split: Split) -> list[str]:
        """Specimens of a split."""
        return [specimen.name for specimen in self.specimens if specimen.split == split]

    def patches(self, split: Split) -> int:
        """Patches of a split."""
        return sum(shard.patches for shard in self.shards if shard.split == split)

    def to_json(self) -> str:
        """Indented JSON; the same manifest always gives the same bytes."""
        return _MANIFEST.dump_json(self, indent=1).decode() + "\n"

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the data: two sets with the same one hold the same patches."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True, eq=False)
class Block:
    """One record of a shard as arrays over the mapped file; see the module's schema."""

    source: NDArray[np.uint16]
    target: NDArray[np.uint16]
    where: NDArray[np.int32]


class ShardSet:
    """A shard set opened for reading.

    Opening checks the manifest and the size of every shard; `verify` checks the content.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        check_no_leak(self.folder, self.manifest)
        for specimen in self.manifest.specimens:
            if not SPECIMEN_NAME.fullmatch(specimen.name):
                raise DataError(
                    self.folder / MANIFEST,
                    f"not a name that a specimen can have: {specimen.name!r}",
                    "Shard the cohort again",
                )
        for shard in self.manifest.shards:
            path = self.path(shard)
            match = SHARD_NAME.fullmatch(shard.name)
            if not match or match[1] != shard.split:
                raise DataError(
                    self.folder / MANIFEST,
                    f"not a name that a shard of {shard.split} can have: {shard.name!r}",
                    "Shard the cohort again",
                )
            if not path.is_file():
                raise DataError(path, "the shard is missing", "Shard the cohort again")
            found = path.stat().st_size
            if found != shard.bytes:
                raise DataError(
                    path,
                    f"the shard must have {shard.bytes} bytes, found {found}: cut short or changed",
                    "Copy it again or shard the cohort again",
                )

    def shards(self, split: Split) -> list[ShardRecord]:
        """The shards of a split, in order."""
        return [shard for shard in self.manifest.shards if shard.split == split]

    def path(self, shard: ShardRecord) -> Path:
        """Where a shard lies."""
        return self.folder / shard.name

    def mask(self, specimen: SpecimenRecord) -> NDArray[np.bool_]:
        """Foreground of a val or test specimen on the target grid, shape (x, y, z).

        Raises:
            DataError: If its file is missing or not as it was written.
        """
        path = self.folder / mask_name(specimen.name)
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != specimen.mask_sha256:
            raise DataError(
                path,
                "the mask is missing or its checksum is not the manifest's",
                "Copy it again or shard the cohort again",
            )
        bits = np.load(io.BytesIO(content), allow_pickle=False)
        count = int(np.prod(specimen.shape))
        return np.unpackbits(bits, count=count).reshape(specimen.shape).astype(bool)

    def verify(self, *splits: Split) -> None:
        """Check the sha256 of every shard of the splits (about 1 GB/s).

        Raises:
            DataError: If a shard is not as it was written.
        """
        for shard in self.manifest.shards:
            if shard.split in (splits or SPLITS):
                with self.path(shard).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != shard.sha256:
                    raise DataError(
                        self.path(shard),
                        "the shard's checksum is not the manifest's: changed after writing",
                        "Copy it again or shard the cohort again",
                    )

    def read(self, shard: ShardRecord) -> list[Block]:
        """Map a shard into memory; nothing is copied.

        Raises:
            DataError: If the tar does not follow the schema or the manifest's count.
        """
        path = self.path(shard)
        try:
            blocks = read_blocks(path, self.manifest.config.patch_size)
        except (tarfile.TarError, ValueError, KeyError, EOFError) as error:
            raise DataError(
                path, f"not a shard of this format ({error})", "Shard the cohort again"
            ) from error
        found = sum(len(block.where) for block in blocks)
        if found != shard.patches:
            raise DataError(
                path,
                f"the shard must hold {shard.patches} patches, found {found}",
                "Copy it again or shard the cohort again",
            )
        own = [
            index for index, row in enumerate(self.manifest.specimens) if row.split == shard.split
        ]
        if not all(np.isin(block.where[:, 0], own).all() for block in blocks):
            raise DataError(
                path,
                f"the shard holds patches of a specimen outside the split {shard.split}",
                "Shard the cohort again",
            )
        return blocks


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a manifest.

    Raises:
        DataError: If it is missing, damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(path, "no shard set here", "Run distsynth shard, or mend data.shards")
    try:
        return _MANIFEST.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise DataError(
            path, f"not a valid manifest ({name}: {first['msg']})", "Shard the cohort again"
        ) from error


def read_blocks(path: Path, patch_size: Sequence[int]) -> list[Block]:
    """Map the records of one tar.

    Raises:
        ValueError: If a record lacks an array or has another type or shape than the schema.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = {member.name: member for member in tar}
    records: dict[str, dict[str, NDArray[Any]]] = {}
    for name, member in members.items():
        key, _, array = name.partition(".")
        array = array.removesuffix(".npy")
        if array not in ARRAYS:
            raise ValueError(f"unknown member {name}")
        records.setdefault(key, {})[array] = _map_array(mapped, member)
    blocks = [Block(**arrays) for arrays in records.values() if len(arrays) == len(ARRAYS)]
    if len(blocks) != len(records):
        raise ValueError("a record lacks one of its arrays")
    for block in blocks:
        if block.where.shape[1:] != (5,) or block.where.dtype != np.int32:
            raise ValueError("locations must be int32 of 5 columns")
        patches = (len(block.where), *patch_size)
        if (block.source.shape, block.target.shape) != (patches, patches):
            raise ValueError(f"patches have shape {block.source.shape}, not {patches}")
        if block.source.dtype != np.uint16 or block.target.dtype != np.uint16:
            raise ValueError("patches must be uint16")
    return blocks


def record(key: str, block: Block) -> dict[str, Any]:
    """A block as a WebDataset sample of encoded arrays."""
    arrays = {name: getattr(block, name) for name in ARRAYS}
    return {"__key__": key, **{f"{name}.npy": _encode(array) for name, array in arrays.items()}}


def quantise(scaled: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Intensities in [0, 1] as stored."""
    return np.rint(scaled * np.float32(QUANTUM)).astype(np.uint16)


def shard_name(split: Split, index: int) -> str:
    """Stable name of a shard within its set."""
    return str(PurePosixPath(split) / f"{split}-{index:06d}.tar")


def mask_name(specimen: str) -> str:
    """Name of a specimen's mask within the set."""
    return f"masks/{specimen}.npy"


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """The content of a mask file: eight voxels a byte."""
    return _encode(np.packbits(mask))


def _encode(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
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


def check_no_leak(folder: Path, manifest: Manifest) -> None:
    """Refuse a set in which one scan stands in two specimens."""
    seen: dict[str, str] = {}
    for specimen in manifest.specimens:
        for digest in (specimen.source_sha256, specimen.target_sha256):
            owner = seen.setdefault(digest, specimen.name)
            if owner != specimen.name:
                raise DataError(
                    folder / MANIFEST,
                    f"{owner} and {specimen.name} hold the same scan: it would leak between splits",
                    "Remove one of the two from the cohort",
                )
