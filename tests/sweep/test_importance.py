"""Which fields of a search space mattered."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ray import tune
from searched_points import MIXED, QUANTIZED, WEIGHT

from distsynth.sweep.hyperparameters import Hyperparameters, draw
from distsynth.sweep.searcher import (
    importances,
)
from tune_spaces.everything import everything
from tune_spaces.plain import RANGES


def test_the_field_that_matters_comes_first():
    rng = np.random.default_rng(0)
    candidates = [draw(MIXED, rng) for _ in range(60)]
    for field in ("optim.lr_generator", "generator.channels"):

        def score(hyperparameters: Hyperparameters, field: str = field) -> float:
            if field == "generator.channels":
                return 5.0 * len(hyperparameters[field]) + 0.01 * hyperparameters["loss.lambda_bce"]
            return math.log(hyperparameters[field]) + 0.01 * hyperparameters["loss.lambda_bce"]

        found = importances(
            MIXED, [(hyperparameters, score(hyperparameters)) for hyperparameters in candidates]
        )
        assert next(iter(found)) == field
        assert found[field] > 0.8
        assert set(found) == set(MIXED)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1)


def test_importances_are_the_same_each_time():
    rng = np.random.default_rng(1)
    candidates = [draw(everything(), rng) for _ in range(12)]
    scored = [
        (hyperparameters, hyperparameters["optim.lr_generator"]) for hyperparameters in candidates
    ]
    assert importances(everything(), scored) == importances(everything(), scored)


def test_too_few_or_equal_scores_tell_nothing():
    rng = np.random.default_rng(0)
    candidates = [draw(MIXED, rng) for _ in range(5)]
    assert importances(MIXED, []) == {}
    assert (
        importances(
            MIXED, [(hyperparameters, float(n)) for n, hyperparameters in enumerate(candidates[:3])]
        )
        == {}
    )
    assert importances(MIXED, [(hyperparameters, 1.5) for hyperparameters in candidates]) == {}
    assert importances(
        MIXED, [(hyperparameters, float(n)) for n, hyperparameters in enumerate(candidates[:4])]
    )


def test_equal_points_with_other_scores_tell_nothing():
    """Of trials with the same hyperparameters some may be stopped earlier than others."""
    space = {"loss.recon": tune.choice(["l1", "l2"])}
    hyperparameters = {"loss.recon": "l1"}
    assert importances(space, [(hyperparameters, float(number)) for number in range(5)]) == {}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_importances_of_values_in_steps(kind):
    space = {"loss.lambda_recon": RANGES[kind](*QUANTIZED[kind]), **WEIGHT}
    rng = np.random.default_rng(0)
    candidates = [draw(space, rng) for _ in range(20)]
    found = importances(
        space,
        [(hyperparameters, hyperparameters["loss.lambda_recon"]) for hyperparameters in candidates],
    )
    assert found["loss.lambda_recon"] > 0.5
