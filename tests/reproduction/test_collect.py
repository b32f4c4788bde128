"""What is read from the folders of a reproduction."""

from __future__ import annotations

import json

import pytest

from distsynth.config import RunConfig, with_overrides
from distsynth.reproduction.collect import _seconds
from distsynth.runs.folder import METRICS_FILE
from distsynth.sweep.folder import SweepFolder
from sharding.io.storage import Folder


def test_seconds_are_summed_over_rows_of_unlike_speed(tmp_path):
    """A mean of the speeds would give 100 * 8 / 60 s."""
    folder = SweepFolder(tmp_path)
    rows = [
        {"step": 50, "throughput/patches_per_s": 100.0},
        {"step": 50, "val/psnr": 20.0},
        {"step": 100, "throughput/patches_per_s": 20.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Folder(folder.run_dir("unet")).write(METRICS_FILE, text)
    config = with_overrides(RunConfig(), {"train.batch_size": 8})
    assert _seconds(folder, "unet", config) == pytest.approx(50 * 8 / 100 + 50 * 8 / 20)
    assert _seconds(folder, "never-run", config) is None
