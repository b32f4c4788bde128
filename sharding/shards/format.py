"""The shard format: WebDataset tars of patch blocks and a manifest; one schema for both ways.

A shard set is a folder, on a disk or any storage that fsspec knows:

    manifest.json                   Manifest: configuration, specimens, index and checksum of shards
    train/train-000000.tar ...      random patches, specimen by specimen: the reader mixes them
    val/val-000000.tar ...          dense patches, likewise
    test/test-000000.tar ...        dense patches, likewise
    masks/SPECIMEN-SUM.npy          foreground bits of a val or test specimen, for judging

A record holds a block of one specimen's patches as three plain arrays, aligned by row. Its key is
the specimen's name, dots as plus signs, and the number of the block:

    KEY.source.npy   uint16, (n, c, *patch_size)   source intensity, [0, 1] scaled to 0..65535; the
                                                   c channels are neighbouring slices, mostly one
    KEY.target.npy   uint16, (n, *patch_size)      target, likewise
    KEY.where.npy    int32, (n, 4)                 PatchLocation: axis, corner

Standardising is left to the reader's device: z = (value / 65535 - mean) / std with the mean and
std of the specimen's intensity transform, which the manifest keeps.

Nothing in a record depends on the rest of the cohort, so that specimens are cut in any order, on
any machine, and stay as they are when others are added or change their split.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from sharding.io.cache import Cache
from sharding.io.errors import DataError
from sharding.io.records import STRICT
from sharding.io.storage import Folder
from sharding.volumes.cohort import SPECIMEN_NAME, SPLITS, Split, split_sizes
from sharding.volumes.intensities import IntensityTransform, PreprocessConfig

FORMAT_VERSION = 2
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
    neighbours: int = 0
    """Slices on each side of a 2D patch that its source carries as channels (2.5D)."""
    dense_axes: tuple[int, ...] = (2,)
    """Slicing axes of 2D dense patches."""
    val_slices: int = 0
    """Validate on this many evenly spaced slices an axis; 0 takes all. The test split is whole."""
    fractions: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Shares of specimens for train, val and test when the cohort does not say."""
    block: int = 256
    """Patches in a record."""
    shard_mb: float = 64.0
    """Target size of a shard in MiB: specimens are put together until it is reached, and a larger
    one is cut between records. None exceeds it, unless one record does."""
    seed: int = 0
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        for name in ("patches_per_specimen", "stride", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("val_slices", "seed", "neighbours"):
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
        if self.neighbours and len(self.patch_size) != 2:
            raise ValueError(f"neighbours must be 0 for 3D patches, got {self.neighbours}")
        split_sizes(len(SPLITS), self.fractions)
        for name in ("axes", "dense_axes"):
            axes = getattr(self, name)
            if not axes or len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
                raise ValueError(f"{name} must be distinct axes of 0, 1, 2, got {axes}")

    @property
    def channels(self) -> int:
        """Channels of a source patch: the slice itself and its neighbours."""
        return 1 + 2 * self.neighbours


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
        inputs_sha256: Checksum of the files that the specimen was read from, mask included.
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
    inputs_sha256: str
    mask_sha256: str | None


@dataclass(frozen=True)
class Span:
    """The records of one specimen within a shard.

    Attributes:
        specimen: Its name.
        patches: How many they hold.
        offset: First byte within the tar.
        bytes: How many bytes.
    """

    __pydantic_config__ = STRICT

    specimen: str
    patches: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class ShardRecord:
    """One tar: its name within the set, what it holds in order, its size and checksum."""

    __pydantic_config__ = STRICT

    name: str
    split: Split
    patches: int
    bytes: int
    sha256: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Manifest:
    """What closes a shard set.

    Attributes:
        config: What was cut.
        specimens: In the order of their names.
        shards: In the order of their names.
        left_out: Specimens of the cohort that failed and were left out knowingly.
        version: Of the format.
    """

    __pydantic_config__ = STRICT

    config: ShardConfig
    specimens: tuple[SpecimenRecord, ...]
    shards: tuple[ShardRecord, ...]
    left_out: tuple[str, ...] = ()
    version: Literal[2] = FORMAT_VERSION

    def names(self, split: Split) -> list[str]:
        """Specimens of a split."""
        return [specimen.name for specimen in self.specimens if specimen.split == split]

    def patches(self, split: Split) -> int:
        """Patches of a split."""
        return sum(shard.patches for shard in self.shards if shard.split == split)

    def patch_numbers(self, split: Split) -> dict[str, NDArray[np.int64]]:
        """Where each specimen's patches stand in a split, counted through its shards in order."""
        numbers: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self.names(split)}
        first = 0
        for shard in self.shards:
            for span in shard.spans if shard.split == split else ():
                numbers[span.specimen].append(np.arange(first, first + span.patches))
                first += span.patches
        return {name: np.concatenate(parts) for name, parts in numbers.items()}

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
    """One record of a shard as arrays over the mapped file; see the module's schema.

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


class ShardSet:
    """A shard set opened for reading.

    Opening checks the manifest and, of a local set, the size of every shard; `check_sums` and
    sharding.shards.verify check the content. Shards of a remote set are fetched when they are
    read, into a cache, and their content is checked on arrival.
    """

    def __init__(
        self, folder: str | Path, cache: Cache | None = None, check_sizes: bool = True
    ) -> None:
        self.folder = Folder(folder, cache)
        self.manifest = read_manifest(self.folder)
        check_manifest(self.folder / MANIFEST, self.manifest)
        if self.folder.local and check_sizes:
            for shard in self.manifest.shards:
                self.path(shard)

    def shards(self, split: Split) -> list[ShardRecord]:
        """The shards of a split, in order."""
        return [shard for shard in self.manifest.shards if shard.split == split]

    def path(self, shard: ShardRecord) -> Path:
        """A local path of a shard, to be opened at once.

        Raises:
            DataError: If it is missing or not of its size, or arrives with a wrong checksum.
        """
        return self.folder.fetch(shard.name, shard.sha256, shard.bytes)

    def mask(self, specimen: SpecimenRecord) -> NDArray[np.bool_]:
        """Foreground of a val or test specimen on the target grid, shape (x, y, z).

        Raises:
            DataError: If its file is missing or not as it was written.
        """
        name = mask_name(specimen.name, str(specimen.mask_sha256))
        content = self.folder.read(name) if self.folder.exists(name) else b""
        if hashlib.sha256(content).hexdigest() != specimen.mask_sha256:
            raise DataError(
                self.folder / name,
                "the mask is missing or its checksum is not the manifest's",
                "Copy it again or shard the cohort again",
            )
        bits = np.load(io.BytesIO(content), allow_pickle=False)
        count = int(np.prod(specimen.shape))
        return np.unpackbits(bits, count=count).reshape(specimen.shape).astype(bool)

    def check_sum(self, shard: ShardRecord) -> None:
        """Check the sha256 of a shard (about 1 GB/s).

        Raises:
            DataError: If it is not as it was written.
        """
        with self.path(shard).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise DataError(
                self.folder / shard.name,
                "the shard's checksum is not the manifest's: changed after writing",
                "Copy it again or shard the cohort again",
            )

    def check_sums(self, *splits: Split) -> None:
        """Check every shard of the splits; those of a remote set are checked on arrival instead.

        Raises:
            DataError: If a shard is not as it was written.
        """
        for shard in self.manifest.shards:
            if self.folder.local and shard.split in (splits or SPLITS):
                self.check_sum(shard)

    def read(self, shard: ShardRecord) -> list[Block]:
        """Map a shard into memory; nothing is copied.

        Raises:
            DataError: If the tar does not follow the schema or holds other than the manifest says.
        """
        where = self.folder / shard.name
        try:
            blocks = read_blocks(self.path(shard), self.manifest.config)
        except (tarfile.TarError, ValueError, KeyError, EOFError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                where, f"not a shard of this format ({error})", "Shard the cohort again"
            ) from error
        found: dict[str, int] = {}
        for block in blocks:
            found[block.specimen] = found.get(block.specimen, 0) + len(block.where)
        stated = {span.specimen: span.patches for span in shard.spans}
        if found != stated:
            raise DataError(
                where,
                f"the shard must hold these patches of each specimen: {stated}, found {found}",
                "Copy it again or shard the cohort again",
            )
        return blocks


def read_manifest(folder: Folder) -> Manifest:
    """Read and validate a manifest.

    Raises:
        DataError: If it is missing, damaged or of another version.
    """
    where = folder / MANIFEST
    if not folder.exists(MANIFEST):
        if any(name.startswith("parts/") for name in folder.names("parts")):
            rule = "this shard set is not finished"
            raise DataError(where, rule, "Run the same distsynth shard again: it goes on")
        raise DataError(where, "no shard set here", "Run distsynth shard, or mend data.shards")
    try:
        return _MANIFEST.validate_json(folder.read(MANIFEST))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise DataError(
            where, f"not a valid manifest ({name}: {first['msg']})", "Shard the cohort again"
        ) from error


def check_manifest(where: str, manifest: Manifest) -> None:
    """Refuse a manifest that contradicts itself.

    Raises:
        DataError: For a name that no specimen or shard can have, a specimen in two splits or with
            another count than its shards state, or one scan in two specimens.
    """
    problem = next(_contradictions(manifest), None)
    if problem:
        raise DataError(where, problem, "Shard the cohort again")
    check_no_leak(where, manifest)


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What is wrong with a manifest by itself."""
    specimens = {specimen.name: specimen for specimen in manifest.specimens}
    if len(specimens) < len(manifest.specimens):
        yield "a specimen stands twice"
    for name in specimens:
        if not SPECIMEN_NAME.fullmatch(name):
            yield f"not a name that a specimen can have: {name!r}"
    held = dict.fromkeys(specimens, 0)
    for shard in manifest.shards:
        match = SHARD_NAME.fullmatch(shard.name)
        if not match or match[1] != shard.split:
            yield f"not a name that a shard of {shard.split} can have: {shard.name!r}"
        if sum(span.patches for span in shard.spans) != shard.patches:
            yield f"{shard.name} states {shard.patches} patches, its spans others"
        for span in shard.spans:
            if span.specimen not in specimens:
                yield f"{shard.name} holds a specimen that is not listed: {span.specimen!r}"
                continue
            split = specimens[span.specimen].split
            if split != shard.split:
                yield f"{shard.name} holds {span.specimen}, which is a {split} specimen"
            held[span.specimen] += span.patches
    for name, count in held.items():
        if count != specimens[name].patches:
            yield f"{name} states {specimens[name].patches} patches, its shards {count}"


