"""JSON files that hold dataclasses: unknown fields are refused, and errors fit on one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError

STRICT = ConfigDict(extra="forbid")
"""An unknown field in a manifest is an error, not ignored."""


def first_complaint(error: ValidationError) -> str:
    """Pydantic's first complaint: the dotted field, and what is wrong with it."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"]


def json_text(content: Mapping[str, Any]) -> str:
    """JSON for people and programs; a number that is not finite is an error."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
