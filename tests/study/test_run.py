"""A study from a cohort to its verdict on phantoms, continued, and surveyed."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import distsynth as ds
from distsynth.cli.main import main
from distsynth.errors import ConfigError
from distsynth.runs.folder import BEST
from distsynth.study.plan import plan_from_json, plan_study
from distsynth.study.run import run_study
from distsynth.study.survey import survey
from distsynth.training.precision import Choice
from sharding.io.errors import DataError
from sharding.volumes.volume import read_volume, write_volume

FLOAT32 = Choice("no", "as tests compare numbers")

pytestmark = pytest.mark.slow
SHAPE = (41, 40, 35)
"""Odd sides: the volumes are extended to whole cells of the network."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six phantoms, three of them to train on."""
    return ds.make_phantoms(tmp_path_factory.mktemp("cohort"), 6, SHAPE)


@pytest.fixture(scope="module")
def plan(cohort):
    """What is planned for them in a fiftieth of a minute."""
    path = str(cohort[0].target.parent / "cohort.csv")
    return plan_study(path, survey(cohort), 0.02, 0, lambda *_: 0.1, lambda _: FLOAT32)


@pytest.fixture(scope="module")
def study(plan, tmp_path_factory):
    """The folder of the study that was carried out, and what the command said."""
    place = tmp_path_factory.mktemp("study")
    (place / "plan.json").write_text(plan.to_json())
    out = io.StringIO()
    args = ["run", plan.cohort, "-o", place / "study", "--plan", place / "plan.json"]
    with contextlib.redirect_stdout(out):
        assert main([*map(str, args), "--workers", "1"]) == 0
    return place / "study", out.getvalue()


def test_a_study_ends_with_a_page_and_a_verdict(study):
    folder, said = study
    *_, page, model, verdict = said.rstrip().splitlines()
    assert verdict.startswith(("Too few specimens", "model is "))
    assert verdict in (folder / "evaluation" / "table.txt").read_text()
    assert page.split()[-1] == str(folder / "report.html")
    text = (folder / "report.html").read_text()
    assert re.search(r"\d+ steps, validated (once|\d+ times), [\d.]+ minutes given", text)
    assert "neighbourhood-regression" in text and "PSNR" in text
    config = ds.load_predictor(folder / "model").checkpoint.config
    assert str(folder / "model") in model and config.train.minutes == 0.02


def test_what_is_done_is_not_done_again(study, plan):
    folder, said = study
    files = [folder / "model" / "checkpoints" / "best.pt", folder / "evaluation" / "results.json"]
    before = [file.stat().st_mtime_ns for file in files]
    page = (folder / "report.html").read_text()
    assert said.rstrip().endswith(run_study(folder, plan, workers=1).verdict)
    assert [file.stat().st_mtime_ns for file in files] == before
    # The slices of the first page were kept while it was evaluated, these are predicted anew.
    assert page.count("data:image/png") > 3
    assert (folder / "report.html").read_text() == page


def test_a_lost_stage_is_done_again_from_what_is_there(study, plan):
    folder, _ = study
    (folder / "evaluation" / "results.json").rename(folder / "lost.json")
    (folder / "evaluation").rename(folder / "elsewhere")
    run_study(folder, plan, workers=1)
    lost, again = (
        json.loads(path.read_text())
        for path in (folder / "lost.json", folder / "evaluation" / "results.json")
    )
    assert lost == again


