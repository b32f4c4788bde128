"""How Sphinx builds these pages: `make docs`. Nothing is fetched, when building or when viewing.

The source folder is the whole repository, so that pages link to results, job files and code by the
same relative paths that work when the files are read on a disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from importlib.metadata import version as installed_version
from pathlib import Path

from distsynth.cli.main import COMMANDS, main

project = "distsynth"
author = "the distsynth authors"
release = version = installed_version("distsynth")

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "jobs/cluster/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = ["docs/_build", ".*", "**/.*", "build", "dist", "**/wandb", "**/__pycache__"]

html_theme = "furo"
html_title = "distsynth"
html_copy_source = False
html_show_copyright = False

# Headings can be linked to by their text, as on the pages of a code host.
myst_heading_anchors = 3

# One page a package, with all its modules, made anew at each build.
apidoc_modules = [
    {"path": f"../{package}", "destination": f"docs/reference/{package}", "max_depth": 1}
    for package in ("distsynth", "sharding", "tune_spaces")
]
apidoc_module_first = True
apidoc_separate_modules = False
autodoc_default_options = {"members": True, "member-order": "bysource", "no-value": True}
autodoc_typehints_format = "short"
napoleon_use_ivar = True
# A word of the standard library may also be the name of a field: `bytes`.
suppress_warnings = ["ref.python"]

CODE = re.compile(r"(``.+?``|`[^`]+`)")


def plain_text(app, what, name, obj, options, lines: list[str]) -> None:  # noqa: ARG001
    """Docstrings are plain text with `code`: Sphinx must not read more into them.

    Single backticks mean code; asterisks, bars, backslashes and trailing underscores are literal;
    a block that is indented after an empty line is an example, shown as it stands. What follows
    "Returns:" holds no type: those stand in the signature.
    """
    out: list[str] = []
    block: int | None = None
    header = ""
    for line in lines:
        if line.strip() in ("Returns:", "Yields:"):
            header = f":{line.strip().lower()} "
            continue
        if header:
            line, header = header + line.strip(), ""
        indent = len(line) - len(line.lstrip())
        above = next((text for text in reversed(out) if text.strip()), "")
        if block is not None and line.strip() and indent < block:
            block = None
        if block is None and line.strip() and out and not out[-1].strip():
            margin = len(above) - len(above.lstrip())
            if indent > margin and not above.lstrip().startswith(("- ", "1. ", "2. ", "3. ")):
                block = indent
                out += [" " * margin + "::", ""]
        out.append(line if block is not None else _escaped(line))
    lines[:] = out


def _escaped(line: str) -> str:
    parts = CODE.split(line)
    for at, part in enumerate(parts):
        if at % 2:
            parts[at] = f"``{part.strip('`')}``"
        else:
            literal = re.sub(r"([*|\\])", r"\\\1", part)
            parts[at] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", literal)
    return "".join(parts)


def write_commands(app) -> None:
    """A page of all commands with their options, as the program itself prints them."""
    os.environ["COLUMNS"] = "92"
    parts = ["# Commands and options\n"]
    for name, command in COMMANDS.items():
        calls = [[name]]
        # What these two take depends on the configuration that they start from.
        if name in ("train", "sweep"):
            calls = [[name, "unet-7"]]
        if name == "sweep":
            calls.append([name, "--resume", "NAME"])
        parts.append(f"\n## {name}\n\n{(command.__doc__ or '').strip().capitalize()}.\n")
        for words in calls:
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
                main([*words, "--help"])
            parts.append(f"\n```text\n{text.getvalue().strip()}\n```\n")
    page = Path(app.srcdir, "docs", "reference", "commands.md")
    page.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(parts)
    # An unchanged page is not built again.
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_commands)
    # Before napoleon reads the sections of a docstring.
    app.connect("autodoc-process-docstring", plain_text, priority=100)
