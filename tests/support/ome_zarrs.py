"""OME-Zarr folders of a scan, written by zarr and the json module from the specifications alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

POINTS = {
    "R": "left-to-right",
    "L": "right-to-left",
    "A": "posterior-to-anterior",
    "P": "anterior-to-posterior",
    "S": "inferior-to-superior",
    "I": "superior-to-inferior",
}


def axes_of(affine: NDArray, unit: str | None = "millimeter") -> list[dict[str, Any]]:
    """Axes x, y and z with the directions of an affine along the axes of the world."""
    axes: list[dict[str, Any]] = [{"name": name, "type": "space"} for name in "xyz"]
    for axis, code in zip(axes, aff2axcodes(affine), strict=True):
        axis["orientation"] = {"type": "anatomical", "value": POINTS[code]}
        if unit:
            axis["unit"] = unit
    return axes


def places_of(affine: NDArray, factor: float = 1.0) -> tuple[list[float], list[float]]:
    """Scale and translation along x, y and z, in millimetres times the factor."""
    scale, shift = [], []
    for column in affine[:3, :3].T:
        row = int(np.abs(column).argmax())
        scale.append(float(abs(column[row]) * factor))
        shift.append(float(affine[row, 3] * np.sign(column[row]) * factor))
    return scale, shift


def write_ome(
    folder: Path,
    data: NDArray,
    affine: NDArray,
    *,
    version: str = "0.5",
    axes: Sequence[dict[str, Any]] | None = None,
    transforms: Sequence[dict[str, Any]] | None = None,
    names: str = "zyx",
    factor: float = 1.0,
    chunks: int = 4,
    **array: Any,
) -> Path:
    """A scan (x, y, z) in this order of its axes, those beyond x, y and z of one entry.

    Args:
        folder: What to write.
        data: Shape (x, y, z).
        affine: Along the axes of the world.
        version: 0.4 on zarr 2, or 0.5 on zarr 3.
        axes: Metadata of x, y and z.
        transforms: coordinateTransformations of the only level, in the order of the axes.
        names: Names of the axes in the order of the array.
        factor: Units of the axes in a millimetre.
        chunks: Voxels a side.
        array: More for zarr.create_array.
    """
    scale, shift = places_of(affine, factor)
    named = {axis["name"]: axis for axis in axes or axes_of(affine)}
    known = {"t": {"name": "t", "type": "time"}, "c": {"name": "c", "type": "channel"}} | named
    ones = [name for name in names if name not in "xyz"]
    by_name = {
        **dict.fromkeys(ones, (1.0, 0.0)),
        **dict(zip("xyz", zip(scale, shift, strict=True), strict=True)),
    }
    placed = transforms or [
        {"type": "scale", "scale": [by_name[name][0] for name in names]},
        {"type": "translation", "translation": [by_name[name][1] for name in names]},
    ]
    image = {
        "axes": [known[name] for name in names],
        "datasets": [{"path": "scale0/image", "coordinateTransformations": list(placed)}],
    }
    folder.mkdir(parents=True)
    old = version == "0.4"
    if old:
        write_json(folder / ".zgroup", {"zarr_format": 2})
        write_json(folder / ".zattrs", {"multiscales": [{"version": "0.4", **image}]})
        array["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    else:
        attributes = {"ome": {"version": version, "multiscales": [image]}}
        root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        write_json(folder / "zarr.json", root)
    stored = data.transpose(["xyz".index(name) for name in names if name in "xyz"])
    stored = stored[tuple(slice(None) if name in "xyz" else None for name in names)]
    sides = tuple(min(chunks, side) for side in stored.shape)
    made = zarr.create_array(
        folder / "scale0" / "image",
        shape=stored.shape,
        chunks=sides,
        dtype=stored.dtype,
        zarr_format=2 if old else 3,
        **array,
    )
    made[:] = stored
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content))


def changed_json(path: Path, change: Any) -> None:
    """Let a function change the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)
