"""Hyperparameters in Optuna's form and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune
from searched_points import WEIGHT, anything, inside

from distsynth.sweep.hyperparameters import draw
from distsynth.sweep.searcher import (
    Suggestions,
    decode,
    distributions,
    encode,
)
from tune_spaces.domains import zero_or_log

OPTIONS = st.lists(
    st.none()
    | st.booleans()
    | st.text()
    | st.lists(st.integers(0, 512) | st.text(), max_size=3).map(tuple),
    min_size=1,
    max_size=4,
    unique_by=repr,
)


@st.composite
def spaces(draw_value: st.DrawFn) -> dict[str, Any]:
    """Spaces of every kind of domain whose values Optuna can hold as they are."""
    low, ratio = draw_value(st.floats(1e-6, 1e3)), draw_value(st.floats(1.1, 1e4))
    start, length = draw_value(st.integers(1, 50)), draw_value(st.integers(1, 50))
    step = draw_value(st.sampled_from([0.25, 0.5, 2.0]))
    space = {
        "a": zero_or_log(low, low * ratio, draw_value(st.sampled_from([0.0, 0.1, 0.8]))),
        "b": tune.choice(draw_value(OPTIONS)),
        "c": tune.uniform(-low, low * ratio),
        "d": tune.loguniform(low, low * ratio),
        "e": tune.randint(start, start + length),
        "f": tune.lograndint(start, start + length),
        "g": tune.quniform(-step * start, step * length, step),
        "h": tune.choice([(1, 2), "[1, 2]x", (3, 4), 5, 0.5, None]),
    }
    names = draw_value(st.sets(st.sampled_from(list(space)), min_size=1))
    return {name: space[name] for name in sorted(names)}


@settings(deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_hyperparameters_survive_optunas_form(space, seed):
    hyperparameters = draw(space, np.random.default_rng(seed))
    params = encode(space, hyperparameters)
    assert decode(space, params) == hyperparameters
    for name, distribution in distributions(space).items():
        inner = distribution.to_internal_repr(params[name])
        assert distribution._contains(inner), name
        assert (
            decode(space, {name: distribution.to_external_repr(inner)})[name]
            == hyperparameters[name]
        )


@settings(deadline=None)
@given(spaces(), st.integers(0, 1000))
def test_any_space_can_be_asked_and_observed(space, seed):
    suggestions = Suggestions(space, seed, 1)
    for number in range(2):
        hyperparameters = suggestions.ask(str(number), anything)
        assert inside(space, {name: hyperparameters[name] for name in space})
        suggestions.tell(str(number), hyperparameters, (float(number),))
        suggestions.observe(draw(space, np.random.default_rng(seed)), (0.5,))


def test_zeros_and_tuples_have_a_form_of_their_own():
    space = {**WEIGHT, "generator.channels": tune.choice([(8, 8), [16]])}
    for hyperparameters in (
        {"loss.lambda_bce": 0.0, "generator.channels": (16,)},
        {"loss.lambda_bce": 0.01, "generator.channels": (8, 8)},
    ):
        params = encode(space, hyperparameters)
        assert params["loss.lambda_bce"] > 0
        assert isinstance(params["generator.channels"], str)
        assert decode(space, params) == hyperparameters


def test_hyperparameters_from_a_file_have_lists_for_tuples():
    space = {"generator.channels": tune.choice([(8, 8), (16,)])}
    params = encode(space, {"generator.channels": [16]})
    assert decode(space, params) == {"generator.channels": (16,)}
