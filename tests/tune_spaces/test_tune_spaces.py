"""Everything that a search space can give must be a configuration that can run."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float
from ray.tune.search.variant_generator import generate_variants

from distsynth.config import dotted_fields, with_overrides
from distsynth.models import build_generator
from distsynth.presets import preset
from tune_spaces.architectures import GENERATORS, conv_stacks, networks, shard_sets, unets
from tune_spaces.domains import ZeroOrLog, zero_or_log
from tune_spaces.everything import everything
from tune_spaces.loss_weights import TABLE_1, loss_weights
from tune_spaces.named import named_space, read_space
from tune_spaces.plain import RANGES, space_from_plain, space_to_plain
from tune_spaces.registry import SPACES


def draw(space: dict[str, Any], seed: int) -> dict[str, Any]:
    """Hyperparameters drawn at random."""
    state = np.random.default_rng(seed)
    return {field: domain.sample(random_state=state) for field, domain in space.items()}


# --- the named spaces


@pytest.mark.parametrize("start", ["unet-7", "dcgan-1", "small"])
@pytest.mark.parametrize("name", SPACES)
def test_sampled_hyperparameters_are_valid(name: str, start: str) -> None:
    space = SPACES[name]()
    for seed in range(50):
        # Whole networks are resolved elsewhere; only their names are ours.
        hyperparameters = {
            field: value for field, value in draw(space, seed).items() if "." in field
        }
        config = with_overrides(preset(start), hyperparameters)
        found = dict(dotted_fields(config))
        assert {field: found[field] for field in hyperparameters} == hyperparameters


def test_sampled_hyperparameters_differ() -> None:
    space = everything()
    candidates = [draw(space, seed) for seed in range(50)]
    assert len({tuple(hyperparameters.values()) for hyperparameters in candidates}) == 50
    for field in space.keys() - {"loss.perceptual_network"}:
        assert len({hyperparameters[field] for hyperparameters in candidates}) > 1, field


def test_some_pairs_count_in_every_draw() -> None:
    assert not loss_weights()["loss.lambda_recon"].is_valid(0)
    for field in ("loss.lambda_bce", "loss.lambda_gradient"):
        assert loss_weights()[field].is_valid(0)


def test_the_perceptual_weight_comes_with_its_network() -> None:
    network = "loss.perceptual_network"
    assert set(TABLE_1) - set(loss_weights()) == {"loss.lambda_perceptual"}
    for name in ("vgg16", "cohort"):
        space = loss_weights(name)
        assert set(space) == {*TABLE_1, network}
        assert space[network].categories == [name]
    assert everything()[network].categories == ["cohort"]
    assert "loss.lambda_perceptual" not in everything(perceptual=None)


@pytest.mark.parametrize("name", ["dcgan-1", "unet-5", "pix2pix-11", "small"])
def test_hand_tuned_weights_are_in_the_space(name: str) -> None:
    found = dict(dotted_fields(preset(name)))
    for field, domain in loss_weights("vgg16").items():
        assert domain.is_valid(found[field]), field


def test_networks_are_names_and_none_only_when_asked() -> None:
    assert networks()["generator"].categories == list(GENERATORS)
    assert "none" not in networks()["discriminator"].categories
    assert "none" in networks(without=True)["discriminator"].categories


@pytest.mark.parametrize("space", [conv_stacks(), unets()], ids=["conv_stacks", "unets"])
def test_every_combination_of_parts_builds(space: dict[str, Any]) -> None:
    for channels in space["generator.channels"].categories:
        # Only a stack of convolutions has kernels to choose.
        kernels = space.get("generator.kernels")
        for kernel in kernels.categories if kernels else [None]:
            for norm in SPACES["normalisation"]()["generator.norm"].categories:
                hyperparameters = {
                    "generator.family": space["generator.family"].categories[0],
                    "generator.channels": channels,
                    "generator.norm": norm,
                }
                if kernel:
                    hyperparameters["generator.kernels"] = kernel
                config = with_overrides(preset("dcgan-1"), hyperparameters)
                for side in (32, 64):
                    with torch.device("meta"):
                        build_generator(config.generator, (side, side))


def test_unets_hold_the_papers() -> None:
    assert preset("unet-7").generator.channels in unets()["generator.channels"].categories


def test_shard_sets() -> None:
    assert shard_sets("a32", "s3://b/64")["data.shards"].categories == ["a32", "s3://b/64"]
    for folders in [(), ("a", "a")]:
        with pytest.raises(ValueError, match=r"data\.shards must have one or more distinct"):
            shard_sets(*folders)


def test_importing_the_package_does_not_wait_for_ray() -> None:
    code = "import sys, tune_spaces; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- zero or log


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


# --- searchers


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


# --- the plain form


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two spaces are alike: the same domains with the same samplers."""

    def parts(domain: Any) -> Any:
        if not isinstance(domain, Domain):
            return domain
        own = {key: value for key, value in vars(domain).items() if key != "sampler"}
        sampler = domain.get_sampler()
        inner = vars(sampler).get("sampler")
        return type(domain), own, type(sampler), vars(sampler).get("q"), type(inner)

    return list(first) == list(second) and all(
        parts(first[field]) == parts(second[field]) for field in first
    )


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


# --- files


