"""Pages: all text is escaped, nothing comes from outside, and a missing value is an error."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

import pytest
from html_check import NASTY, checked
from jinja2 import UndefinedError

from sharding.io.page import Picture, asset, render
from sharding.io.tables import Cell, Column, Table

PAGE = "sharding.io/page.html"
QUALITY = "sharding.registration/quality.html"


def quality(**changes):
    """A page that uses every block."""
    given = {
        "title": NASTY,
        "summary": NASTY,
        "failures": {NASTY: NASTY},
        "flags": {NASTY: NASTY},
        "rules": [NASTY],
        "measures": None,
        "definitions": {},
        "falls": [NASTY],
        "registration": Table([Column("Step")], [("", [[Cell(NASTY)]])]),
        "pictures": {NASTY: Picture(b"PNG", NASTY, f'" onerror={NASTY}')},
        "corrections": {NASTY: Picture(b"PNG", NASTY)},
        "head": {NASTY: NASTY},
    }
    return render(QUALITY, **given | changes)


def test_all_text_is_escaped():
    page = quality()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 17
    assert '" onerror' not in page
    assert checked(page).text.count(NASTY) == 15


def test_a_picture_is_described_by_its_caption_unless_told_otherwise():
    assert 'alt="Caption"' in quality(pictures={"a": Picture(b"", "Caption")})
    html = quality(pictures={"a": Picture(b"PNG", "Caption", "What it shows")})
    assert 'alt="What it shows"' in html
    assert "<figcaption>Caption</figcaption>" in html
    assert re.search('src="data:image/png;base64,UE5H"', html)


def test_the_page_forbids_loading_anything():
    page = render(PAGE, title="Title")
    assert page.startswith("<!DOCTYPE html>")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in page
    assert not re.search(r"https?:|@import|url\(", page)


def test_a_script_is_allowed_by_its_hash_alone():
    script = '"use strict";\nconst é = 1 < 2 && "x";\n'
    page = render(PAGE, title="Title", script=script, style="p { color: red; }")
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    (found,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert found == script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'")
    assert "p { color: red; }" in page
    assert "script" not in render(PAGE, title="Title")


@pytest.mark.parametrize("part", ["script", "style"])
def test_what_would_end_its_element_is_refused(part):
    for text in ("</script>", "</style>", "<!--", "a\r\nb"):
        with pytest.raises(ValueError, match="must be without"):
            render(PAGE, title="Title", **{part: text})


def test_a_value_that_nobody_gave_is_an_error():
    with pytest.raises(UndefinedError, match="title"):
        render(PAGE)
    with pytest.raises(ValueError, match="no file sharding"):
        asset("sharding.io/none.css")


@pytest.mark.parametrize(
    "package",
    [
        "distsynth.export",
        "distsynth.reporting",
        "distsynth.reproduction",
        "distsynth.sweep",
        "sharding.io",
        "sharding.registration",
    ],
)
def test_every_template_can_be_parsed(package):
    from sharding.io.page import _environment

    for file in (resources.files(package) / "templates").iterdir():
        assert file.name.endswith((".html", ".css", ".js", ".md", ".py")), file.name
        if file.name.endswith((".html", ".md")):
            assert _environment().get_template(f"{package}/{file.name}")
