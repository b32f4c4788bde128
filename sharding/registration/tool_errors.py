"""What ITK and greedy raise when they give a volume up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sharding.io.errors import DataError


@contextlib.contextmanager
def tool_errors(where: object, rule: str, remedy: str) -> Iterator[None]:
    """Turn a RuntimeError that a tool raises in the block into a DataError: the program is right.

    Args:
        where: Names the volume or the step.
        rule: What could not be done; the tool's own words are added.
        remedy: What the user can do about it.
    """
    try:
        yield
    except RuntimeError as error:
        # ITK's message follows the location in its source.
        reason = " ".join(str(error).rpartition("ERROR: ")[2].split())[:300]
        raise DataError(str(where), f"{rule} ({reason})", remedy) from error
