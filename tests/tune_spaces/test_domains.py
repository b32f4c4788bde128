"""Domains of the fields: drawn, cast, and kept as plain values."""

from __future__ import annotations

import json
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import tune
from ray.tune.search.sample import Categorical, Float
from ray.tune.search.variant_generator import generate_variants
from same_spaces import same

from tune_spaces.domains import ZeroOrLog, zero_or_log
from tune_spaces.everything import everything
from tune_spaces.loss_weights import loss_weights
from tune_spaces.plain import RANGES, space_from_plain, space_to_plain
from tune_spaces.registry import SPACES


@st.composite
def domains(draw_value: st.DrawFn) -> ZeroOrLog:
    """Zero-or-log domains of up to five decades."""
    low = draw_value(st.floats(1e-6, 1e3))
    ratio = draw_value(st.floats(1.1, 1e5))
    return zero_or_log(low, low * ratio, draw_value(st.floats(0.01, 0.9)))


@pytest.mark.parametrize("zero", [0.0, 0.1, 0.2, 0.5])
def test_share_of_zeros_and_log_uniform_above(zero: float) -> None:
    state = np.random.default_rng(0)
    domain = zero_or_log(0.01, 4, zero)
    values = np.array([domain.sample(random_state=state) for _ in range(4000)])
    positive = values[values > 0]
    assert abs(np.mean(values == 0) - zero) < 0.025
    assert positive.min() >= 0.01
    assert positive.max() <= 4
    quartiles = np.quantile(np.log(positive / 0.01) / math.log(400), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [0.25, 0.5, 0.75], atol=0.035)


@given(domains(), st.integers(0, 2**32 - 1))
def test_draws_are_valid_and_casting_twice_changes_nothing(domain: ZeroOrLog, seed: int) -> None:
    assert domain.lower < domain.low < domain.upper
    for value in domain.sample(size=20, random_state=np.random.default_rng(seed)):
        assert type(value) is float
        assert domain.is_valid(value)
        assert domain.cast(value) == value
        raw = domain.raw(value)
        assert domain.lower <= raw <= domain.upper
        assert domain.cast(raw) == value


@given(domains())
def test_raw_zero_is_the_middle_of_zero(domain: ZeroOrLog) -> None:
    raw = domain.raw(0.0)
    assert domain.lower < raw < domain.low
    assert raw**2 == pytest.approx(domain.lower * domain.low, rel=1e-9)
    assert domain.cast(raw) == 0.0


def test_valid_values() -> None:
    domain = zero_or_log(0.01, 4)
    assert [domain.is_valid(value) for value in (0, 0.01, 4)] == [True] * 3
    assert [domain.is_valid(value) for value in (0.009, 4.01, -1, domain.lower)] == [False] * 4
    assert domain.domain_str == "0 or (0.01, 4.0)"


def test_a_share_of_none_is_log_uniform() -> None:
    domain = zero_or_log(0.01, 4, zero=0)
    assert domain.lower == 0.01
    assert not domain.is_valid(0)
    with pytest.raises(ValueError, match="0 is not in this domain"):
        domain.raw(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "0 < low < high"),
        ((-1, 1), "0 < low < high"),
        ((2, 1), "0 < low < high"),
        ((1, 1), "0 < low < high"),
        ((1, math.inf), "0 < low < high"),
        ((math.nan, 1), "0 < low < high"),
        ((0.01, 4, 1), r"zero must be a share in \[0, 1\), got 1"),
        ((0.01, 4, -0.1), r"zero must be a share"),
        ((0.01, 4, math.nan), r"zero must be a share"),
        ((0.01, 4, 0.999), "zero is too near 1"),
    ],
)
def test_zero_or_log_refuses(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zero_or_log(*arguments)


def test_what_is_cast_is_made_raw_and_cast_to_the_same() -> None:
    domain = loss_weights()["loss.lambda_bce"]
    assert domain.cast(domain.lower) == 0.0
    assert domain.cast(0.0) == 0.0
    assert domain.lower < domain.raw(0.0) < domain.low
    assert domain.cast(domain.raw(0.0)) == 0.0
    assert domain.raw(domain.low) == domain.cast(domain.low) == domain.low


def test_ray_resolves_spaces_with_a_grid() -> None:
    space = {**everything(), "train.seed": tune.grid_search([0, 1, 2])}
    state = np.random.RandomState(0)
    configs = [spec["config"] for _, spec in generate_variants({"config": space}, False, state)]
    assert [config["train.seed"] for config in configs] == [0, 1, 2]
    for config in configs:
        assert all(space[field].is_valid(config[field]) for field in everything())


def optuna_space(space: dict[str, Any]) -> dict[str, Any]:
    """Ray's conversion; Optuna warns of tuples, which only its persistent storage cannot hold."""
    optuna = pytest.importorskip("ray.tune.search.optuna")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Choices for a categorical distribution")
        return optuna.OptunaSearch.convert_search_space(space)


@pytest.mark.parametrize("name", SPACES)
def test_optuna_takes_every_space(name: str) -> None:
    distributions = pytest.importorskip("optuna").distributions
    space = SPACES[name]()
    converted = optuna_space(space)
    assert set(converted) == set(space)
    for field, domain in space.items():
        found = converted[field]
        if isinstance(domain, Float):
            assert isinstance(found, distributions.FloatDistribution)
            assert found.log
            assert (found.low, found.high) == (domain.lower, domain.upper)
        else:
            assert isinstance(found, distributions.CategoricalDistribution)
            assert list(found.choices) == domain.categories


def test_tpe_learns_from_zeros() -> None:
    optuna = pytest.importorskip("optuna")
    space = {"loss.lambda_bce": zero_or_log(0.01, 4)}
    converted = optuna_space(space)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=10))
    for value in (0.0, 0.01, 4.0):
        params = {"loss.lambda_bce": space["loss.lambda_bce"].raw(value)}
        done = optuna.trial.create_trial(params=params, distributions=converted, value=value)
        study.add_trial(done)
    seen = []
    for _ in range(40):
        trial = study.ask(fixed_distributions=converted)
        value = space["loss.lambda_bce"].cast(trial.params["loss.lambda_bce"])
        assert space["loss.lambda_bce"].is_valid(value)
        study.tell(trial, value)
        seen.append(value)
    # The smallest weight is the best here: most of what TPE tries becomes 0.
    assert np.mean(np.array(seen[20:]) == 0) > 0.5


