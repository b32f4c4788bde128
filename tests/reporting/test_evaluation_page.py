"""The page: whole, escaped, and nothing in it from outside."""

from __future__ import annotations

import base64
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from html_check import NASTY, checked

from distsynth.metrics.definitions import METRICS
from distsynth.metrics.results import results_table
from distsynth.reporting.evaluation_page import evaluation_page, figure_picture
from distsynth.reporting.figures import comparison_figure, curves_figure
from distsynth.runs.versions import installed_versions


@pytest.fixture
def table():
    methods = {NASTY: 0.1, "unet-7": 0.2}
    return results_table(
        {
            method: {
                specimen: {"mse_mask": value, "psnr_mask": 10 * value, "seam_index": math.nan}
                for specimen in ("sub-1", f"sub-{NASTY}")
            }
            for method, value in methods.items()
        }
    )


@pytest.fixture
def page(table):
    volume = np.random.default_rng(0).normal(size=(4, 4, 4))
    return evaluation_page(
        f"Report {NASTY}",
        {"Checkpoint": NASTY, NASTY: "value"},
        table,
        [figure_picture(comparison_figure({"net": volume}, volume, volume), f"One {NASTY}")],
        [figure_picture(curves_figure([{"step": 0, "train/recon": 1.0}]), "Curves")],
        {"loss": {"note": f"</pre>{NASTY}"}},
        {"torch": "2.9"},
        [f"No better than {NASTY}."],
    )


def test_page_is_well_formed_and_complete(page):
    checker = checked(page)
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Verdict",
        "Results",
        "Pictures",
        "Training",
        "Values per specimen",
        "What was evaluated, and how",
        "What the numbers are",
        "Configuration",
        "Versions",
    ]
    assert METRICS["psnr_mask"].title in checker.text
    assert "higher is better" in checker.text
    assert "torch2.9" in checker.text


def test_page_needs_nothing_from_outside(page):
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page
    tags = checked(page).tags
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in tags}
    sources = [attrs["src"] for _, attrs in tags if "src" in attrs]
    assert len(sources) == 2
    for source in sources:
        assert source is not None
        head, data = source.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not any("href" in attrs or "onerror" in attrs for _, attrs in tags)


def test_all_text_is_escaped(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    text = checked(page).text
    assert text.count(NASTY) >= 6


def test_optional_sections_are_left_out(table):
    page = evaluation_page("Title", {}, table)
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Results",
        "Values per specimen",
        "What was evaluated, and how",
        "What the numbers are",
        "Versions",
    ]
    assert "<dt>Python</dt>" in page


def test_best_mean_is_bold(table):
    page = evaluation_page("Title", {}, table)
    assert re.findall("<strong>(.*?)</strong>", page) == ["0.1000", "2.00"]
    assert '<span class="interval">0.1000 to 0.1000</span>' in page
    assert "Bold: best mean of its column." in page


def test_nan_is_a_dash(table):
    page = evaluation_page("Title", {}, table)
    assert not re.search(r"\bnan\b", checked(page).text.lower())
    assert page.count("<td>-</td>") == 2 * (1 + 2)


def test_versions_skip_what_is_not_installed():
    versions = installed_versions(("numpy", "no-such-package"))
    assert list(versions) == ["Python", "numpy"]


@pytest.mark.slow
def test_neither_torch_nor_pyplot_is_imported():
    code = (
        "import sys, distsynth.reporting.evaluation_page; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib.pyplot')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
