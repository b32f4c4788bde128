"""The shell of pages: all text is escaped, nothing comes from outside."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from sharding.io.page import POLICY, facts_html, html_page, paragraph, png_html, section

NASTY = '<script>alert("x")</script>'


def test_all_text_is_escaped():
    page = html_page(
        NASTY,
        section(NASTY, paragraph(NASTY), facts_html({NASTY: NASTY})),
        png_html(b"PNG", NASTY, f'" onerror={NASTY}'),
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 8
    assert '" onerror' not in page


def test_words_for_a_picture_are_the_caption_unless_given():
    assert 'alt="Caption"' in png_html(b"", "Caption")
    html = png_html(b"PNG", "Caption", "What it shows")
    assert 'alt="What it shows"' in html
    assert "<figcaption>Caption</figcaption>" in html
    assert re.search('src="data:image/png;base64,UE5H"', html)


def test_the_page_forbids_loading_anything():
    page = html_page("Title")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?:|@import|url\(", page)


def test_a_script_is_allowed_by_its_hash_alone():
    script = '"use strict";\nconst é = 1 < 2 && "x";\n'
    page = html_page("Title", script=script, style="p { color: red; }")
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    (found,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert found == script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"{POLICY}; script-src 'sha256-{digest}'" == policy
    assert "p { color: red; }" in page
    assert "script" not in html_page("Title")


@pytest.mark.parametrize("part", ["script", "style"])
def test_what_would_end_its_element_is_refused(part):
    for text in ("</script>", "</style>", "<!--", "a\r\nb"):
        with pytest.raises(ValueError, match="must be without"):
            html_page("Title", **{part: text})
