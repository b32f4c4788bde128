from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsynth.config import dotted_fields, with_overrides
from distsynth.errors import ConfigError
from distsynth.presets import PRESETS, preset
from distsynth.runs.checkpoint import MAY_CHANGE
from distsynth.sweep.plan import FREE, SweepConfig, SweepPlan, check_same_sweep, plan_from_json
from tune_spaces.plain import space_to_plain
from tune_spaces.registry import SPACES

SPACE = space_to_plain({**SPACES["loss-weights"](), **SPACES["conv-stacks"]()})


def plan(**changed: Any) -> SweepPlan:
    whole: dict[str, Any] = {
        "name": "lambdas",
        "id": "0a1b2c3d",
        "base": preset("unet-7"),
        "space": SPACE,
        "sweep": SweepConfig(trials=8, scheduler="asha"),
    }
    return SweepPlan(**whole | changed)


# --- SweepConfig


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("trials", 0, ">= 1"),
        ("cpus", 0, ">= 1"),
        ("workers", 0, ">= 1"),
        ("asha_grace", 0, ">= 1"),
        ("pbt_every", 0, ">= 1"),
        ("top", 0, ">= 1"),
        ("seed", -1, ">= 0"),
        ("concurrent", -1, ">= 0"),
        ("retries", -1, ">= 0"),
        ("seam_penalty", -0.1, ">= 0"),
        ("seam_penalty", math.inf, ">= 0"),
        ("seam_penalty", math.nan, ">= 0"),
        ("gpus", -1.0, "a fraction of 1 or whole"),
        ("gpus", 1.5, "a fraction of 1 or whole"),
        ("gpus", math.inf, "a fraction of 1 or whole"),
        ("gpus", math.nan, "a fraction of 1 or whole"),
        ("asha_reduction", 1.0, "> 1"),
        ("asha_reduction", math.nan, "> 1"),
        ("asha_reduction", math.inf, "> 1"),
        ("pbt_quantile", 0.0, "in (0, 0.5]"),
        ("pbt_quantile", 0.51, "in (0, 0.5]"),
        ("pbt_resample", -0.1, "in [0, 1]"),
        ("pbt_resample", 1.1, "in [0, 1]"),
        ("final_epochs", 0, ">= 1"),
        ("objective", ("psnr", "psnr"), "distinct"),
        ("objective", (), "distinct"),
    ],
)
def test_a_rule_names_field_and_value(field, value, rule):
    with pytest.raises(ConfigError) as caught:
        SweepConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"sweep.{field} must be {rule}")
    assert message.endswith(f", got {value}")


@pytest.mark.parametrize(
    "fields",
    [
        {"gpus": 0.25},
        {"gpus": 2.0, "workers": 2},
        {"workers": 4},
        {"pbt_quantile": 0.5, "pbt_resample": 0.0},
        {"pbt_resample": 1.0},
        {"concurrent": 0, "retries": 0, "seed": 0},
        {"search": "optuna", "scheduler": "asha"},
        {"search": "grid", "scheduler": "pbt"},
        {"search": "optuna", "objective": ("psnr", "ssim_2d", "mse")},
    ],
)
def test_what_goes_together_is_taken(fields):
    config = SweepConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus": 0.5, "workers": 2}, "sweep.gpus must be 0 or whole for several workers"),
        ({"search": "optuna", "scheduler": "pbt"}, "sweep.search must be random or grid with pbt"),
        (
            {"objective": ("psnr", "mse")},
            "sweep.objective must be a single one unless search is optuna and scheduler fifo",
        ),
        (
            {"objective": ("psnr", "mse"), "search": "optuna", "scheduler": "asha"},
            "sweep.objective must be a single one",
        ),
        ({"objective": ("psnr2",)}, "objective must be one of psnr, ssim_2d, ssim_global, mse"),
        ({"objective": ("train/bce",)}, "objective must not be an adversarial loss"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        SweepConfig(**fields)


def test_an_objective_means_the_same_with_the_prefix_of_its_metric():
    assert SweepConfig(objective=("val/psnr",)).objective == ("psnr",)
    with pytest.raises(ConfigError, match=r"sweep\.objective must be distinct"):
        SweepConfig(objective=("val/psnr", "psnr"), search="optuna")


# --- JSON

SWEEPS = st.builds(
    SweepConfig,
    trials=st.integers(1, 10**6),
    search=st.sampled_from(["random", "grid"]),
    scheduler=st.sampled_from(["fifo", "asha", "pbt"]),
    objective=st.sampled_from([("psnr",), ("mse",)]),
    seam_penalty=st.floats(0, 1e9),
    presets_first=st.booleans(),
    gpus=st.sampled_from([0.0, 0.1, 1.0, 4.0]),
    asha_reduction=st.floats(1.001, 1e9),
    pbt_quantile=st.floats(1e-9, 0.5),
    final=st.sampled_from(["taken", "retrained", "none"]),
    final_epochs=st.none() | st.integers(1, 1000),
    cohort=st.none() | st.text(),
)


@settings(deadline=None)
@given(
    name=st.text(),
    base=st.sampled_from(list(PRESETS)),
    space=st.lists(st.sampled_from(list(SPACES)), min_size=1, max_size=3),
    sweep=SWEEPS,
    extends=st.none() | st.text(),
)
def test_plans_survive_json(name, base, space, sweep, extends):
    plain = space_to_plain({key: v for each in space for key, v in SPACES[each]().items()})
    before = SweepPlan(name, "id", preset(base), plain, sweep, extends)
    text = before.to_json()
    assert plan_from_json(text, "sweep.json") == before
    assert plan_from_json(text.encode(), "sweep.json").to_json() == text
    json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("version",), 2, "version"),
        (("colour",), "red", "colour"),
        (("sweep", "trails"), 3, "sweep.trails"),
        (("sweep", "trials"), "many", "sweep.trials"),
        (("sweep", "search"), "hill", "sweep.search"),
        (("base", "loss", "lambda_5"), 1.0, "base.loss.lambda_5"),
        (("base", "train", "epochs"), None, "base.train.epochs"),
        (("space",), [], "space"),
    ],
)
def test_what_a_plan_cannot_hold_is_named(path, value, named):
    values = json.loads(plan().to_json())
    node = values
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        plan_from_json(json.dumps(values), "s3://b/lambdas/sweep.json")
    start = f"s3://b/lambdas/sweep.json is not a sweep that can be read ({named}: "
    assert str(caught.value).startswith(start)


