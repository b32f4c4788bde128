"""What a run says: what it is, then its progress through steps and validations to the end."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from tiny_runs import tiny_config

from distsynth.training.loop import train
from sharding.io import progress


@pytest.fixture
def lines(caplog, monkeypatch):
    """Every step and validated specimen as a line."""
    caplog.set_level(logging.INFO)
    for name in ("SECONDS_BETWEEN_LINES", "SHARE_BETWEEN_LINES", "MOST_SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(progress, name, -1)
    monkeypatch.setattr(progress, "LEAST_SECONDS", 0.0)
    return lambda: [record.message for record in caplog.records]


def test_the_first_line_says_what_is_trained(shard_folder, tmp_path, lines):
    values = {
        "train.epochs": 1,
        "train.precision": "no",
        "discriminator.family": "conv",
        "discriminator.channels": (4,),
        "discriminator.kernels": (3,),
    }
    train(tiny_config(shard_folder, values), tmp_path / "run")
    (first,) = [line for line in lines() if line.startswith("training on ")]
    assert re.fullmatch(
        r"training on the processor \(\d+ threads?\), in float32: [\d,]+ patches of 16 x 16 in "
        r"batches of \d+, 1 epoch of \d+ steps; generator conv 4 \(\d+ weights\), "
        r"discriminator conv 4 \(\d+ weights\)",
        first,
    )
    assert lines().index(first) == 0


def test_progress_goes_on_through_validations_to_the_end_of_the_run(shard_folder, tmp_path, lines):
    config = tiny_config(shard_folder, {"train.epochs": 2, "train.log_every": 1})
    train(config, tmp_path / "run")
    shown = [line for line in lines() if line.startswith("training: ")]
    shares = [int(re.match(r"training: (\d+) %", line).group(1)) for line in shown]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    last = shown[-1]
    total = re.search(r"step (\d+) of \1, ", last)
    assert total and "epoch 2/2, " in last
    assert re.search(r", loss [\d.]+, validating specimen 1 of 1, .* so far, about 0 s left", last)
    assert f"step 1 of {total.group(1)}, " in shown[0]
    half = [line for line in shown if "epoch 1/2" in line and "validating" in line]
    assert half and all(f"step {int(total.group(1)) // 2} of" in line for line in half)


def test_a_resumed_run_continues_where_it_was(shard_folder, tmp_path, lines):
    for epochs in (1, 2):
        config = tiny_config(shard_folder, {"train.epochs": epochs, "optim.schedule": "constant"})
        train(config, tmp_path / "run", resume=epochs == 2)
    again = lines()[next(i for i, line in enumerate(lines()) if "resuming" in line) :]
    shown = [line for line in again if line.startswith("training: ")]
    assert shown[0].startswith("training: ") and "epoch 2/2" in shown[0]
    assert int(re.match(r"training: (\d+) %", shown[0]).group(1)) > 50


def test_a_run_by_the_clock_names_no_last_step(shard_folder, tmp_path, lines):
    values = {"train.epochs": 10_000, "train.minutes": 0.01, "train.validate_every": 10_000}
    train(tiny_config(shard_folder, values), tmp_path / "run")
    (first,) = [line for line in lines() if line.startswith("training on ")]
    assert "0.01 min, " in first
    shown = [line for line in lines() if line.startswith("training: ")]
    assert re.match(r"training: \d+ %, epoch 1, step 1, ", shown[0])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_it_is_one_bar_through_steps_and_validations(
    shard_folder, tmp_path, monkeypatch
):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_REFRESHES", -1)
    train(tiny_config(shard_folder, {"train.epochs": 2}), tmp_path / "run")
    frames = [frame for frame in terminal.getvalue().split("\r") if "%|" in frame]
    shares = [int(re.match(r" *(\d+)%\|", frame).group(1)) for frame in frames]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 100)
    half = [frame for frame in frames if "epoch 1/2" in frame and "validating" in frame]
    assert half and all(frame.startswith(" 50%|") for frame in half)


def test_where_there_is_no_terminal_nothing_is_overwritten(shard_folder, tmp_path, lines, capfd):
    train(tiny_config(shard_folder, {"train.epochs": 1}), tmp_path / "run")
    assert [line for line in lines() if line.startswith("training: ")]
    written = capfd.readouterr()
    assert "\r" not in written.err + written.out
    assert not [line for line in lines() if "\r" in line]
