"""The paper's comparison by one command: killed and continued, it reports every row."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from killing import FileMoment, killed_at
from programs import environment, finished, home_folder
from two_contrasts import write_two_contrasts
from wandb_offline import read_offline_run

from distsynth.cli.main import main
from distsynth.inference.predictor import load_predictor
from distsynth.reproduction.paper_values import PAPER_VALUES
from distsynth.reproduction.row_evaluation import read_evaluation, read_slices
from distsynth.reproduction.task import read_task
from distsynth.sweep.folder import SweepFolder
from sharding.io.lease import lease
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.volume import read_volume, write_volume

pytestmark = [pytest.mark.slow, pytest.mark.long]

SIDES = (68, 64, 64)
"""Patches of 64 must fit; along one axis they overlap, so that there are seams."""
TINY = ["--budget.epochs", "0.04", "--budget.patches", "8", "--budget.stride", "48"]
TINY += ["--budget.val-slices", "2", "--budget.trees", "3", "--budget.tree-rows", "500"]
FIRST = ("dcgan-1", "dcsrn-perceptual", "rfsr")
ADDED = ("unet-5",)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduced") / "cohort"
    write_phantom_cohort(folder, specimens=6, shape=SIDES, seed=3)
    return folder


@pytest.fixture(scope="module")
def out(cohort):
    """Killed when its first network is trained, then continued and given one more row."""
    out = cohort.parent / "reproduction"
    words = ["distsynth", "reproduce", cohort, "--out", out, *TINY, "--rows", *FIRST]
    # All networks are trained, and nothing is evaluated yet.
    moment = FileMoment("*/reproduction/evaluations/*")
    with home_folder() as home:
        killed_at(moment, words, environment(home), home)
    assert '"finished"' in (out / "trials" / "dcgan-1.json").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").rglob("*.tar")}
    weights = (out / "runs" / "dcgan-1" / "checkpoints" / "best.pt").read_bytes()
    with home_folder() as home:
        status, said = finished([*words, *ADDED, "--resume"], environment(home), home)
    assert status == 0, said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "runs" / "dcgan-1" / "checkpoints" / "best.pt").read_bytes() == weights
    assert said.strip().splitlines()[-1] == str(out)
    assert (out / "comparison.txt").read_text().strip() in said
    return out


def test_several_contrasts_are_channels_of_networks_and_forests(tmp_path):
    cohort = write_two_contrasts(tmp_path / "cohort", 6, shape=SIDES)
    out = tmp_path / "reproduction"
    rows = ("dcsrn-l1", "rfsr", "rfsr-intensity")
    words = ["distsynth", "reproduce", cohort, "--out", out, *TINY, "--rows", *rows]
    with home_folder() as home:
        status, said = finished(words, environment(home), home)
    assert status == 0, said
    assert "forests but rfsr see t1, t2, and rfsr and the other baselines t1 alone" in said
    checkpoint = load_predictor(out / "runs" / "dcsrn-l1").checkpoint
    assert checkpoint.data.contrasts == ("t1", "t2")
    assert checkpoint.config.data.channels == 2
    compared = compared_rows(out)
    for row in (*rows, "neighbourhood-regression", "cubic"):
        assert compared[row]["reason"] is None


def compared_rows(out):
    """Name to row of comparison.json."""
    return {row["name"]: row for row in json.loads((out / "comparison.json").read_text())["rows"]}


def test_every_row_is_evaluated_or_its_reason_told(out):
    rows = compared_rows(out)
    assert set(rows) == {
        *(*FIRST, *ADDED),
        *("identity", "cubic", "intensity-map", "neighbourhood-regression"),
    }
    not_run = {name for name, row in rows.items() if row["results"] is None}
    assert not_run == {"dcsrn-perceptual"}
    assert "VGG16" in rows["dcsrn-perceptual"]["reason"]
    assert rows["dcgan-1"]["parameters"] == PAPER_VALUES["dcgan-1"].parameters
    for name in ("dcgan-1", "unet-5"):
        assert rows[name]["trained"] == "1 of 30 epochs, 8 of 300 patches a specimen, stride 48"
        assert rows[name]["seconds"]
        found = read_evaluation(SweepFolder(out).folder, name)
        assert found
        assert rows[name]["results"] == found.results[name]
    text = (out / "comparison.txt").read_text()
    assert "3 trees of 500 rows, 8 of 300 patches a specimen" in text


def test_numbers_are_those_of_evaluating_the_run(out, cohort, tmp_path):
    words = ["distsynth", "evaluate", out / "runs" / "dcgan-1", "--cohort", cohort]
    with home_folder() as home:
        status, said = finished([*words, "--out", tmp_path / "evaluated"], environment(home), home)
    assert status == 0, said
    alone = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    rows = compared_rows(out)
    for name in ("dcgan-1", "cubic", "neighbourhood-regression"):
        for specimen, values in alone["methods"][name]["specimens"].items():
            for metric, value in values.items():
                if value is not None:
                    assert rows[name]["results"][specimen][metric] == pytest.approx(value, rel=1e-5)


def test_seams_are_told_for_every_way_of_stitching(out):
    rows = list(csv.DictReader(io.StringIO((out / "seams.csv").read_text())))
    seams = {row["method"] for row in rows if row["metric"] == "seam_index"}
    assert seams == {
        f"unet-5, trim {trim}, {weights} weights"
        for trim in (0, 4, 8)
        for weights in ("uniform", "smooth")
    }


def test_every_row_is_a_run_of_one_group(out):
    for name in ("dcgan-1", "unet-5"):
        found = [read_offline_run(path) for path in (out / "runs" / name).rglob("*.wandb")]
        assert {run.group for run in found} == {"reproduction"}
        assert any(run.rows for run in found)


def test_slices_lie_beside_the_numbers(out):
    folder = SweepFolder(out).folder
    specimens = read_evaluation(folder, "baselines").results["identity"]
    for specimen in specimens:
        shape = read_slices(folder, "baselines")[f"{specimen}/target"].shape
        synthetic = read_slices(folder, "dcgan-1")[f"{specimen}/dcgan-1"]
        assert synthetic.shape == shape
        assert np.isfinite(synthetic).all()


def test_the_page_tells_no_path(out):
    page = (out / "comparison.html").read_text()
    assert str(out.parent) not in page
    assert "unet-5" in page
    assert page.count("<img") >= 2
    assert read_task(SweepFolder(out).folder).rows == (
        "dcsrn-perceptual",
        "dcgan-1",
        "unet-5",
        "rfsr",
    )


def test_the_comparison_is_a_table_of_the_group(out):
    (file,) = (out / "wandb").rglob("*.wandb")
    run = read_offline_run(file)
    assert (run.group, run.name, run.staged) == ("reproduction", "reproduction-comparison", [])
    (name,) = run.files
    table = json.loads((file.parent / "files" / name).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {row["method"] for row in rows} == set(compared_rows(out))
    scores = [row["psnr_mask"] for row in rows if row["not run"] is None]
    assert scores == sorted(scores, reverse=True)
    assert run.summary["best/method"] == rows[0]["method"]
    assert str(out).encode() not in run.content


def test_a_report_slides_through_the_best_networks(out, cohort, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(out), "--cohort", str(cohort), "--out", str(page)]) == 0
    text = page.read_text()
    assert '<div class="viewer">' in text
    assert "seam index" in text or "Seams and consistency" in text
    assert str(out.parent) not in text
    for name in ("dcgan-1", "unet-5", "identity"):
        assert name in text


@pytest.mark.parametrize(
    ("what", "rule"),
    [("nan", "NaN"), ("constant", "must not all be equal"), ("missing", "does not exist")],
)
def test_a_bad_scan_is_named_before_anything_is_trained(cohort, tmp_path, capsys, what, rule):
    shutil.copytree(cohort, tmp_path / "cohort")
    scan = min((tmp_path / "cohort").glob("*_target.nii.gz"))
    volume = read_volume(scan)
    data = np.full(volume.shape, 7, np.float32) if what == "constant" else volume.data.copy()
    data[3, 3, 3] = np.nan if what == "nan" else data[3, 3, 3]
    scan.unlink()
    if what != "missing":
        write_volume(scan, volume.with_data(data))
    out = tmp_path / "out"
    assert main(["reproduce", str(tmp_path / "cohort"), "--out", str(out), *TINY]) == 1
    said = capsys.readouterr().err
    assert str(scan) in said
    assert re.search(rule, said), said
    assert "or give --skip-failed" not in said
    assert not (out / "trials").exists()


def test_a_run_that_fails_is_told_and_tried_again(out, cohort, tmp_path):
    """A shard whose second half was wiped behind the manifest's back."""
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shard = min((copy / "shards").rglob("train-*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
    words = ["distsynth", "reproduce", cohort, "--out", copy, *TINY, "--resume", "--retries", "0"]
    words += ["--shards", copy / "shards", "--rows", "unet-7-alone"]
    task = json.loads((copy / "reproduction.json").read_text())
    (copy / "reproduction.json").write_text(json.dumps(task | {"shards": str(copy / "shards")}))
    with home_folder() as home:
        status, said = finished(words, environment(home), home)
    assert status == 1, said
    assert shard.name in said.splitlines()[-1]
    assert "it failed: " in (copy / "comparison.txt").read_text(), said
    shard.write_bytes(whole)
    with home_folder() as home:
        status, said = finished(words, environment(home), home)
    assert status == 0, said


def test_a_second_process_on_a_reproduction_is_refused(cohort, tmp_path, capsys):
    out = tmp_path / "reproduction"
    words = ["reproduce", str(cohort), "--out", str(out), *TINY, "--rows", "rfsr"]
    with lease(out):
        for more in ([], ["--resume"]):
            assert main([*words, *more]) == 1
            said = capsys.readouterr().err
            assert f"another process is writing here: process {os.getpid()} on" in said
    assert not out.exists()


def test_a_second_start_or_another_budget_is_refused(out, cohort):
    words = ["distsynth", "reproduce", cohort, "--out", out, *TINY]
    other = [*words, "--resume", "--budget.epochs", "0.5"]
    for given, told, code in (
        (words, "there is a reproduction already. Give --resume", 1),
        (other, "started with other settings", 2),
    ):
        with home_folder() as home:
            status, said = finished(given, environment(home), home)
        assert status == code, said
        assert told in said
