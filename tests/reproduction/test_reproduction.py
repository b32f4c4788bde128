"""The paper's comparison by one command: killed and continued, it reports every row."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from killing import FileMoment, killed_at
from programs import environment, finished, home_folder
from wandb_offline import read_offline_run

from distsynth.cli.main import main
from distsynth.config import dotted_fields
from distsynth.errors import ConfigError
from distsynth.presets import OURS, PRESETS
from distsynth.reproduction.budget import Budget
from distsynth.reproduction.paper_values import PAPER_VALUES
from distsynth.reproduction.row_evaluation import read_evaluation, read_slices
from distsynth.reproduction.rows import (
    CNNS,
    FORESTS,
    GANS,
    NETWORKS,
    QUESTIONS,
    ROWS,
    USUAL,
    chosen_rows,
)
from distsynth.reproduction.run import warn_of_untrained
from distsynth.reproduction.task import Task, check_same_task, read_task, task_from_json
from distsynth.sweep.folder import SweepFolder
from sharding.io.lease import lease
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.volume import read_volume, write_volume

pytestmark = pytest.mark.slow

SIDES = (68, 64, 64)
"""Patches of 64 must fit; along one axis they overlap, so that there are seams."""
TINY = ["--budget.epochs", "0.04", "--budget.patches", "8", "--budget.stride", "48"]
TINY += ["--budget.val-slices", "2", "--budget.trees", "3", "--budget.tree-rows", "500"]
CLEAN = ("dcgan-4", "dcgan-3")
FIRST = ("dcgan-1", "dcsrn-perceptual", "rfsr")
ADDED = ("unet-5",)


# What is compared.


def test_every_preset_of_the_paper_is_a_row():
    assert set(CNNS + GANS) == set(PAPER_VALUES) == set(PRESETS) - set(OURS)
    assert set(CNNS + GANS) | set(FORESTS) < set(ROWS)
    for name in CNNS + GANS:
        assert NETWORKS[name].config == PRESETS[name]


def differing(first: str, second: str) -> set[str]:
    one, other = (dict(dotted_fields(NETWORKS[name].config)) for name in (first, second))
    none = object()
    return {n for n in one.keys() | other.keys() if one.get(n, none) != other.get(n, none)}


@pytest.mark.parametrize("name", ["dcgan-2", "unet-7"])
def test_a_generator_alone_differs_in_its_discriminator_only(name):
    found = differing(name, f"{name}-alone")
    assert {"loss.lambda_bce", "discriminator.family"} <= found
    # The other fields of a discriminator belong to its family.
    rest = found - {"loss.lambda_bce"}
    assert {field.partition(".")[0] for field in rest} == {"discriminator"}


def test_gradient_and_sharpening_are_crossed():
    gradient, sharpening = {"loss.lambda_gradient"}, {"generator.sharpen"}
    assert differing("unet-5", "unet-5-no-gradient") == gradient
    assert differing("unet-6", "unet-6-no-gradient") == gradient
    assert differing("unet-5", "unet-6") == sharpening
    assert differing("unet-5-no-gradient", "unet-6-no-gradient") == sharpening


def test_questions_are_asked_of_rows():
    assert {name for first, second, _ in QUESTIONS for name in (first, second)} <= set(ROWS)


def test_rows_come_in_the_order_of_the_table():
    assert chosen_rows(()) == USUAL
    assert set(GANS + CNNS + FORESTS) < set(USUAL) < set(ROWS)
    assert chosen_rows(("unet-5-margin", "fcn-1")) == ("fcn-1", "unet-5-margin")
    assert chosen_rows(("rfsr", "unet-5", "fcn-1")) == ("fcn-1", "unet-5", "rfsr")
    with pytest.raises(ConfigError, match="unet-55 is not a row"):
        chosen_rows(("unet-55",))


# What was asked for.


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("epochs", 1.5), ("patches", 0), ("stride", 49), ("trees", 0)],
)
def test_a_budget_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"budget.{field} must be"):
        Budget(**{field: value})


def test_a_budget_is_told_in_words():
    assert (
        Budget(0.1, patches=60, stride=44).in_words(30)
        == "3 of 30 epochs, 60 of 300 patches a specimen, stride 44"
    )
    assert Budget(0.01).epochs_of(30) == 1
    assert Budget(0.01, least_epochs=7).epochs_of(30) == 7
    assert Budget(least_epochs=7, slow_epochs=2).epochs_of(30, slow=True) == 2
    assert Budget(least_epochs=7, slow_epochs=2).epochs_of(30) == 30
    assert Budget(0.1, slow_epochs=2).in_words(30, slow=True).startswith("2 of 30 epochs")
    assert Budget().in_words(10) == "10 of 10 epochs, 300 of 300 patches a specimen, stride 20"


def test_the_full_budget_changes_nothing_but_the_seed():
    task = Task("cohort", "shards", ROWS, seeds=2)
    changed = {"train.validate_every", "train.seed"}
    for name in task.networks():
        before, now = (
            dict(dotted_fields(c)) for c in (NETWORKS[name].config, task.config(name, 1))
        )
        assert {field for field in now if now[field] != before[field]} <= changed


def test_slow_rows_have_a_budget_of_their_own_and_all_have_the_precision():
    budget = Budget(0.01, least_epochs=7, slow_epochs=2)
    task = Task("cohort", "shards", ROWS, budget=budget, precision="bf16")
    assert {name for name in task.networks() if task.config(name).train.epochs == 2} == {
        *("fcn-1", "dcgan-2", "dcgan-3", "dcgan-4", "dcgan-2-alone")
    }
    assert {task.config(name).train.epochs for name in task.networks()} == {2, 7}
    assert {task.config(name).train.precision for name in task.networks()} == {"bf16"}


def test_a_task_comes_back_from_json_and_another_one_is_refused():
    task = Task("cohort", "shards", ("unet-5",), 1, Budget(0.1))
    assert task_from_json(task.to_json(), "here") == task
    check_same_task(task, Task("cohort", "shards", ROWS, 3, Budget(0.1)))
    with pytest.raises(ConfigError, match=r'budget: \{"epochs": 0.1.* before, \{"epochs": 0.2'):
        check_same_task(task, Task("cohort", "shards", ("unet-5",), 1, Budget(0.2)))
    with pytest.raises(ConfigError, match=r"here is not a reproduction .*budget\.epochs"):
        task_from_json(task.to_json().replace("0.1", '"many"'), "here")


def test_rows_that_the_budget_leaves_untrained_are_named_beforehand(caplog):
    task = Task("cohort", "shards", ("fcn-1", "dcsrn-perceptual", "unet-7", "rfsr"))
    assert task.steps("unet-7", 9300) == 30 * (9300 // 32)
    warn_of_untrained(task, 9300)
    assert not caplog.records
    warn_of_untrained(replace(task, budget=Budget(0.1)), 9300)
    assert "2 of 2 networks below 1,000 optimiser steps (fcn-1 290, unet-7 870)" in caplog.text


def test_the_only_clean_pair_for_the_gradient_term_is_asked():
    asked = {metric for first, second, metric in QUESTIONS if (first, second) == CLEAN}
    assert asked == {"psnr_mask", "ssim_mask", "seam_index"}
    assert differing(*CLEAN) == {"loss.lambda_gradient"}


# The whole of it.


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
