"""HTML pages from Jinja2 templates: each is one file that loads nothing from outside.

A template lies in the folder `templates` of the package that owns it and is named by both:
`sharding.io/page.html` is the base of every page, `sharding.io/blocks.html` holds its macros. All
text is escaped, and using a name that was not given is an error.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape
from markupsafe import Markup


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        png: The file.
        caption: The text beneath it.
        alt: What it shows, for readers who cannot see it; the caption if empty.
    """

    png: bytes
    caption: str
    alt: str = ""

    @property
    def url(self) -> str:
        """The file as a data URL."""
        return png_url(self.png)


def render(template: str, **values: Any) -> str:
    """Fill a template.

    Args:
        template: `package/file`, for example `distsynth.reporting/run.html`.
        values: The names that it uses.

    Raises:
        jinja2.UndefinedError: If it uses a name that is not among `values`.
        ValueError: If a script or a style would end its own element.
    """
    return _environment().get_template(template).render(values)


def asset(name: str) -> str:
    """The text of a script or a style sheet, `package/file`."""
    text = _source(name)
    if text is None:
        raise ValueError(f"there is no file {name}")
    return text


def png_url(png: bytes) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["asset"] = asset
    environment.filters |= {"inline": _inline, "csp_hash": _csp_hash, "json": _json}
    return environment


def _source(name: str) -> str | None:
    package, _, file = name.rpartition("/")
    path = resources.files(package) / "templates" / file
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _inline(text: str) -> Markup:
    """A script or a style sheet for its element, in which it must not be escaped."""
    if any(mark in text for mark in ("</", "<!--", "\r")):
        raise ValueError("script and style must be without </, <!-- and carriage returns")
    return Markup(text)


def _csp_hash(script: str) -> str:
    """How a content security policy names a script that it allows."""
    digest = hashlib.sha256(script.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, default=str)
