"""Shards, losses, metrics and a prepared specimen are what they were when they were recorded."""

from __future__ import annotations

import json
from typing import Any

import golden
import pytest


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(golden.recording().read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> dict[str, Any]:
    return json.loads(json.dumps(golden.compute(tmp_path_factory.mktemp("golden"))))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["shards", "losses", "evaluation", "prepared"])
def test_nothing_has_changed(part, recorded, computed):
    if recorded["environment"] == golden.environment():
        # As text, in which NaN equals itself.
        assert text(computed[part]) == text(recorded[part])
    else:
        # Another processor or library rounds otherwise, which training amplifies step by step; or
        # numbers have changed since, and this processor has not recorded them.
        same(computed[part], recorded[part], part)


def text(values: Any) -> str:
    return json.dumps(values, indent=1)


def same(value: Any, expected: Any, where: str) -> None:
    """Assert that numbers agree within a tolerance; hashes cannot be compared here."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys(), where
        for key in expected:
            same(value[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), where
        for number, (left, right) in enumerate(zip(value, expected, strict=True)):
            same(left, right, f"{where}/{number}")
    elif isinstance(expected, str):
        assert len(value) == len(expected), where
    else:
        assert value == pytest.approx(expected, rel=0.02, abs=1e-3, nan_ok=True), where
