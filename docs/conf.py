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

from sphinx.addnodes import desc_annotation

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

# One page a package, with all its modules, made again at each build.
apidoc_modules = [
    {"path": f"../{package}", "destination": f"docs/reference/{package}", "max_depth": 1}
    for package in ("distsynth", "sharding", "tune_spaces")
]
apidoc_module_first = True
apidoc_separate_modules = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
napoleon_use_ivar = True
# A word of the standard library may also be the name of a field: `bytes`.
suppress_warnings = ["ref.python"]

CODE = re.compile(r"(``.+?``|`[^`]+`)")


def plain_text(app, what, name, obj, options, lines: list[str]) -> None:  # noqa: ARG001
    """Docstrings are plain text with `code`: Sphinx must not read more into them.

    Single backticks mean code; asterisks, bars, backslashes and trailing underscores are literal.
    Blocks that are indented after an empty line, and those laid out in columns, are shown as they
    stand. What follows "Returns:" holds no type: those stand in the signature.
    """
    out: list[str] = []
    section, above = False, 0
    for paragraph in _paragraphs(lines):
        first = paragraph[0]
        indent = _indent(first)
        if indent == 0:
            section = first.strip() in SECTIONS
        if first.strip() in ("Returns:", "Yields:") and len(paragraph) > 1:
            paragraph[:2] = [f":{first.strip().lower()} {paragraph[1].strip()}"]
            out += map(_escaped, paragraph)
        elif not section and _is_example(paragraph, indent, above):
            out += [" " * above + "::", "", *(" " * above + "    " + line for line in paragraph)]
        else:
            out += map(_escaped, paragraph)
        above = indent if not section else 0
        out.append("")
    lines[:] = out


LONGEST_VALUE = 60
SECTIONS = {f"{name}:" for name in ("Args", "Attributes", "Raises", "Returns", "Yields")}
BULLET = re.compile(r"\s*(-|\d\.) ")
COLUMNS = re.compile(r"\s*\S.*\S {3,}\S|\s*\S+ {2,}\S")


def _paragraphs(lines: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_example(paragraph: list[str], indent: int, above: int) -> bool:
    """Whether a paragraph outside of the sections is laid out by hand."""
    if BULLET.match(paragraph[0]):
        return False
    uneven = any(_indent(line) != indent for line in paragraph)
    columns = len(paragraph) > 1 and all(COLUMNS.match(line) for line in paragraph)
    return indent > above or uneven or columns


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


def hide_long_values(app, doctree) -> None:  # noqa: ARG001
    """A table of constants is read in its source, not in a heading."""
    for node in list(doctree.findall(desc_annotation)):
        if node.astext().startswith(" = ") and len(node.astext()) > LONGEST_VALUE:
            node.parent.remove(node)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_commands)
    app.connect("doctree-read", hide_long_values)
    # Before napoleon reads the sections of a docstring.
    app.connect("autodoc-process-docstring", plain_text, priority=100)
