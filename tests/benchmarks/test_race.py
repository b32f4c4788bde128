"""The race: its table, curves, leaderboard, and presets with changes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import race, race_leaderboard
from benchmarks.race_report import (
    HOME,
    better_for,
    curves,
    read_rows,
    seconds_to_reach,
    table,
    times_table,
    write_figure,
)
from distsynth.errors import ConfigError


def _keep(out: Path, entry: str, seconds: float, rows: dict[str, list[float]], seed: int = 0):
    people = {
        row: {
            f"sub-{place}": {"psnr_mask": value, "ssim_mask": value / 30}
            for place, value in enumerate(values)
        }
        for row, values in rows.items()
    }
    found = {"entry": entry, "seconds": seconds, "seed": seed, "spent": seconds, "steps": 7}
    found |= {"date": "2026-01-02", "commit": "abc", "results": {HOME: people}}
    path = out / "results" / "val" / f"{entry}-{seconds:g}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    baselines = {"intensity-map": [25.0, 26.0], "neighbourhood-regression": [26.0, 26.5]}
    _keep(tmp_path, "baselines", 10, baselines)
    _keep(tmp_path, "konfai", 10, {"konfai": [24.0, 26.6]})
    _keep(tmp_path, "quick", 10, {"quick": [26.1, 26.2]})
    _keep(tmp_path, "quick", 10, {"quick": [26.3, 26.9]}, seed=1)
    _keep(tmp_path, "quick", 1000, {"quick": [27.0, 28.0]})
    return tmp_path


def test_time_to_a_quality_is_interpolated_in_the_logarithm_of_time():
    points = [(1000.0, 27.5), (10.0, 26.5)]
    assert seconds_to_reach(points, 27.0) == "100"
    assert seconds_to_reach(points, 27.5) == "1000"
    assert seconds_to_reach(points, 26.5) == "<= 10"
    assert seconds_to_reach(points, 27.6) == "> 1000"


def test_a_curve_that_falls_again_has_reached_what_it_first_crossed():
    assert seconds_to_reach([(10, 26), (100, 28), (1000, 26)], 27) == "32"


def test_better_for_counts_people_above_every_baseline_and_every_peer_of_the_same_budget(out: Path):
    rows = {(row.name, row.seconds): row for row in read_rows(out, "val")}
    everything = list(rows.values())
    # 26.2 beats 26.0 and 24.0; 26.55 beats 26.5 but not the peer's 26.6.
    assert better_for(everything, rows["quick", 10], "psnr_mask") == "1 of 2"
    # The peer was not run for 1000 seconds; the baselines know no budget.
    assert better_for(everything, rows["quick", 1000], "psnr_mask") == "2 of 2"


def test_seeds_are_averaged_before_people(out: Path):
    (row,) = (row for row in read_rows(out, "val") if (row.name, row.seconds) == ("quick", 10))
    assert row.people("psnr_mask") == pytest.approx({"sub-0": 26.2, "sub-1": 26.55})


def test_curves_hold_what_is_trained(out: Path):
    found = curves(read_rows(out, "val"), "psnr_mask", HOME)
    assert list(found) == ["konfai", "quick"]
    assert found["quick"] == [(10, pytest.approx(26.375)), (1000, 27.5)]


def test_tables_have_paired_differences_of_both_metrics_and_times(out: Path):
    rows = read_rows(out, "val")
    (konfai,) = (line for line in table(rows, "quick").splitlines() if "| konfai |" in line)
    assert "| -1.07 (-2.20 to +0.05) | -0.036 (-0.073 to +0.002) |" in konfai
    assert "| quick | <= 10 | 129 |" in times_table(rows)


def test_the_figure_is_a_picture(out: Path):
    write_figure(read_rows(out, "val"), out / "curves.png")
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_leaderboard_keeps_its_rows_and_takes_each_once(out: Path):
    path = out / "LEADERBOARD.md"
    assert race_leaderboard.extend(out, "val", path) == 6
    before = path.read_text()
    assert race_leaderboard.extend(out, "val", path) == 0
    assert path.read_text() == before
    failure = {"entry": "wide", "seconds": 10, "seed": 0, "recipe": "best: wider", "commit": "abc"}
    failure |= {"failed": "ValueError: a | b"}
    (out / "failures" / "val").mkdir(parents=True)
    (out / "failures" / "val" / "wide-10-0.json").write_text(json.dumps(failure))
    assert race_leaderboard.extend(out, "val", path) == 1
    assert path.read_text().startswith(before)
    assert path.read_text().splitlines()[-1].endswith("| ValueError: a / b |")


def _given(out: Path, **changed: object) -> argparse.Namespace:
    start = {"entries": ["best"], "change": [], "name": None, "seconds": [10.0], "seeds": 1}
    start |= {"cohort": out, "others": None, "split": "val", "out": out}
    return argparse.Namespace(**{**start, **changed})


def test_a_preset_with_changes_races_under_its_own_name(tmp_path: Path):
    words = ["loss.recon=charbonnier", "optim.average=0.999", "augment.flips=[0]"]
    (work,) = race.works(_given(tmp_path, change=words, name="best-smooth"))
    assert work.name == "best-smooth-10-0"
    assert work.config.loss.recon == "charbonnier"
    assert work.config.augment.flips == (0,)
    assert work.recipe.endswith("loss.recon charbonnier, optim.average 0.999, augment.flips [0]")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"change": ["loss.recon=l2"]}, "go together"),
        ({"name": "mine"}, "go together"),
        ({"change": ["loss.recon=l2"], "name": "quick"}, "entry already"),
        ({"change": ["loss.recon"], "name": "mine"}, "FIELD=VALUE"),
        ({"change": ["train.minutes=3"], "name": "mine"}, "the race itself sets train.minutes"),
        ({"change": ["loss.recon=l2"], "name": "mine", "entries": ["konfai"]}, "one preset"),
    ],
)
def test_changes_that_make_no_sense_are_refused(
    tmp_path: Path, changed: dict[str, object], message: str
):
    with pytest.raises(SystemExit, match=message):
        race.works(_given(tmp_path, **changed))


def test_a_field_that_the_preset_lacks_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"loss\.recom"):
        race.works(_given(tmp_path, change=["loss.recom=l2"], name="mine"))


def test_a_name_that_raced_with_other_changes_is_refused(tmp_path: Path):
    _keep(tmp_path, "mine", 10, {"mine": [26.0]})
    with pytest.raises(SystemExit, match="other changes"):
        race.works(_given(tmp_path, change=["loss.recon=l2"], name="mine"))


def test_what_fails_leaves_a_file_that_says_why(tmp_path: Path):
    (work,) = race.works(_given(tmp_path / "absent"))
    with pytest.raises(SystemExit):
        race.attempt(work)
    found = json.loads(work.failure.read_text())
    assert found["failed"].startswith("DataError: ") and "absent" in found["failed"]
    assert not work.result.exists()
