"""The comparison as LaTeX, HTML, CSV and JSON: any text is kept and nothing breaks."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess

import pytest
from compared_rows import (
    BUDGET,
    CONTROLS,
    CUBIC,
    NASTY,
    PIX2PIX,
    UNET,
    by_specimen,
    comparison_html,
)
from html_check import checked
from hypothesis import given, settings
from hypothesis import strategies as st

from distsynth.metrics.definitions import METRICS
from distsynth.metrics.statistics import bootstrap_interval
from distsynth.reproduction.comparison import (
    BASELINE,
    ComparedRow,
    compare,
)
from distsynth.reproduction.comparison_files import (
    CSV_FIELDS,
    comparison_csv,
    comparison_json,
)
from distsynth.reproduction.comparison_tables import (
    comparison_latex,
)
from distsynth.reproduction.paper_values import WARNING


def test_csv_reads_back(comparison):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert tuple(rows[0]) == CSV_FIELDS
    run = [row for row in rows if row["status"] == "run"]
    assert len(run) == 4 * 6
    found = {(row["method"], row["metric"]): row for row in run}
    psnr = found["cubic", "psnr_mask"]
    assert float(psnr["mean"]) == 18.5
    assert (float(psnr["low"]), float(psnr["high"])) == bootstrap_interval([18, 19])
    assert psnr["reference"] == "unet-7"
    assert [float(psnr[key]) for key in ("difference", "p", "p_corrected")] == [-2.5, 0.5, 1]
    assert psnr["parameters"] == psnr["seconds"] == psnr["paper"] == ""
    assert found["unet-7", "psnr_mask"]["difference"] == ""
    assert found["unet-7", "mse_whole"]["paper"] == "0.0174"
    assert found["unet-7", "mse_whole"]["parameters"] == "1829025"
    assert found["cubic", "seam_index"]["mean"] == ""
    assert "nan" not in comparison_csv(comparison)


def test_json_reads_back(comparison):
    def refuse(constant: str):
        raise AssertionError(constant)

    text = comparison_json(comparison)
    content = json.loads(text, parse_constant=refuse)
    assert content["metrics"]["psnr_mask"]["title"] == METRICS["psnr_mask"].title
    assert content["paper_warning"] == WARNING
    assert content["rows"][1]["paper"]["psnr255"] == 67.55
    assert [row["name"] for row in content["rows"]] == [row.name for row in comparison.rows]
    unet = content["rows"][1]
    assert unet["results"] == UNET.results
    assert (unet["trained"], unet["seconds"], unet["seeds"]) == (BUDGET, 600.4, 1)
    assert unet["summary"]["psnr_mask"]["mean"] == 21
    assert (
        content["differences"]["psnr_mask"][-1]["mean"]
        == comparison.differences["psnr_mask"]["unet-7-alone"].mean
    )
    assert [tuple(pair) for pair in content["controls"]] == CONTROLS
    assert content["answers"][0]["mean"] == 0.25


def test_json_keeps_infinities_and_nan():
    odd = ComparedRow("odd", BASELINE, None, "", results=by_specimen((math.inf, math.nan)))
    (row,) = json.loads(comparison_json(compare([odd])))["rows"]
    assert row["results"]["s0"]["psnr_mask"] == "inf"
    assert row["results"]["s0"]["ssim_mask"] is None


def nasty(budget: str = NASTY) -> str:
    """A name that no format may take for its own signs."""
    rows = [
        ComparedRow(f"[{NASTY}", NASTY, 1, budget, 1, results=UNET.results),
        ComparedRow(f"*{NASTY}", NASTY, 1, budget, 1, results=CUBIC.results),
        ComparedRow(f"--{NASTY}", NASTY, 1, budget, reason=NASTY),
    ]
    comparison = compare(rows, [(rows[0].name, rows[1].name, "psnr_mask")])
    return comparison_latex(comparison)


def test_latex_escapes():
    latex = nasty()
    assert (
        r"\textless{}b\textgreater{}50\% \& ''a\_b'' \{c\} \$d \#e \textasciitilde{}f "
        r"\textasciicircum{}g \textbackslash{}h 'i' {[}j] {*}k\textbar{}"
    ) in latex
    assert "-{}-" in latex
    assert re.search(r"^(\[|\*)", latex, re.MULTILINE) is None
    # Without the escapes and the true minus, no special sign is left in the fields.
    assert not re.search(r"(?<!\\)[#$~^]", latex.replace("$-$", ""))


@pytest.mark.parametrize("text", [nasty(), comparison_latex(compare([CUBIC, UNET, PIX2PIX]))])
def test_latex_is_balanced_and_rectangular(text):
    code = re.sub(r"(?<!\\)%.*", "", text)
    bare = re.sub(r"\\.", "", code)
    assert bare.count("{") == bare.count("}")
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", code):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for shape, body in re.findall(
        r"\\begin\{tabular\}\{@\{\}([lr]{2,})@\{\}\}(.*?)\\bottomrule", code, re.DOTALL
    ):
        rows = [line for line in body.splitlines() if re.search(r"(?<!\\)&", line)]
        assert rows
        assert all(len(re.findall(r"(?<!\\)&", row)) == len(shape) - 1 for row in rows)


def test_latex_has_a_true_minus_and_leaves_names_alone(comparison):
    latex = comparison_latex(comparison)
    assert "$-$2.50" in latex
    assert "unet-7-alone" in latex
    assert r"\usepackage" in latex.splitlines()[0]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path, comparison):
    body = comparison_latex(comparison) + nasty()
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\\usepackage[landscape]{geometry}\\usepackage{booktabs}\n"
        f"\\begin{{document}}\n{body}\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_html_is_well_formed_and_defines_its_metrics(comparison):
    checker = checked(comparison_html(comparison))
    titles = [fields["title"] or "" for _, fields in checker.tags if "title" in fields]
    for metric in ("psnr255_whole", "mse_whole", "psnr_mask", "ssim_mask", "seam_index"):
        assert any(title.startswith(METRICS[metric].title) for title in titles)
    assert any(title.endswith(WARNING) for title in titles)
    assert WARNING in checker.text
    assert BUDGET in checker.text
    html = comparison_html(comparison)
    assert '<strong>21.00</strong><span class="interval">20.00 to 22.00</span>' in html
    assert "nan" not in checker.text


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1, max_size=12).filter(lambda name: name.strip() == name), st.text())
def test_html_and_csv_keep_any_text(name, reason):
    rows = [
        ComparedRow(f"a{name}", name, 1, reason, results=by_specimen((20, 0.5))),
        ComparedRow(f"b{name}", name, None, name, reason=reason),
    ]
    comparison = compare(rows)
    checker = checked(comparison_html(comparison))
    assert {tag for tag, _ in checker.tags} <= {
        *("h2", "h3", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "strong", "span")
    }
    buffer = io.StringIO(comparison_csv(comparison), newline="")
    names = {row["method"] for row in csv.DictReader(buffer)}
    assert names == {" ".join(row.name.split()) for row in rows}
    assert {row["name"] for row in json.loads(comparison_json(comparison))["rows"]} == {
        row.name for row in rows
    }


def test_html_escapes():
    row = ComparedRow(NASTY, NASTY, 1, NASTY, results=UNET.results)
    html = comparison_html(compare([row, CUBIC]))
    assert "<b>" not in html
    assert checked(html).text.count(NASTY) >= 6
