"""Predictions are measured by other cores, in order, to the same numbers."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from tiny_runs import tiny_config

from distsynth.evaluation import specimen
from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import load_predictor
from distsynth.training.loop import train
from sharding.volumes.cohort import read_cohort


@pytest.fixture(scope="module")
def predictor(shard_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(tiny_config(shard_folder), folder)
    return load_predictor(folder / "checkpoints" / "best.pt", "cpu")


def test_cores_do_not_change_a_number(predictor, phantom_cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path))
    found = {}
    for cores in (1, 8):
        monkeypatch.setattr(specimen, "available_cores", lambda cores=cores: cores)
        found[cores] = evaluate(
            {"one": predictor, "two": predictor}, read_cohort(phantom_cohort), conventions=True
        )
    np.testing.assert_equal(found[8].results, found[1].results)
    np.testing.assert_equal(found[8].conventions, found[1].conventions)
    assert list(found[8].results) == list(found[1].results)
    assert {"one", "two"} < found[8].results.keys()
    for many, alone in zip(found[8].examples, found[1].examples, strict=True):
        for method, picture in alone.synthetic.items():
            np.testing.assert_array_equal(many.synthetic[method], picture)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_each_item_is_measured_in_order_and_few_are_alive(threads):
    made = []

    def items():
        for number in range(12):
            item = np.full(3, number)
            made.append(weakref.ref(item))
            yield item

    def measure(item):
        gc.collect()
        alive = sum(ref() is not None for ref in made)
        return int(item[0]), alive, threading.current_thread().name

    found = list(specimen._each(measure, items(), threads))
    assert [number for number, _, _ in found] == list(range(12))
    assert max(alive for _, alive, _ in found) <= threads + 2
    assert all(name.startswith("measure") == (threads > 0) for _, _, name in found)


def test_an_error_of_a_measurement_is_raised():
    def measure(item):
        raise ValueError(f"bad {item}")

    with pytest.raises(ValueError, match="bad 0"):
        list(specimen._each(measure, iter(range(5)), 2))
