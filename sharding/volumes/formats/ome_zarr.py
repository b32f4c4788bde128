"""OME-Zarr: the folder of an image, OME-NGFF 0.4 on zarr 2 or 0.5 on zarr 3.

zarr is imported when it is used, and is an extra.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.volumes.formats.format import Shape, Stated, oriented_header, unoriented_header
from sharding.volumes.formats.ngff import (
    DAMAGED,
    GROUP_V2,
    ROOT,
    ROOT_V2,
    SPACE,
    Image,
    attributes_of,
    read_image,
)
from sharding.volumes.formats.zarr_chunks import Chunks
from sharding.volumes.slabs import Empty

if TYPE_CHECKING:
    import zarr

    from sharding.volumes.volume import Volume

logger = logging.getLogger(__name__)

METADATA = (ROOT, ".zarray", ROOT_V2, GROUP_V2)
SIDE = 64
"""Voxels of a side of the chunks that are written."""


class OmeZarr:
    """OME-Zarr folders. An axis without a unit is in millimetres."""

    name = "OME-Zarr"
    suffixes = (".ome.zarr", ".zarr")

    def has(self, path: Path) -> bool:
        """Whether a path is a folder that is called OME-Zarr, or that holds a group of zarr."""
        named = path.name.lower().endswith(self.suffixes)
        return path.is_dir() and (
            named or any((path / name).is_file() for name in (ROOT, GROUP_V2))
        )

    def files(self, path: Path) -> list[Path]:
        """The files of the image's metadata and of its highest resolution, by name."""
        level = path / read_image(path).level
        metadata = [path / name for name in METADATA if (path / name).is_file()]
        below = level.rglob("*")
        return sorted(
            {
                *metadata,
                *(
                    file
                    for file in below
                    if file.is_file() and (file.name in METADATA or not file.name.startswith("."))
                ),
            }
        )

    def open(self, path: Path) -> Stated:
        """Read the metadata; axes without an orientation (RFC-4) have none."""
        require_zarr(path)
        import zarr

        image = read_image(path)
        try:
            array = zarr.open_array(path / image.level, mode="r")
            chunks = _chunks(path / image.level, array)
        except DAMAGED as error:
            raise _lacking(error) from error
        header = oriented_header(image.affine)
        if image.no_orientation:
            header = unoriented_header(np.linalg.norm(image.affine[:3, :3], axis=0))
        if not image.has_unit:
            header.set_xyzt_units("unknown")

        def read(shape: Shape, empty: Empty) -> NDArray[np.float32]:
            try:
                return _read(path, image, array, chunks, shape, empty)
            except DataError:
                raise
            except DAMAGED as error:
                raise _lacking(error) from error

        return Stated(
            shape=_shape(path, image, array),
            dtype=np.dtype(array.dtype),
            affine=image.affine,
            header=header,
            read=read,
            held=sum(file.stat().st_size for file in self.files(path)),
            # Chunks that hold nothing but background may have no file, however they are packed.
            packing="zstd",
            geometry_fields="scale, translation and orientation",
            no_orientation=image.no_orientation,
        )


def require_zarr(path: Path) -> None:
    """Refuse to read or write OME-Zarr without the library.

    Raises:
        DataError: If zarr is missing or older than 3.
    """
    try:
        import zarr

        found = zarr.__version__
    except ImportError:
        found = "none"
    if not found[:1].isdigit() or int(found.partition(".")[0]) < 3:
        rule = f"OME-Zarr needs the package zarr, 3 or later, found {found}"
        raise DataError(path, rule, 'Run pip install "distsynth[zarr]"')


def check_ome_zarr(path: Path, volume: Volume) -> None:
    """Refuse a volume that OME-Zarr cannot hold, before it is computed.

    Raises:
        DataError: If its axes are oblique, or zarr is missing.
    """
    require_zarr(path)
    try:
        attributes_of(volume)
    except ValueError as error:
        rule = f"{error}, and OME-Zarr holds axes along those of the body alone"
        raise DataError(path, rule, "Write .nii.gz") from error


def write_ome_zarr(folder: Path, volume: Volume) -> None:
    """Write a volume into an empty folder, as OME-NGFF 0.5 of one resolution; integers stay so."""
    import zarr
    from zarr.codecs import ZstdCodec

    dtype = volume.data.dtype if volume.data.dtype.kind in "iu" else np.dtype(np.float32)
    zarr.create_group(folder, zarr_format=3, attributes=attributes_of(volume))
    stored = volume.data.T
    array = zarr.create_array(
        folder / "0",
        shape=stored.shape,
        chunks=tuple(min(SIDE, side) for side in stored.shape),
        dtype=dtype,
        compressors=ZstdCodec(level=3, checksum=True),
        fill_value=0,
        dimension_names=SPACE[::-1],
        # With a file for each chunk, one that is lost is known.
        config={"write_empty_chunks": True},
    )
    for low in range(0, len(stored), SIDE):
        array[low : low + SIDE] = np.ascontiguousarray(stored[low : low + SIDE], dtype)


def _shape(path: Path, image: Image, array: zarr.Array) -> Shape:
    """The shape (x, y, z)."""
    if array.ndim != len(image.axes):
        raise ValueError(f"the array has {array.ndim} axes, its metadata {len(image.axes)}")
    sides = dict(zip(image.axes, array.shape, strict=True))
    for name, side in sides.items():
        if name not in SPACE and side != 1:
            rule = f"the axis {name} must have one entry, found {side}"
            raise DataError(path, rule, "Export one channel and one point in time")
    x, y, z = (sides[name] for name in SPACE)
    return x, y, z


def _chunks(folder: Path, array: zarr.Array) -> Chunks:
    metadata: Any = array.metadata
    last = array.compressors[-1:]
    return Chunks(
        folder,
        array.shape,
        array.shards or array.chunks,
        metadata.encode_chunk_key,
        not array.shards and any("blosc" in type(codec).__name__.lower() for codec in last),
        None if array.fill_value is None else np.float32(array.fill_value),
    )


def _read(
    path: Path, image: Image, array: zarr.Array, chunks: Chunks, shape: Shape, empty: Empty
) -> NDArray[np.float32]:
    """Intensities (x, y, z), read in runs of chunks along the first axis of space."""
    missing = dict.fromkeys(chunks.missing())
    count = sum(1 for _ in chunks.places())
    data = empty(shape, np.float32, "F")
    space = [SPACE.index(name) for name in image.axes if name in SPACE]
    kept = tuple(slice(None) if name in SPACE else None for name in image.axes)
    # A view of the array that is filled, with the axes of the one that is read.
    voxels = data.transpose(space)[kept]
    axis = kept.index(slice(None))
    for low in range(0, array.shape[axis], chunks.sides[axis]):
        run = (*[slice(None)] * axis, slice(low, low + chunks.sides[axis]))
        voxels[run] = array[run]
    if (lost := chunks.lost(missing, voxels)) is not None:
        rule = f"{len(missing)} of {count} chunks are missing, at least {chunks.name(lost)} is lost"
        remedy = (
            "Copy the folder again; if nothing is lost, write it with all chunks "
            "(zarr: write_empty_chunks)"
        )
        raise DataError(path / image.level, rule, remedy)
    if missing:
        what = f"{len(missing)} of {count} chunks have no file, so that all of each is"
        logger.info("%s: %s %g", path, what, chunks.fill)
    return data


def _lacking(error: Exception) -> ValueError:
    """What the reader of volumes takes for damage."""
    return ValueError(f"{type(error).__name__}: {error}")
