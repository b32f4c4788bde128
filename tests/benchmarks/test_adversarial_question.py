"""The question of the adversarial term: its contestants, its table and where it crops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.adversarial_question import REFERENCE, SIDE, WEIGHTS, busiest, contestant, table


def test_contestants_differ_in_their_discriminator_alone():
    plain, adversarial = contestant(0), contestant(0.1)
    assert not plain.adversarial
    assert adversarial.adversarial
    assert adversarial.loss.lambda_bce == 0.1
    assert adversarial.loss.adversarial == "least-squares"
    assert adversarial.generator == plain.generator
    assert adversarial.train == plain.train


def test_the_crop_lies_where_the_edges_are_and_within_the_slice():
    target = np.zeros((200, 150), np.float32)
    target[150:200, 100:150] = np.random.default_rng(0).random((50, 50))
    rows, columns = busiest(target)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (SIDE, SIDE)
    assert (rows.stop, columns.stop) == (200, 150)
    assert busiest(target[:20]) == (slice(0, 20), slice(0, SIDE))


def test_the_table_pairs_people_after_averaging_seeds(tmp_path: Path):
    values = {(REFERENCE, 0): (26.0, 27.0), ("weight-0.1", 0): (25.0, 26.0)}
    values[("weight-0.1", 1)] = (25.5, 26.5)
    (tmp_path / "results").mkdir()
    for (name, seed), people in values.items():
        found = {"name": name, "weight": WEIGHTS[name], "spent": 4.0, "steps": 9}
        same = {"ssim": 0.9, "gmsd": 0.1, "sharpness": 0.8}
        found["people"] = {f"sub-{i}": {"psnr": psnr, **same} for i, psnr in enumerate(people)}
        (tmp_path / "results" / f"{name}-{seed}.json").write_text(json.dumps(found))
    lines = table(tmp_path).splitlines()
    assert lines[2].startswith("| without | 0 | 1 | 4 | 9 | 26.50 | 0.9000 | 0.1000 | 0.800 | - |")
    assert "| -0.75 (-0.75 to -0.75) |" in lines[3]
