"""The comparison: a golden text, formats that read back, and no number for what was not run."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace

import pytest
from compared_rows import (
    ALONE,
    BUDGET,
    CONTROLS,
    CUBIC,
    PIX2PIX,
    REASON,
    UNET,
    by_specimen,
    comparison_html,
)

from distsynth.metrics.statistics import bootstrap_interval
from distsynth.metrics.steps import MARK_MEANS
from distsynth.reproduction.comparison import (
    BASELINE,
    CNN,
    GAN,
    ComparedRow,
    compare,
    with_seeds,
)
from distsynth.reproduction.comparison_files import (
    comparison_csv,
    comparison_json,
    controls_csv,
)
from distsynth.reproduction.comparison_tables import (
    comparison_latex,
    comparison_text,
    format_p,
    limits_note,
)
from distsynth.reproduction.paper_values import WARNING

GOLDEN = """\
Differences to the best row
Mean over specimens of row minus best row, 95% bootstrap interval below it; p of the paired \
sign-flip test, and after Holm's correction for the rows of its column.
The best row was chosen by the same values, so that its lead is overstated and p is too small.
Best in PSNR, peak range: unet-7.
Best in SSIM 3D: unet-7.
With 2 specimens the smallest p of a two-sided sign-flip test is 0.5: nothing can be \
significant at 5%.

  method  trained                                  PSNR, peak range diff     p   p corrected\
         SSIM 3D diff     p   p corrected
  ------------------------------------------------------------------------------------------\
-----------------------------------------
  GAN (Table 3)
  unet-7  12 of 30 epochs, 100 patches a specimen                   best     -             -\
                 best     -             -
  baseline
  cubic   no training                                              -2.50   0.5           0.5\
              -0.1100   0.5           0.5
                                                          -3.00 to -2.00                    \
   -0.1200 to -0.1000

  PSNR, peak range diff: PSNR, mask (dB, peak = range of the target), minus that of unet-7
  SSIM 3D diff: SSIM, mask (-1 to 1, windowed 3D, on [0, 1]), minus that of unet-7
