"""The page of a run and of a sweep: all sections, nothing of this machine."""

from __future__ import annotations

import json
import re
import socket

import numpy as np
import pytest
from html_check import NASTY, checked
from tiny_runs import tiny_config

from distsynth.cli.main import main
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import load_predictor
from distsynth.metrics.results import read_results
from distsynth.presets import preset
from distsynth.reporting.evaluation_files import write_evaluation
from distsynth.reporting.specimen_pictures import MOST_CHECKS, show_specimens
from distsynth.runs.folder import BEST
from distsynth.sweep.figures import hyperparameter_figure, parallel_figure, scale_of
from distsynth.sweep.folder import EpochRecord, SweepFolder, TrialRecord
from distsynth.sweep.leaderboard import leaderboard_table, rank_trials
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.training.loop import train
from sharding.io.errors import DataError
from sharding.volumes.cohort import read_cohort
from sharding.volumes.pair import prepare_pair

SPACE = {
    "loss.lambda_bce": {"zero_or_log": [0.01, 4.0], "zero": 0.2},
    "generator.channels": {"choice": [[8, 8], [16, 16, 16]]},
}


@pytest.fixture(scope="module")
def run_dir(shard_folder, tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(tiny_config(shard_folder), folder)
    return folder


@pytest.fixture(scope="module")
def evaluation(run_dir, phantom_cohort, tmp_path_factory):
    """The run evaluated, in a folder of its own."""
    predictors = {"first": load_predictor(run_dir, "cpu")}
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    found = evaluate(predictors, read_cohort(phantom_cohort), "test")
    write_evaluation(out, found, predictors, {"first": run_dir})
    return out


def records():
    """Trials of a sweep: scored, failed, waiting."""
    found = {}
    for number, weight in enumerate((0.0, 0.02, 0.3, 1.0, 4.0)):
        score = 20.0 + number if number else -50.0
        report = EpochRecord(1, 5, {"val/psnr": score, "val/mse": None}, score, score)
        hyperparameters = {"loss.lambda_bce": weight, "generator.channels": (8, 8)}
        found[f"{number:05d}"] = TrialRecord(
            f"{number:05d}", hyperparameters, "finished", (report,)
        )
    cause = "OSError: /home/somebody/secret"
    found["00005"] = TrialRecord("00005", {"loss.lambda_bce": 1.0}, "failed", cause=cause)
    found["00006"] = TrialRecord("00006", {"loss.lambda_bce": 2.0}, preset=NASTY)
    return found


def make_plan(**sweep):
    return SweepPlan("lambdas", "0a1b2c3d", preset("unet-7"), SPACE, SweepConfig(**sweep))


def report(capsys, *args):
    status = main(["report", *map(str, args)])
    return status, capsys.readouterr()


def headings(page):
    return re.findall("<h2>(.*?)</h2>", page)


def text_of(page):
    return checked(re.sub("<input[^>]*>", "", page)).text


def assert_private(page, *places):
    """The page names no place and no machine, loads nothing, and runs nothing but the viewer."""
    words = re.sub(r"base64,[^\"]+", "", page)
    for place in (*places, "/home/", "/tmp/"):
        assert str(place) not in words
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", words)
    assert not re.search(r"https?:|@import|url\(|href=", words)
    viewers = page.count('<div class="viewer">')
    assert viewers <= 1
    assert page.count("<script") == viewers
    assert page.count("script-src") == viewers


@pytest.mark.slow
def test_a_run_with_everything(run_dir, evaluation, phantom_cohort, tmp_path, capsys):
    out = tmp_path / "page.html"
    given = ("--cohort", phantom_cohort, "--evaluation", evaluation, "--out", out)
    status, told = report(capsys, run_dir, *given)
    assert (status, told.out) == (0, f"{out}\n"), told.err
    page = out.read_text(encoding="utf-8")
    assert headings(page) == [
        "The run",
        "Verdict",
        "Results",
        "Slices",
        "Seams and consistency with the source",
        "Training",
        "Values per specimen",
        "What the numbers are",
        "Configuration and versions",
    ]
    predictor = load_predictor(run_dir, "cpu")
    text = text_of(page)
    (name,) = [n for n, split in predictor.checkpoint.data.splits.items() if split == "test"]
    assert f"{name}, on the source's own grid" in text
    assert predictor.checkpoint.data.manifest_sha256[:16] in text
    assert page.count('class="sheets"') == 3
    config = predictor.checkpoint.config
    assert_private(page, run_dir, evaluation, phantom_cohort, config.data.shards)
    assert len(page) < 15_000_000


@pytest.mark.slow
def test_a_run_alone_says_how_to_get_the_rest(run_dir, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert report(capsys, run_dir, "--out", out)[0] == 0
    page = out.read_text(encoding="utf-8")
    text = text_of(page)
    assert "--cohort" in text
    assert "--evaluation" in text
    assert 'class="viewer"' not in page
    assert "Values per specimen" not in headings(page)
    assert_private(page, run_dir)


@pytest.mark.slow
def test_an_evaluation_within_the_run_is_found(run_dir, evaluation, tmp_path, capsys):
    copy = tmp_path / "run"
    (copy / "evaluation").mkdir(parents=True)
    (copy / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    results = (evaluation / "results.json").read_bytes()
    (copy / "evaluation" / "results.json").write_bytes(results)
    assert report(capsys, copy, "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "neighbourhood-regression" in text_of(page)
    assert "no metrics were logged" not in page
    table = read_results(results, "x")
    content = json.loads(results)["methods"]["first"]["summary"]["psnr_mask"]
    assert table.summary["first"]["psnr_mask"].mean == pytest.approx(content["mean"])
    assert np.isnan(table.summary["cubic"]["seam_index"].mean)


def test_what_cannot_be_shown_is_refused(run_dir, tmp_path, capsys):
    page = tmp_path / "page.html"
    status, told = report(capsys, tmp_path, "--out", page)
    assert status == 1
    assert "no run, sweep or reproduction" in told.err
    page.write_text("mine")
    status, told = report(capsys, run_dir, "--out", page)
    assert status == 1
    assert "exists already" in told.err
    assert page.read_text() == "mine"
    (tmp_path / "results.json").write_text('{"methods": {"a": 1}}')
    status, told = report(capsys, run_dir, "--out", page, "--overwrite", "--evaluation", tmp_path)
    assert status == 1
    assert "no results of an evaluation" in told.err
    assert report(capsys, run_dir, "--out", page, "--overwrite", "--most", 0)[0] == 2
    with pytest.raises(DataError, match="no results"):
        read_results(b"[]", "x")


@pytest.mark.slow
def test_shown_specimens_are_those_of_the_split(run_dir, phantom_cohort):
    predictors = {"first": load_predictor(run_dir, "cpu")}
    specimens = read_cohort(phantom_cohort)
    data = predictors["first"].checkpoint.data
    for split in ("val", "test"):
        shown = show_specimens(predictors, specimens, split)
        names = [n for n, found in data.splits.items() if found == split]
        assert [each.specimen for each in shown.slices] == names
        assert len(shown.checks) == 2 * len(names)
    train_names = [n for n, found in data.splits.items() if found == "train"]
    shown = show_specimens(predictors, specimens, "train", train_names[:2], most=1)
    assert [each.specimen for each in shown.slices] == train_names[:1]
    assert shown.left_out == train_names[1:2]
    many = {f"m{k}": predictors["first"] for k in range(MOST_CHECKS)}
    shown = show_specimens(many, specimens, "train", train_names[:2])
    assert len(shown.slices) == 2
    assert len(shown.checks) == 2
    with pytest.raises(ValueError, match="no specimen in the split test"):
        show_specimens(predictors, specimens[:0])


def test_a_scan_of_training_is_not_shown_as_a_test_scan(run_dir, phantom_cohort):
    predictors = {"first": load_predictor(run_dir, "cpu")}
    splits = predictors["first"].checkpoint.data.splits
    seen = next(row for row in read_cohort(phantom_cohort) if splits[row.name] == "train")
    other = type(seen)(**{**vars(seen), "name": "other"})
    with pytest.raises(DataError, match="seen in training"):
        show_specimens(predictors, [other])


def test_slices_are_of_the_prediction(run_dir, phantom_cohort):
    predictor = load_predictor(run_dir, "cpu")
    (cut,) = show_specimens({"first": predictor}, read_cohort(phantom_cohort)).slices
    row = next(row for row in read_cohort(phantom_cohort) if row.name == cut.specimen)
    pair = prepare_pair(row, predictor.checkpoint.data.preprocess)
    made = predictor(pair.source, quiet=True)
    low, high = cut.window
    index = cut.axes[2].indices[cut.axes[2].central]
    greys = np.rint(np.clip((made[:, :, index] - low) / (high - low), 0, 1) * 255)
    shown = cut.axes[2].synthetic["first"][cut.axes[2].central]
    # What lies outside the mask's box is cut off.
    rows, columns = shown.shape
    windows = np.lib.stride_tricks.sliding_window_view(greys.T[::-1], (rows, columns))
    assert (np.abs(windows - shown).max(axis=(2, 3)) <= 1).any()


@pytest.mark.slow
def test_a_sweep(run_dir, tmp_path, capsys):
    folder = SweepFolder(tmp_path / "sweeps" / "lambdas")
    folder.write_plan(make_plan(cohort=str(tmp_path / "cohort.csv")))
    for record in records().values():
        folder.write_record(record)
    for name in ("config.json", "metrics.jsonl", BEST.as_posix()):
        folder.folder.write(f"best/1-00004/{name}", (run_dir / name).read_bytes())
    out = tmp_path / "page.html"
    status, told = report(capsys, folder.url, "--out", out)
    assert status == 0, told.err
    page = out.read_text(encoding="utf-8")
    assert headings(page) == [
        "The sweep",
        "Leaderboard",
        "Hyperparameters",
        "Results",
        "Slices",
        "Training",
        "Configuration and versions",
    ]
    text = text_of(page)
    assert "1-00004: losses" in text
    assert NASTY in text
    assert "<script>alert" not in page
    rows = re.findall('<tr><th scope="row">(.*?)</th><th class="text" scope="row">(.....)', page)
    assert rows[:2] == [("1", "00004"), ("2", "00003")]
    assert len(rows) == 7
    assert "secret" not in page
    assert_private(page, tmp_path)


def test_a_sweep_without_any_score(tmp_path, capsys):
    folder = SweepFolder(tmp_path / "lambdas")
    folder.write_plan(make_plan())
    out = tmp_path / "page.html"
    assert report(capsys, folder.url, "--out", out)[0] == 0
    assert "Hyperparameters" not in headings(out.read_text(encoding="utf-8"))


def test_the_leaderboard_has_every_trial_in_order():
    table = leaderboard_table(make_plan(), rank_trials(make_plan(), records()))
    (_, lines), *none = table.groups
    assert none == []
    assert [(line[0].text, line[1].text[:5]) for line in lines] == [
        *((str(rank), f"{5 - rank:05d}") for rank in range(1, 6)),
        ("-", "00005"),
        ("-", "00006"),
    ]


def test_scales():
    # 0 lies apart from the least positive value of a logarithmic axis.
    scale = scale_of([0.0, 0.01, 0.1, 1.0])
    assert scale.places == pytest.approx([0, 0.12, 0.56, 1])
    assert [label for _, label in scale.ticks] == ["0", "0.01", "0.1", "1"]
    assert scale_of([2, 3, 4]).places == pytest.approx([0, 0.5, 1])
    assert scale_of([-1.0, 100.0, 0.5]).places == pytest.approx([0, 1, 1.5 / 101])
    assert scale_of([5, 5]).places == [0, 0]
    assert scale_of(["b", "a", None]).places == pytest.approx([1, 0.5, 0])
    assert scale_of([True, False]).places == [1, 0]


def test_steps_are_drawn_once_each():
    plan = make_plan()
    rows = rank_trials(plan, records())
    lines = [
        line for line in parallel_figure(plan, rows).axes[0].lines if len(line.get_xdata()) > 2
    ]
    assert len(lines) == 5
    # The best is drawn last, over all others.
    assert lines[-1].get_linewidth() == max(line.get_linewidth() for line in lines)
    panel, other = hyperparameter_figure(plan, rows).axes[:2]
    assert (panel.get_title(), other.get_title()) == ("lambda_bce", "channels")
    under, shown, ring = (part.get_offsets() for part in panel.collections)
    assert len(under) == 1
    assert len(shown) == 4
    assert np.asarray(ring).ravel()[1] == 24.0
    with pytest.raises(ValueError, match="no trial of lambdas has a score"):
        parallel_figure(plan, [])


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_one_line_with_file_and_remedy(run_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    status, told = report(capsys, run_dir, "--out", tmp_path / "file" / "page.html")
    assert status == 1
    assert f"{tmp_path / 'file' / 'page.html'}: cannot be read or written" in told.err
    assert "Check the path and its permissions" in told.err
    assert len(told.err.strip().splitlines()) == 1
