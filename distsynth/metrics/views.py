"""Arrays that are derived from others where they are read, so that none as large is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class View(Protocol):
    """Part of what an array can do: an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def __getitem__(self, place: Any, /) -> Any:
        """The part at slices or indices of all axes."""
        ...


@dataclass(frozen=True, eq=False)
class Outside:
    """The voxels outside a mask."""

    mask: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the mask."""
        return self.mask.shape

    def __getitem__(self, place: Any, /) -> NDArray[np.bool_]:
        return ~self.mask[place]


@dataclass(frozen=True, eq=False)
class Difference:
    """One volume less another of the same shape."""

    one: NDArray[Any]
    other: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of both."""
        return self.one.shape

    def __getitem__(self, place: Any, /) -> NDArray[Any]:
        return self.one[place] - self.other[place]