def test_the_rules_hold_for_a_plan_that_is_read():
    text = plan().to_json().replace('"trials": 8', '"trials": 0')
    with pytest.raises(ConfigError, match=r"\(sweep: .*sweep.trials must be >= 1, got 0"):
        plan_from_json(text, "sweep.json")


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b"{", b"null"])
def test_other_files_are_no_plans(text):
    with pytest.raises(ConfigError, match=r"^there/sweep\.json is not a sweep"):
        plan_from_json(text, "there/sweep.json")


def test_ids_of_tracked_runs_start_with_the_sweeps():
    assert plan().trial_id("00007") == "0a1b2c3d-00007"


# --- going on

OTHER: dict[str, Any] = {
    "trials": 9,
    "search": "grid",
    "scheduler": "fifo",
    "objective": ("mse",),
    "seam_penalty": 0.5,
    "presets_first": True,
    "seed": 1,
    "cpus": 2,
    "gpus": 1.0,
    "workers": 2,
    "concurrent": 3,
    "retries": 5,
    "asha_grace": 2,
    "asha_reduction": 2.0,
    "pbt_every": 2,
    "pbt_quantile": 0.5,
    "pbt_resample": 0.5,
    "top": 3,
    "final": "retrained",
    "final_epochs": 40,
    "cohort": "/scans",
}


def test_every_field_of_a_sweep_has_another_value_here():
    before = plan().sweep
    assert set(OTHER) == set(vars(before))
    assert not [name for name, value in OTHER.items() if getattr(before, name) == value]


@pytest.mark.parametrize("field", OTHER)
def test_only_what_no_trial_depends_on_may_be_set_anew(field):
    before = plan()
    now = plan(sweep=replace(before.sweep, **{field: OTHER[field]}))
    if field in FREE:
        check_same_sweep(before, now)
        return
    with pytest.raises(ConfigError) as caught:
        check_same_sweep(before, now)
    old = getattr(before.sweep, field)
    lines = str(caught.value).splitlines()
    assert lines == [
        "sweep lambdas was started with other settings and can only be resumed with these "
        "unchanged:",
        f"  sweep.{field}: {old} before, {OTHER[field]} now",
        "Resume it by its name alone, or start another sweep under a new name",
    ]


def test_names_and_ids_do_not_matter():
    check_same_sweep(plan(), plan(name="again", id="ffffffff", extends="old"))


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.shards": "s3://elsewhere/shards"},
        {"data.workers": 4, "data.cache_gb": 1.0},
        {"train.device": "cpu", "loss.vgg_weights": "vgg.pth"},
        {"tracking.mode": "online", "tracking.group": "g", "tracking.samples": 0},
    ],
)
def test_where_a_trial_reads_and_reports_may_change(overrides):
    check_same_sweep(plan(), plan(base=with_overrides(preset("unet-7"), overrides)))


FIXED = [
    name
    for name, _ in dotted_fields(preset("unet-7"))
    if name not in MAY_CHANGE and not name.startswith("tracking.")
]


@pytest.mark.parametrize("field", FIXED)
def test_no_other_field_of_the_base_may_change(field):
    before = plan()
    old = dict(dotted_fields(before.base))[field]
    section, name = field.split(".")
    changed = replace(getattr(before.base, section), **{name: "another"})
    now = plan(base=replace(before.base, **{section: changed}))
    with pytest.raises(ConfigError, match=re.escape(f"\n  {field}: {old} before, another now\n")):
        check_same_sweep(before, now)


def test_every_difference_of_the_space_is_shown():
    space = {name: entry for name, entry in SPACE.items() if name != "loss.lambda_bce"}
    space["loss.lambda_recon"] = {"uniform": [0.0, 3.0]}
    space["train.seed"] = {"choice": [0, 1]}
    sweep = SweepConfig(trials=30, scheduler="asha", asha_grace=3)
    base = with_overrides(preset("unet-7"), {"train.epochs": 3})
    with pytest.raises(ConfigError) as caught:
        check_same_sweep(plan(), plan(space=space, sweep=sweep, base=base))
    assert str(caught.value).splitlines()[1:-1] == [
        '  space.loss.lambda_bce: {"zero_or_log": [0.01, 4.0], "zero": 0.2} before, absent now',
        '  space.loss.lambda_recon: {"zero_or_log": [0.02, 8.0], "zero": 0.0} before, '
        '{"uniform": [0.0, 3.0]} now',
        '  space.train.seed: absent before, {"choice": [0, 1]} now',
        "  sweep.asha_grace: 1 before, 3 now",
        "  train.epochs: 30 before, 3 now",
    ]


@settings(deadline=None)
@given(st.sampled_from(list(SPACES)), SWEEPS)
def test_a_plan_that_was_written_and_read_is_the_same_sweep(space, sweep):
    before = plan(space=space_to_plain(SPACES[space]()), sweep=sweep)
    check_same_sweep(plan_from_json(before.to_json(), ""), before)
