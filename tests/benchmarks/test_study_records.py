"""Parts of a study that ran on several machines become one report."""

from __future__ import annotations

import math
import sys

import pytest

from benchmarks import study_report
from benchmarks.study_records import Row, joined, read_records, write_records

PEOPLE = [f"sub-{number:02}" for number in range(6)]


def row(psnr: float, seeds: int = 1, steps: int | None = 1575) -> Row:
    people = {
        person: {"psnr_mask": psnr + 0.1 * k, "ssim_mask": 0.9, "seam_index": math.nan}
        for k, person in enumerate(PEOPLE)
    }
    return Row(people, seeds, steps)


def test_records_are_read_as_they_were_written(tmp_path):
    sections = {"rows": {"unet-7": row(25, 3), "cubic": row(21, steps=None)}}
    write_records(tmp_path / "a.json", sections, ("psnr_mask", "seam_index"))
    found = read_records(tmp_path / "a.json")["rows"]
    assert found["unet-7"].seeds == 3
    assert found["cubic"].steps is None
    assert found["unet-7"].results["sub-03"]["psnr_mask"] == pytest.approx(25.3)
    assert math.isnan(found["unet-7"].results["sub-03"]["seam_index"])
    assert "ssim_mask" not in found["unet-7"].results["sub-03"]


def test_of_a_row_of_both_the_one_of_more_seeds_stays():
    ours = {"rows": {"unet-7": row(25), "small": row(26, 3)}}
    theirs = {"rows": {"unet-7": row(24, 3), "small": row(27, 3)}, "varied": {"unet-7": row(23)}}
    found = joined(ours, theirs)
    assert found["rows"] == {"unet-7": theirs["rows"]["unet-7"], "small": ours["rows"]["small"]}
    assert found["varied"] == theirs["varied"]


def test_a_report_of_records_compares_their_rows(tmp_path, monkeypatch, capsys):
    path = tmp_path / "records.json"
    rows = {"unet-7": row(25), "unet-7-alone": row(26)}
    write_records(path, {"rows": {}, "varied": rows}, study_report.SHOWN)
    monkeypatch.setattr(sys, "argv", ["study_report", "--records", str(path)])
    study_report.main()
    shown = capsys.readouterr().out
    assert "| unet-7 | unet-7-alone | psnr_mask | -1.00 (-1.00 to -1.00) |" in shown
    assert "| unet-7 | 1 | 1,575 | - | 25.25 (" in shown
    assert "## Rows" not in shown


def test_nothing_to_report_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study_report", str(tmp_path)])
    with pytest.raises(SystemExit, match="nothing was evaluated yet"):
        study_report.main()
