"""Volumes that SimpleITK reads and writes: NRRD and MetaImage."""

from __future__ import annotations

import bz2
import gzip
import math
import zlib
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.volumes.formats.format import Shape, Stated, oriented_header, unoriented_header
from sharding.volumes.formats.packed import Packing
from sharding.volumes.header import RAS_TO_LPS
from sharding.volumes.slabs import Empty, slabs

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

    from sharding.volumes.volume import Volume

MOST_HEADER_BYTES = 2**16
"""Most bytes of a text header, of a file that may hold anything."""
CHUNK = 2**20


def open_image(
    path: Path,
    library: str,
    oriented: bool,
    scale_to_mm: float,
    held: int,
    packing: Packing | None,
    check: Callable[[int], None],
    no_orientation: str,
    geometry_fields: str,
) -> Stated:
    """What SimpleITK finds in the header of a file.

    Args:
        path: The file.
        library: SimpleITK's name of the format's reader, which is used whatever the file's name.
        oriented: Whether the file says where its axes point; SimpleITK assumes it.
        scale_to_mm: The file's unit of length in millimetres.
        held: Bytes of its files.
        packing: How its voxels are packed.
        check: Called before voxels are read, with the bytes that they take when unpacked.
        no_orientation: See Stated.
        geometry_fields: See Stated.
    """
    reader = _reader(path, library)
    reader.ReadImageInformation()
    dtype = _dtype(reader)
    shape = tuple(reader.GetSize())
    if reader.GetNumberOfComponents() != 1:
        shape += (reader.GetNumberOfComponents(),)
    affine = np.eye(4)
    if len(shape) == 3:
        affine = _affine(reader)
        affine[:3] *= scale_to_mm
    size = math.prod(shape) * dtype.itemsize

    def read(shape: Shape, empty: Empty) -> NDArray[np.float32]:
        check(size)
        image = _reader(path, library).Execute()
        return _array(image, shape, empty)

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return Stated(
        shape=shape,
        dtype=dtype,
        affine=affine,
        header=oriented_header(affine) if oriented else unoriented_header(spacing),
        read=read,
        held=held,
        packing=packing,
        geometry_fields=geometry_fields,
        no_orientation=no_orientation,
    )


def write_image(path: Path, volume: Volume, library: str) -> None:
    """Write a volume with its geometry and no other field; integers stay integers."""
    import SimpleITK as sitk  # noqa: N813

    dtype = volume.data.dtype if volume.data.dtype.kind in "iu" else np.float32
    image = sitk.GetImageFromArray(np.asarray(volume.data, dtype).T)
    lps = RAS_TO_LPS @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    writer = sitk.ImageFileWriter()
    writer.SetImageIO(library)
    writer.SetUseCompression(True)
    writer.SetFileName(str(path))
    writer.Execute(image)


def text_fields(path: Path, separators: tuple[str, ...], last: str) -> tuple[dict[str, str], int]:
    """The fields of a text header, their names in lower case, and the byte after it.

    Args:
        path: The file.
        separators: What stands between a name and its value; lines without are left out.
        last: Name of the field that ends the header, or "" if an empty line does.

    Raises:
        ValueError: If it does not end, or a field is given twice.
    """
    with path.open("rb") as file:
        start = file.read(MOST_HEADER_BYTES)
    fields: dict[str, str] = {}
    place = 0
    for line in start.splitlines(keepends=True):
        place += len(line)
        text = line.decode("latin-1").strip()
        if not text and not last:
            return fields, place
        separator = next((mark for mark in separators if mark in text), None)
        if separator is None or text.startswith("#"):
            continue
        name, _, value = text.partition(separator)
        name = name.strip().lower()
        if name in fields:
            raise ValueError(f"the header gives the field {name} twice")
        fields[name] = value.strip()
        if last and name == last:
            return fields, place
    if place == path.stat().st_size and not last:
        return fields, place  # A header of its own may end with the file.
    raise ValueError("the header does not end")


def data_file(path: Path, name: str, ending: str) -> Path:
    """The file of voxels that a header of its own names.

    Args:
        path: The header.
        name: What it names.
        ending: That of the format's files that hold both.

    Raises:
        DataError: If it names anything but one file in the header's folder, or that is not there.
    """
    if name.upper().startswith("LIST") or "%" in name or Path(name).name != name:
        rule = "the header must name one file of voxels in its own folder"
        raise DataError(path, rule, f"Write it again as one {ending} file")
    voxels = path.with_name(name)
    if not voxels.is_file():
        raise DataError(voxels, f"the voxels of {path.name} are missing", "Copy this file too")
    return voxels


def check_unpacks(path: Path, packing: Packing, offset: int, size: int) -> None:
    """Check that packed voxels unpack to the size that the header claims and to no more.

    The libraries neither notice a stream that is cut short nor one whose checksum fails.

    Raises:
        ValueError, EOFError, OSError, zlib.error: If they do not.
    """
    found = 0
    if packing == "zlib":
        with path.open("rb") as file:
            file.seek(offset)
            found = _inflated(file, size)
    else:
        with path.open("rb") as file, _from(file, offset, packing) as unpacked:
            while (part := unpacked.read(CHUNK)) and found <= size:
                found += len(part)
    if found != size:
        more = "more than" if found > size else f"{found} of"
        raise ValueError(f"the file holds {more} the {size} bytes of voxels that its header claims")


def _from(file: BinaryIO, offset: int, packing: Packing) -> BufferedIOBase:
    file.seek(offset)
    if packing == "bzip2":
        return bz2.BZ2File(file)
    return gzip.GzipFile(fileobj=file)


def _inflated(file: BinaryIO, size: int) -> int:
    inflate, found = zlib.decompressobj(), 0
    pending = b""
    while not inflate.eof and found <= size:
        pending = inflate.unconsumed_tail or file.read(CHUNK)
        if not pending:
            raise EOFError("the packed voxels are cut short")
        found += len(inflate.decompress(pending, CHUNK))
    return found


def _reader(path: Path, library: str) -> sitk.ImageFileReader:
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageFileReader()
    reader.SetImageIO(library)
    reader.SetFileName(str(path))
    return reader


def _dtype(reader: sitk.ImageFileReader) -> np.dtype:
    import SimpleITK as sitk  # noqa: N813

    types = {
        sitk.sitkUInt8: np.uint8,
        sitk.sitkInt8: np.int8,
        sitk.sitkUInt16: np.uint16,
        sitk.sitkInt16: np.int16,
        sitk.sitkUInt32: np.uint32,
        sitk.sitkInt32: np.int32,
        sitk.sitkUInt64: np.uint64,
        sitk.sitkInt64: np.int64,
        sitk.sitkFloat32: np.float32,
        sitk.sitkFloat64: np.float64,
        sitk.sitkComplexFloat32: np.complex64,
        sitk.sitkComplexFloat64: np.complex128,
    }
    # Vectors are refused by their shape.
    return np.dtype(types.get(reader.GetPixelID(), np.float64))


def _affine(image: sitk.ImageFileReader) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return RAS_TO_LPS @ affine


def _array(image: sitk.Image, shape: Shape, empty: Empty) -> NDArray[np.float32]:
    import SimpleITK as sitk  # noqa: N813

    view = sitk.GetArrayViewFromImage(image).T
    if view.shape != shape:
        raise ValueError(f"the file holds {view.shape} voxels, its header says {shape}")
    data = empty(shape, np.float32, "F")
    for slab in slabs(shape):
        data[slab] = view[slab]
    return data