PLAIN = st.none() | st.booleans() | st.integers() | st.sampled_from([0.1, 1e-9, "none", "3x3", "1"])

VALUES = st.lists(PLAIN | st.lists(PLAIN, max_size=3).map(tuple), min_size=1, max_size=3)


@st.composite
def ranges(draw_value: st.DrawFn) -> Any:
    """Every kind of range that has a plain form."""
    kind = draw_value(st.sampled_from(list(RANGES)))
    if kind == "zero_or_log":
        return draw_value(domains())
    step = draw_value(st.sampled_from([1, 2, 5] if kind.endswith("randint") else [0.1, 0.5, 2.0]))
    low = draw_value(st.integers(1 if "log" in kind else -50, 50)) * step
    high = low + draw_value(st.integers(1, 50)) * step
    return getattr(tune, kind)(low, high, *([step] if kind.startswith("q") else []))


ANY_DOMAINS = ranges() | VALUES.map(tune.choice) | VALUES.map(tune.grid_search)


@given(ANY_DOMAINS)
def test_domains_survive_json(domain: Any) -> None:
    space = {"loss.lambda_bce": domain}
    plain = space_to_plain(space)
    assert same(space_from_plain(json.loads(json.dumps(plain, allow_nan=False))), space)


@pytest.mark.parametrize("name", SPACES)
def test_named_spaces_survive_json(name: str) -> None:
    space = SPACES[name]()
    plain = json.loads(json.dumps(space_to_plain(space)))
    assert same(space_from_plain(plain), space)
    assert space_to_plain(space_from_plain(plain)) == plain


def test_the_plain_form() -> None:
    plain = {
        "a": {"zero_or_log": [0.01, 4.0], "zero": 0.2},
        "b": {"qloguniform": [0.1, 1.0, 0.1]},
        "c": {"choice": [[16, 32], "none", None]},
        "d": {"grid": [0, 1]},
    }
    space = space_from_plain(plain)
    assert isinstance(space["a"], ZeroOrLog)
    assert space["c"].categories == [(16, 32), "none", None]
    assert space["d"] == tune.grid_search([0, 1])
    assert space_to_plain(space) == plain
    assert space_to_plain({"d": Categorical([0, 1]).grid()}) == {"d": {"grid": [0, 1]}}
    assert space_to_plain({"e": Float(0, 1)}) == {"e": {"uniform": [0.0, 1.0]}}


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (tune.sample_from(lambda _: 1), "a function (sample_from) has no plain form; use"),
        (tune.randn(0, 1), "Float drawn Normal has no plain form; use"),
        (tune.qrandn(0, 1, 0.1), "a quantized Float drawn Normal has no plain form; use"),
        (zero_or_log(1, 4, 0.5).quantized(0.25), "a quantized ZeroOrLog"),
        (Float(None, 1), "every argument must be a number, got -inf"),
        (tune.uniform(1, 1), "uniform must have low < high"),
        (tune.choice(["1e-4"]), "'1e-4' would be read back as a number"),
        (tune.choice([np.int64(3)]), "every value must be null, true, false, a number"),
        (tune.choice([math.nan]), "every value must be finite"),
        (5, "must be a Ray Tune domain, got 5; fix a value by a choice of one"),
    ],
)
def test_what_has_no_plain_form(domain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"loss.lambda_bce: {message}")):
        space_to_plain({"loss.lambda_bce": domain})