def write(folder: Path, text: str) -> Path:
    """A YAML file."""
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_files_start_from_named_spaces_and_override(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        loss.lambda_bce: {uniform: [0, 2]}
        spaces: [loss-weights, learning-rates]
        data.shards: {choice: [shards/32, shards/64]}
        """,
    )
    space = read_space(path)
    expected = {
        **SPACES["loss-weights"](),
        **SPACES["learning-rates"](),
        "loss.lambda_bce": tune.uniform(0.0, 2.0),
        "data.shards": tune.choice(["shards/32", "shards/64"]),
    }
    assert same(space, expected)
    assert same(named_space([str(path)]), expected)
    again = named_space([str(path), "loss-weights"])
    assert isinstance(again["loss.lambda_bce"], ZeroOrLog)


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    space = read_space(
        write(
            tmp_path,
            """
            a: {loguniform: [1e-5, 1E-2]}
            b: {choice: [1e-4, 3e-4, none, 3x3]}
            c: {randint: [1e0, 10]}
            """,
        )
    )
    assert (space["a"].lower, space["a"].upper) == (1e-5, 1e-2)
    assert space["b"].categories == [1e-4, 3e-4, "none", "3x3"]
    assert type(space["c"].lower) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {unifrom: [0, 1]}", "a: unifrom is not a kind of domain; did you mean uniform?"),
        ("a: {grid_search: [0, 1]}", "a: grid_search is not a kind of domain"),
        ("a: {normal: [0, 1]}", "(kinds: uniform, quniform"),
        ("loss: {lambda_bce: {uniform: [0, 1]}}", "lambda_bce is not a kind of domain; join"),
        ("a: 5", "a: must be one kind with its arguments, such as {choice: [5]}"),
        ("a: [16, 32]", "a: must be one kind with its arguments, such as {choice: [16, 32]}"),
        ("a: {}", "a: must have exactly one kind, got []"),
        ("a: {uniform: [0, 1], choice: [1]}", "a: must have exactly one kind, got ['uniform'"),
        ("a: {uniform: [0, 1], zero: 0.1}", "a: zero is an option of zero_or_log, not of uniform"),
        ("a: {zero_or_log: [0.01, 4], zero: 1}", "a: zero must be a share in [0, 1), got 1"),
        ("a: {zero_or_log: [0, 4]}", "a: zero_or_log must have low > 0, got 0"),
        ("a: {loguniform: [0, 1]}", "a: loguniform must have low > 0, got 0.0; raise it"),
        ("a: {uniform: [1, 0]}", "a: uniform must have low < high, got 1.0 and 0.0"),
        ("a: {uniform: [0]}", "a: uniform must have [low, high], got [0]"),
        ("a: {uniform: 3}", "a: uniform must have [low, high], got 3"),
        ("a: {quniform: [0, 1]}", "a: quniform must have [low, high, step], got [0, 1]"),
        ("a: {quniform: [0, 1, 0.3]}", "a: quniform must have bounds that are multiples of the"),
        ("a: {quniform: [0, 1, 0]}", "a: quniform must have a step > 0, got 0"),
        ("a: {qrandint: [5, 7, 4]}", "a: qrandint must have a multiple of 4 between 5 and 7"),
        ("a: {uniform: [0, much]}", "a: every argument must be a number, got 'much'"),
        ("a: {uniform: [0, true]}", "a: every argument must be a number, got True"),
        ("a: {uniform: [0, .inf]}", "a: every argument must be a number, got inf"),
        ("a: {randint: [0, 1.5]}", "a: every argument must be a whole number, got 1.5"),
        ("a: {choice: []}", "a: choice must have a list of one or more values, got []"),
        ("a: {grid: 1}", "a: grid must have a list of one or more values, got 1"),
        ("a: {choice: [{b: 1}]}", "a: every value must be null, true, false, a number"),
        ("on: {choice: [1]}", "True must be the text of a field; write it in quotes"),
        ("spaces: learning-rates", "spaces must be a list of names, such as [learning-rates]"),
        ("spaces: [learning_rate]", "spaces: learning_rate is not a search space; did you mean"),
        ("a: [", "must be valid YAML: "),
        ("a: {grid: [1]}\nb: {grid: [2]}\na: {grid: [3]}", "a stands in lines 1 and 3; keep one"),
        ("a: {uniform: [0, 1], uniform: [0, 2]}", "uniform stands in lines 1 and 1; keep one"),
        ("spaces: [everything]\nspaces: [unets]", "spaces stands in lines 1 and 2; keep one"),
        ("a: &x {grid: [1]}\nb: *x", "write the values of an alias out"),
        ("? [1, 2]\n: {grid: [1]}", "must be valid YAML: "),
        ("a: {choice: " + "[" * 400 + "]" * 400 + "}", "must not be nested this deeply"),
        ("[" * 20_000, "must not be nested this deeply"),
        ("", "must map fields to domains, such as"),
        ("[1, 2]", "must map fields to domains, such as"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_space(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yml", tmp_path):
        with pytest.raises(ValueError, match="must be a readable text file") as caught:
            read_space(path)
        assert str(caught.value).startswith(f"{path}: ")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="must be a readable text file"):
        named_space([str(binary)])


# --- names


def test_names_merge_in_order() -> None:
    merged = named_space(["loss-weights", "learning-rates"])
    assert same(merged, {**SPACES["loss-weights"](), **SPACES["learning-rates"]()})
    later = named_space(["unets", "conv-stacks"])
    assert same(later, SPACES["conv-stacks"]())


def test_unknown_names_are_explained() -> None:
    with pytest.raises(ValueError, match="loss_weight is not a search space; did you mean loss-w"):
        named_space(["everything", "loss_weight"])
    with pytest.raises(ValueError, match="xyz is not a search space \\(spaces: loss-weights, "):
        named_space(["xyz"])
    with pytest.raises(ValueError, match="at least one space"):
        named_space([])