def read_blocks(path: Path, config: ShardConfig) -> list[Block]:
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
        source = (len(block.where), config.channels, *config.patch_size)
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
        # The array as it lies in memory: tarfile would copy it thrice.
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


def shard_name(split: Split, index: int) -> str:
    """Stable name of a shard within its set."""
    return str(PurePosixPath(split) / f"{split}-{index:06d}.tar")


def mask_name(specimen: str, sha256: str) -> str:
    """Name of a specimen's mask within the set; another mask has another name."""
    return f"masks/{specimen}-{sha256[:8]}.npy"


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """The content of a mask file: eight voxels a byte."""
    bits = np.packbits(mask)
    return _npy_header(bits) + bits.tobytes()


def _npy_header(array: NDArray[Any]) -> bytes:
    """What stands before the values in an .npy file of version 1.0."""
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


def check_no_leak(where: str, manifest: Manifest) -> None:
    """Refuse a set in which one scan stands in two specimens.

    Raises:
        DataError: Names the two.
    """
    seen: dict[str, str] = {}
    for specimen in manifest.specimens:
        for digest in (specimen.source_sha256, specimen.target_sha256):
            owner = seen.setdefault(digest, specimen.name)
            if owner != specimen.name:
                raise DataError(
                    where,
                    f"{owner} and {specimen.name} hold the same scan: it would leak between splits",
                    "Remove one of the two from the cohort",
                )