"""


def test_golden_differences():
    text = comparison_text(compare([CUBIC, UNET]))
    assert text[text.index("Differences to the best row") :] == GOLDEN


def test_text_has_the_papers_columns_the_honest_ones_and_the_warning(comparison):
    text = comparison_text(comparison)
    headings = re.findall(r"^(\w[^:.\n]*)$", text, re.MULTILINE)
    assert headings == [
        "The paper's metrics",
        "Tissue and consistency with the source",
        "Seams, overlaps and checkerboards",
        "Differences to the best row",
        "Not run",
        "Controls",
    ]
    paper, honest = text.split("Tissue and consistency with the source")
    assert WARNING in paper
    assert "as the paper evaluates whole stitched images" in paper
    (line,) = re.findall("^  unet-7 .*", paper, re.MULTILINE)
    # ours and the paper's
    ours = ["67.00*", "0.008155*", "0.6200*", "-"]
    assert line.split()[-7:] == [*ours, "67.55", "0.0174", "0.593"]
    tissue, seams = honest.split("Differences")[0].split("Seams, overlaps and checkerboards")
    (line,) = re.findall("^  unet-7 .*", tissue, re.MULTILINE)
    assert line.split()[-4:] == ["21.00*", "0.5200*", "-", "600"]
    (line,) = re.findall("^  unet-7 .*", seams, re.MULTILINE)
    assert line.split()[-7:] == ["1.100", *["-"] * 6]
    assert "nearest 1 is best" in seams
    assert "20.00 to 22.00" in honest


def test_the_budget_stands_beside_every_number(comparison):
    for text in (comparison_text(comparison), comparison_latex(comparison)):
        for name in ("unet-7", "unet-7-alone", "fcn-1"):
            lines = re.findall(rf"^ *{name} .*", text, re.MULTILINE)
            assert len(lines) >= 3
            assert all(BUDGET in line for line in lines if "pix2pix" not in line)
    for row in csv.DictReader(io.StringIO(comparison_csv(comparison))):
        assert bool(row["budget"]) == bool(row["mean"] or row["metric"])


def test_an_untrained_row_is_marked_in_every_table_beside_its_steps():
    few, enough = (replace(row, steps=steps) for row, steps in ((UNET, 999), (ALONE, 1000)))
    comparison = compare([CUBIC, few, enough], CONTROLS[:1])
    text = comparison_text(comparison)
    parts = re.split(r"\n\n(?=[A-Z])", text)
    assert len(parts) == 5
    for part in parts:
        lines = [line for line in part.splitlines() if line.lstrip().startswith("unet-7")]
        assert len(lines) in (1, 2)
        assert lines[0].startswith("  unet-7 † ")
        assert f"{BUDGET}, 999 steps" in lines[0]
        assert MARK_MEANS in part
        assert "unet-7-alone †" not in part
        if len(lines) == 2:
            assert f"{BUDGET}, 1,000 steps" in lines[1]
    assert MARK_MEANS not in comparison_text(compare([CUBIC, enough]))
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    marks = {(row["method"], row["steps"], row["untrained"]) for row in rows}
    assert marks == {
        ("cubic", "", ""),
        ("unet-7", "999", "True"),
        ("unet-7-alone", "1000", "False"),
    }
    assert r"unet-7 \textdagger{}" in comparison_latex(comparison)


def test_rows_stand_by_group_and_keep_their_order(comparison):
    names = [row.name for row in comparison.rows]
    assert names == ["fcn-1", "unet-7", "pix2pix-11", "cubic", "unet-7-alone"]
    other = ComparedRow("x", "my own", None, "", results=CUBIC.results)
    assert [row.name for row in compare([other, CUBIC]).rows] == ["cubic", "x"]


def test_differences_and_controls(comparison):
    found = comparison.differences["psnr_mask"]
    assert comparison.references == {"psnr_mask": "unet-7", "ssim_mask": "unet-7"}
    assert found["cubic"].mean == -2.5
    assert (found["cubic"].low, found["cubic"].high) == bootstrap_interval([-2, -3])
    assert found["cubic"].p == 0.5
    assert found["cubic"].p_corrected == 1
    first, seam, none = comparison.controls
    assert first.specimens == {"s0": -0.5, "s1": 1.0}
    assert seam.mean == pytest.approx(0.05)
    assert (seam.p, seam.p_corrected) == (0.5, 1.0)
    assert none.note.startswith("no test")
    lines = list(csv.DictReader(io.StringIO(controls_csv(comparison))))
    assert [line["note"] for line in lines] == [
        "",
        "",
        "not run: pix2pix-11",
        "no test: not a finite number on s0, s1",
    ]
    assert float(lines[0]["difference"]) == 0.25
    assert lines[2]["difference"] == lines[2]["p"] == lines[3]["p"] == ""


def test_rows_not_run_have_no_numbers_anywhere(comparison):
    def digits(text: str) -> str:
        bare = re.sub(r"<[^>]*>|\\[a-z]+(\[t\])?(\{\d+cm\})?", " ", text)
        return re.sub(r"\D", "", bare.replace(PIX2PIX.name, "").replace(REASON, ""))

    named = f"{PIX2PIX.name}.*"
    for text in (comparison_text(comparison), comparison_latex(comparison)):
        assert REASON in text
        lines = re.findall(rf"^ *{named}", text, re.MULTILINE)
        assert len(lines) == 1
        assert not any(map(digits, lines))
    html = comparison_html(comparison)
    (line,) = re.findall(f"<tr><th[^>]*>{named}", html)
    assert REASON in line
    assert not digits(line)
    (line,) = [
        row
        for row in csv.DictReader(io.StringIO(comparison_csv(comparison)))
        if row["method"] == PIX2PIX.name
    ]
    assert {key for key, value in line.items() if value} == {"group", "method", "status", "reason"}
    assert line["status"] == "not run"
    (row,) = [
        row
        for row in json.loads(comparison_json(comparison))["rows"]
        if row["name"] == PIX2PIX.name
    ]
    assert row["results"] is None
    assert "summary" not in row
    assert "paper" not in row


def test_nothing_was_run():
    comparison = compare([PIX2PIX], [("pix2pix-11", "pix2pix-11", "psnr_mask")])
    text = comparison_text(comparison)
    assert text.startswith("Not run")
    assert REASON in text
    assert "not run: pix2pix-11" in text
    assert len(comparison_csv(comparison).splitlines()) == 2


def test_one_row_has_no_differences():
    text = comparison_text(compare([UNET]))
    assert "Differences" not in text
    assert "*" not in text


def test_seeds_are_one_row_with_a_spread():
    runs = [by_specimen((20, 0.5), (22, 0.5)), by_specimen((21, 0.5), (25, 0.5))]
    row = with_seeds(ComparedRow("unet-5", GAN, 1, BUDGET, reason="to be filled"), runs)
    assert row.reason is None
    assert row.seeds == 2
    assert row.results is not None
    assert row.results["s1"]["psnr_mask"] == 23.5
    assert row.spread["psnr_mask"] == pytest.approx(math.sqrt(2))
    comparison = compare([row, CUBIC])
    text = comparison_text(comparison)
    spread = text[text.index("Spread over seeds") :]
    (line,) = re.findall("^  unet-5 .*", spread.split("Differences")[0], re.MULTILINE)
    assert line.split()[-8:] == ["2", "1.41", "0.001840", "0.0000", "1.41", "0.0000", "-", "-"]
    found = csv.DictReader(io.StringIO(comparison_csv(comparison)))
    assert {
        (row["seeds"], row["seed_std"] != "") for row in found if row["metric"] == "psnr_mask"
    } == {("2", True), ("1", False)}
    content = json.loads(comparison_json(comparison))["rows"]
    assert [row["seeds"] for row in content] == [2, 1]
    assert content[0]["spread"]["psnr_mask"] == pytest.approx(math.sqrt(2))


def test_a_row_without_a_metric_has_no_test_and_says_so():
    odd = ComparedRow("odd", BASELINE, None, "", results=by_specimen((1, math.nan), (2, 0.5)))
    text = comparison_text(compare([UNET, CUBIC, odd]))
    assert "odd, SSIM 3D: no test: not a finite number on s0." in text
    assert "nan" not in text


@pytest.mark.parametrize(
    ("specimens", "tests", "note"),
    [
        (4, 1, "0.125: nothing can be significant at 5%."),
        (4, 15, "0.125, and 1 after Holm's correction for 15 tests: nothing can be"),
        (8, 15, "0.00781, and 0.117 after Holm's correction for 15 tests: nothing can be"),
        (12, 15, "0.000488, and 0.00732 after Holm's correction for 15 tests."),
        (1, 1, "With 1 specimen the smallest p"),
    ],
)
def test_limits_note(specimens, tests, note):
    assert note in limits_note(specimens, tests)


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1"), (0.125, "0.125"), (3e-5, "<0.0001"), (math.nan, "-")]
)
def test_format_p(p, text):
    assert format_p(p) == text


@pytest.mark.parametrize(
    ("rows", "controls", "message"),
    [
        ([CUBIC, CUBIC], [], "names of their own, got cubic twice"),
        ([CUBIC], [("cubic", "unet", "psnr_mask")], "between rows, got unet"),
        ([CUBIC], [("cubic", "cubic", "psrn")], "key of METRICS, got psrn"),
        (
            [CUBIC, ComparedRow("x", CNN, 1, "", results=by_specimen((1, 1)))],
            [],
            "same specimens",
        ),
    ],
)
def test_compare_refuses(rows, controls, message):
    with pytest.raises(ValueError, match=message):
        compare(rows, controls)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "either results or a reason"),
        ({"reason": "x", "results": {"s": {}}}, "either results or a reason"),
        ({"reason": "x", "seconds": 3.0}, "neither seconds nor spread"),
        ({"results": {"s": {}}, "seeds": 0}, "seeds >= 1, got 0"),
    ],
)
def test_row_refuses(more, message):
    with pytest.raises(ValueError, match=message):
        ComparedRow("x", CNN, 1, BUDGET, **more)