@pytest.mark.long
def test_thin_brains_in_other_units_are_studied(tmp_path):
    """As of mice: no block of 32 voxels fits, and intensities are far from those of phantoms."""
    rows = ds.make_phantoms(tmp_path / "mice", 4, (44, 18, 36))
    for path in (path for row in rows for path in (row.source, row.target)):
        volume = read_volume(path)
        write_volume(path, volume.with_data(30_000 * volume.data / volume.data.max()))
    cohort = str(tmp_path / "mice" / "cohort.csv")
    made = plan_study(cohort, survey(rows), 0.02, 0, lambda *_: 0.1, lambda _: FLOAT32)
    assert made.shards.patch_size == (16, 16)
    assert "44x18x36 voxels, holds no block of 32" in made.reasons["patches"]
    (tmp_path / "plan.json").write_text(made.to_json())
    words = ["run", cohort, "-o", tmp_path / "study", "--plan", tmp_path / "plan.json"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*map(str, words), "--workers", "1"]) == 0
    assert "Too few specimens to tell" in said.getvalue().splitlines()[-1]
    synthetic = ds.load_predictor(tmp_path / "study" / "model" / BEST, "cpu")
    predicted = synthetic.predict(read_volume(rows[0].source))
    assert 20_000 < predicted.data.max() < 60_000


def test_another_plan_in_the_same_folder_is_refused(study, plan):
    with pytest.raises(ConfigError, match="begun by another plan"):
        run_study(study[0], replace(plan, minutes=5.0))


def test_pairs_that_were_moved_apart_are_registered(cohort, tmp_path):
    moved = []
    for row in cohort[:3]:
        source = read_volume(row.source)
        shift = np.eye(4)
        shift[:3, 3] = 3 * np.array(read_volume(row.target).spacing_mm)
        path = tmp_path / f"{row.name}.nii.gz"
        write_volume(path, replace(source, affine=shift @ source.affine))
        moved.append(replace(row, source=path))
    aligned, apart = survey(cohort[:3]), survey(moved)
    assert aligned.displacement_voxels < 0.5
    assert apart.displacement_voxels == pytest.approx(3 * np.sqrt(3), abs=0.6)
    made = plan_study("c", apart, 1, 0, lambda *_: 0.1, lambda _: FLOAT32)
    assert "rigid" in made.prepare


def test_a_cohort_of_targets_alone_is_refused(cohort):
    with pytest.raises(DataError, match="source"):
        survey([replace(row, source=None) for row in cohort])


def test_pairs_that_lie_apart_are_refused(cohort, tmp_path):
    source = read_volume(cohort[0].source)
    away = np.eye(4)
    away[:3, 3] = 1000
    path = tmp_path / "away.nii.gz"
    write_volume(path, replace(source, affine=away @ source.affine))
    with pytest.raises(DataError, match=r"away.nii.gz: the fields of view .* do not meet"):
        survey([replace(cohort[0], source=path)])


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_scan_of_nearly_equal_voxels_is_refused(role, cohort, tmp_path):
    volume = read_volume(getattr(cohort[0], role))
    data = np.full_like(volume.data, 5)
    data[4, 4, 4] = 9
    path = tmp_path / "flat.nii.gz"
    write_volume(path, volume.with_data(data))
    with pytest.raises(DataError, match=r"flat.nii.gz: the 0.1 and 99.9 percentiles must differ"):
        survey([replace(cohort[0], **{role: path})])


def test_a_gpu_that_is_not_there_is_refused_at_once(cohort, tmp_path, capsys):
    path = str(cohort[0].target.parent)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["plan", path, "--gpus", "1", "-o", str(tmp_path / "plan.json")]) == 2
    assert "--gpus must be 0 here, got 1" in capsys.readouterr().err


def test_the_command_plans_by_a_timed_step(cohort, tmp_path, capsys):
    path, plan_file = cohort[0].target.parent, tmp_path / "plan.json"
    assert main(["plan", str(path), "--minutes", "0.01", "-o", str(plan_file)]) == 0
    made = plan_from_json(plan_file.read_bytes(), "plan.json")
    out = capsys.readouterr().out
    assert all(reason in out for reason in made.reasons.values())
    assert "of processor time a thread, whatever else runs" in made.reasons["length"]
    assert out.endswith(f"{plan_file}\n")


def test_a_study_is_not_continued_as_another(study, cohort, capsys):
    path = str(cohort[0].target.parent)
    assert main(["run", path, "-o", str(study[0]), "--minutes", "3"]) == 2
    assert "planned with minutes 0.02, now 3.0" in capsys.readouterr().err
