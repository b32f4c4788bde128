"""The shell of every HTML page that we write: one file that needs nothing from outside.

Functions return HTML as str; each escapes the text that it is given.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy: the browser itself refuses to load anything from outside."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 2.5rem 1.5rem 4rem; background: #fff;
  color: #1c1e21; font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.5rem; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 0.75rem; padding-top: 1rem;
  border-top: 1px solid #d8dce0; }
h3 { font-size: 0.95rem; margin: 1.5rem 0 0.4rem; }
p { margin: 0.5rem 0; max-width: 75ch; }
.note, figcaption, .interval { color: #5b6168; }
.note, figcaption { font-size: 0.87rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.87rem;
  margin: 0.25rem 0 1rem; }
th, td { padding: 0.35rem 0.9rem; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; }
tbody th { font-weight: 400; }
th.text { text-align: left; }
th:first-child { padding-left: 0.2rem; }
thead th { border-bottom: 1.5px solid #1c1e21; }
tbody tr { border-bottom: 1px solid #e6e9ec; }
.interval { display: block; font-size: 0.8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.25rem; margin: 0.5rem 0;
  font-size: 0.9rem; }
dt { color: #5b6168; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.25rem 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: 0.5rem; max-width: 85ch; }
summary { cursor: pointer; }
pre { background: #f5f6f8; padding: 0.9rem 1.1rem; overflow-x: auto; font-size: 0.8rem;
  line-height: 1.45; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  figure, tr, dl { break-inside: avoid; }
  .scroll { overflow: visible; }
  th, td { padding: 0.25rem 0.5rem; }
  pre { white-space: pre-wrap; }
}
"""


def html_page(title: str, *sections: str, script: str = "", style: str = "") -> str:
    """A document of sections, each already HTML.

    Args:
        title: Plain text.
        sections: In order.
        script: JavaScript of our own, run at the end. The policy allows it by its hash; any other
            script stays forbidden.
        style: CSS beside STYLE.

    Raises:
        ValueError: If script or style would end its own element.
    """
    if any(mark in part for part in (script, style) for mark in ("</", "<!--", "\r")):
        raise ValueError("script and style must be without </, <!-- and carriage returns")
    policy = POLICY + (f"; script-src '{script_hash(script)}'" if script else "")
    element = f"<script>{script}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(sections)
        + f"\n</main>\n{element}</body>\n</html>\n"
    )


def script_hash(script: str) -> str:
    """How a content security policy names a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def section(heading: str, *blocks: str) -> str:
    """A heading and blocks that are already HTML."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(blocks) + "\n</section>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def facts_html(facts: Mapping[str, Any]) -> str:
    """Names and values, a line each."""
    pairs = (f"<dt>{escape(n)}</dt><dd>{escape(str(v))}</dd>" for n, v in facts.items())
    return "<dl>\n" + "\n".join(pairs) + "\n</dl>"


def png_html(png: bytes, caption: str, words: str | None = None) -> str:
    """A picture inside the page, with the words beneath it.

    Args:
        png: The file.
        caption: Stands beneath it.
        words: What it shows, for those who do not see it; None for the caption.
    """
    data = base64.b64encode(png).decode("ascii")
    told = escape(caption if words is None else words)
    return (
        f'<figure>\n<img alt="{told}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )
