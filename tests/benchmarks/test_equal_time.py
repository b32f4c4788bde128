"""Trainings of equal processor time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import PLAIN, tiny_config

from benchmarks.processor_time import train_for
from benchmarks.study_equal_time import CONTESTS, Contestant, Work, perform
from distsynth.api import load_config
from distsynth.runs.folder import METRICS_FILE
from distsynth.runs.rows import read_rows

SECONDS = 0.4

pytestmark = pytest.mark.slow


def test_the_clock_ends_a_training_at_the_first_step_beyond_its_time(shard_folder, tmp_path: Path):
    config = tiny_config(shard_folder, {"train.log_every": 1})
    predictor, numbers = train_for(config, str(shard_folder), tmp_path / "run", SECONDS, 3)
    assert predictor.checkpoint.config.train.seed == 3
    rows = read_rows(tmp_path / "run" / METRICS_FILE)
    spent = [row["throughput/seconds"] for row in rows if "throughput/seconds" in row]
    assert len(spent) == numbers["steps"]
    assert spent[-1] == numbers["spent"] >= SECONDS
    assert all(seconds < SECONDS for seconds in spent[:-1])
    # Nothing but the last weights is validated.
    assert [row["step"] for row in rows if "val/psnr" in row] == [numbers["steps"]]


def test_a_contestant_of_blocks_gets_its_time_in_steps(phantom_cohort, tmp_path: Path):
    """Its validations, of dense blocks, are many times as dear as the steps between them."""
    tiny = {name: PLAIN[name] for name in PLAIN if name.startswith("generator.")}
    changes = {
        **tiny,
        "train.batch_size": 4,
        "train.device": "cpu",
        "stitch.stride": 8,
        "stitch.trim": 0,
    }
    changes |= {"loss.lambda_bce": 0.0, "discriminator.family": "none"}
    shards = {"patch_size": (16, 16, 16), "stride": 8, "patches_per_specimen": 4}
    contestant = Contestant("small", changes, shards)
    work = Work("3D", contestant, 0, SECONDS, "no", phantom_cohort, tmp_path)
    perform(work)
    found = json.loads(work.result.read_text())
    run = tmp_path / "runs" / "3D-0"
    rows = [row for row in read_rows(run / METRICS_FILE) if "val/psnr" in row]
    assert len(rows) == 1
    assert found["processor_seconds"] >= SECONDS and found["steps"] == rows[0]["step"] > 0
    assert set(found["results"]), "some specimen was evaluated"


@pytest.mark.parametrize("contest", CONTESTS)
def test_every_contestant_is_a_configuration(contest):
    for contestant in CONTESTS[contest].values():
        assert load_config(contestant.preset, contestant.changes)
