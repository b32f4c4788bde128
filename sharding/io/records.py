"""Plain files that hold dataclasses: unknown fields are refused, complaints are one line."""

from __future__ import annotations

from pydantic import ConfigDict, ValidationError

STRICT = ConfigDict(extra="forbid")
"""An unknown field in a manifest is an error, not ignored."""


def first_complaint(error: ValidationError) -> str:
    """Pydantic's first complaint: the dotted field, and what is wrong with it."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
