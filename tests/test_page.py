"""The shell of pages: all text is escaped, nothing comes from outside."""

from __future__ import annotations

import re

from sharding.page import facts_html, html_page, paragraph, png_html, section

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
