from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsynth.config import (
    FAMILIES,
    RunConfig,
    dotted_fields,
    field_names,
    from_dict,
    from_json,
    overrides_between,
    to_dict,
    to_json,
    validate,
    with_overrides,
)
from distsynth.errors import ConfigError
from distsynth.presets import PRESETS

WEIGHTS = st.floats(0, 1e6)
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "data.shards": st.text(),
        "data.patch_size": st.sampled_from([(64, 64), (96, 64), (64, 64, 80)]),
        "data.workers": st.integers(0, 64),
        "generator.channels": st.lists(st.integers(1, 512), min_size=4, max_size=4),
        "generator.kernels": st.sampled_from([(3,), (9,), (7, 5, 5, 3, 1)]),
        "generator.norm": st.sampled_from(["batch", "instance", "none"]),
        "generator.residual": st.booleans(),
        "loss.lambda_recon": st.floats(1e-9, 1e6),
        "loss.lambda_gradient": WEIGHTS,
        "loss.vgg_weights": st.none() | st.text(),
        "optim.lr_generator": st.floats(1e-12, 1),
        "optim.beta2": st.floats(0, 1, exclude_max=True),
        "train.epochs": st.integers(1, 10**6),
        "train.seed": st.integers(0, 2**31),
        "stitch.axes": st.permutations([0, 1, 2]).map(tuple),
        "tracking.group": st.none() | st.text(),
    },
)


@given(overrides=OVERRIDES)
def test_json_round_trip(overrides):
    config = with_overrides(RunConfig(), overrides)
    text = to_json(config)
    assert from_json(text) == config
    assert to_json(from_json(text)) == text
    assert from_dict(to_dict(config)) == config
    found = dict(dotted_fields(config))
    for name, value in overrides.items():
        assert found[name] == (tuple(value) if isinstance(value, list) else value)


def test_overrides_leave_the_original_and_all_else_as_they_were():
    config = RunConfig()
    changed = with_overrides(config, {"loss.lambda_gradient": 2.0})
    assert config == RunConfig()
    before, after = dict(dotted_fields(config)), dict(dotted_fields(changed))
    assert {name for name in before if before[name] != after[name]} == {"loss.lambda_gradient"}
    with pytest.raises(FrozenInstanceError):
        config.loss.lambda_bce = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_round_trip(name):
    config = PRESETS[name]
    assert validate(config) is config
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("values", "field", "hint"),
    [
        ({"loss": {"lambda_recn": 1}}, "loss.lambda_recn", "loss.lambda_recon"),
        ({"train": {"epochz": 1}}, "train.epochz", "train.epochs"),
        ({"losss": {}}, "losss", "loss"),
        ({"zzzzzz": 1}, "zzzzzz", None),
    ],
)
def test_unknown_field_is_refused_with_its_path_and_the_nearest(values, field, hint):
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    end = f"; did you mean {hint}?" if hint else ""
    assert str(caught.value) == f"{field} is not a field of the configuration{end}"


def test_unknown_override_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"^los\.recon is not .* did you mean loss\.recon\?$"):
        with_overrides(RunConfig(), {"los.recon": "l1"})
    with pytest.raises(ConfigError, match=r"^loss is not a field"):
        with_overrides(RunConfig(), {"loss": {}})


SWITCHES = [
    ({"generator.family": "unet", "generator.kernels": (3,)}, "unet generator", "conv,"),
    ({"generator.norm_first": False, "generator.family": "dense"}, "dense generator", "conv;"),
    ({"discriminator.channels": (8,)}, "none discriminator", "conv, patchgan"),
    (
        {"discriminator.family": "patchgan", "discriminator.downsample": "maxpool"},
        "patchgan discriminator",
        "conv;",
    ),
]


@pytest.mark.parametrize(("overrides", "family", "owners"), SWITCHES)
def test_a_field_of_another_family_is_refused_with_the_families_named(overrides, family, owners):
    with pytest.raises(ConfigError, match=f"is not a field of a {family}, only of {owners}"):
        with_overrides(RunConfig(), overrides)


def test_a_file_with_a_field_of_another_family_is_refused_alike():
    with pytest.raises(ConfigError, match=r"^generator\.kernels is not a field of a unet"):
        from_dict({"generator": {"family": "unet", "kernels": [3]}})
    with pytest.raises(ConfigError, match=r"did you mean generator\.channels\?$"):
        from_dict({"generator": {"family": "unet", "chanels": [3]}})
    with pytest.raises(ConfigError, match=r"^generator\.family: must be one of conv, .* got None"):
        from_dict({"generator": {"channels": [3]}})


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("section", FAMILIES)
def test_another_family_starts_from_its_own_defaults(name, section):
    before = PRESETS[name]
    for family, default in FAMILIES[section].items():
        changes = {f"{section}.family": family}
        if (section, family) == ("discriminator", "none"):
            changes["loss.lambda_bce"] = 0.0
            changes["loss.lambda_recon"] = 1.0
        after = with_overrides(before, changes)
        same = family == getattr(before, section).family
        assert getattr(after, section) == (getattr(before, section) if same else default())


@pytest.mark.parametrize("one", ["unet-7", "dcsrn-l1", "pix2pix-9", "small"])
@pytest.mark.parametrize("other", ["fcn-2", "pix2pix-9", "dcgan-3"])
def test_the_overrides_between_two_configurations_turn_one_into_the_other(one, other):
    before, after = PRESETS[one], PRESETS[other]
    assert with_overrides(before, overrides_between(before, after)) == after
    assert overrides_between(after, after) == {}


def test_the_names_of_all_fields():
    every = set(field_names())
    for config in (RunConfig(), *PRESETS.values()):
        families = {section: getattr(config, section).family for section in FAMILIES}
        own = [name for name, _ in dotted_fields(config)]
        assert field_names(families) == own
        assert set(own) <= every
    assert {"generator.norm_first", "discriminator.downsample", "loss.recon"} <= every


PATCHES = [
    ("unet-7", (18, 18), "sides divisible by 4 for a unet"),
    ("fcn-2", (20, 20), "sides divisible by 8 for an encoder-decoder of 3 levels"),
    ("dcgan-3", (24, 24), "sides of at least 32 voxels for a conv discriminator of 5 layers"),
    ("pix2pix-9", (20, 20), "sides of at least 24 voxels for a patchgan"),
    ("dcsrn-perceptual", (15, 15), "slices of at least 16 voxels"),
]


@pytest.mark.parametrize(("name", "sides", "message"), PATCHES)
def test_a_patch_that_a_network_or_a_loss_cannot_take_is_refused_at_once(name, sides, message):
    with pytest.raises(ConfigError, match=message):
        with_overrides(PRESETS[name], {"data.patch_size": sides, "stitch.stride": 4})


def test_the_patch_is_unknown_until_the_shards_say():
    assert RunConfig().data.patch_size is None
    for name in ("sides", "spatial_dims", "channels"):
        with pytest.raises(ConfigError, match="not known before the shards have been read"):
            getattr(RunConfig().data, name)
    known = with_overrides(RunConfig(), {"data.patch_size": (32, 32), "data.neighbours": 2})
    assert (known.data.sides, known.data.spatial_dims, known.data.channels) == ((32, 32), 2, 5)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"train.epochs": 2.5}, "train.epochs"),
        ({"train.epochs": None}, "train.epochs"),
        ({"generator.family": "resnet"}, "generator.family"),
        ({"data.patch_size": (16, "wide")}, "data.patch_size.1"),
        ({"loss.lambda_recon": "much"}, "loss.lambda_recon"),
    ],
)
def test_wrong_type_is_refused_with_the_dotted_field_and_value(overrides, field):
    (value,) = overrides.values()
    shown = value[1] if isinstance(value, tuple) else value
    with pytest.raises(ConfigError) as caught:
        with_overrides(RunConfig(), overrides)
    assert str(caught.value).startswith(f"{field}: ")
    assert str(caught.value).endswith(f"got {shown!r}")


@pytest.mark.parametrize("text", ["{", "[]", "null", "3", '{"train": 3}', '{"loss": {"recon": 1}}'])
def test_malformed_json_is_a_config_error_that_names_the_file(text):
    with pytest.raises(ConfigError, match=r"^runs/one/config\.json: "):
        from_json(text, "runs/one/config.json")
    with pytest.raises(ConfigError):
        from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "must not be nested this deeply"),
        ('{"loss": ' * 100_000, "must not be nested this deeply"),
        ('{"train": {"epochs": 1}, "train": {"epochs": 2}}', "train stands twice; keep one"),
        ('{"train": {"epochs": 1, "epochs": 2}}', "epochs stands twice; keep one"),
        ("[1]", "must be a JSON object, got list"),
        ('{"train": {"epochs": ' + "9" * 5000 + "}}", "must be valid JSON: Exceeds the limit"),
        (b'{"tracking": {"name": "\xff"}}', "must be valid JSON: 'utf-8' codec"),
        ('{"train": {"epochs": "' + "x" * 10_000 + '"}}', "x..."),
        ('{"optim": {"beta1": NaN}}', "optim.beta1 must be a finite number, got nan"),
    ],
)
def test_hostile_json_ends_in_one_line(text, message):
    with pytest.raises(ConfigError) as caught:
        from_json(text, "config.json")
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


SMALL_PATCH = {"data.patch_size": (16, 16), "stitch.stride": 8}
WITH_DISCRIMINATOR = {"discriminator.family": "conv"}
RULES = [
    ({"data.patch_size": (64,)}, "data.patch_size", "(64,)"),
    ({"data.patch_size": (64, 64, 64, 64)}, "data.patch_size", "(64, 64, 64, 64)"),
    ({"data.patch_size": ()}, "data.patch_size", "()"),
    ({"data.patch_size": (64, 3)}, "data.patch_size", "(64, 3)"),
    ({"data.workers": -1}, "data.workers", "-1"),
    ({"data.workers": 1_000_000}, "data.workers", "1000000"),
    ({"data.patch_size": (10**9, 10**9)}, "data.patch_size", "(1000000000, 1000000000)"),
    ({"data.neighbours": 1_000_000}, "data.neighbours", "1000000"),
    ({"generator.channels": (10**9,)}, "generator.channels", "1 of up to 1000000000"),
    ({"generator.channels": (8,) * 1000}, "generator.channels", "1000 of up to 8"),
    ({"generator.kernels": (100_001,)}, "generator.kernels", "(100001,)"),
    ({"train.batch_size": 10**12}, "train.batch_size", "1000000000000"),
    ({"train.seed": 2**32}, "train.seed", "4294967296"),
    ({"train.precision": "fp16", "train.device": "cpu"}, "train.precision", "fp16"),
    ({"tracking.project": "a/b"}, "tracking.project", "'a/b'"),
    ({"tracking.project": ""}, "tracking.project", "''"),
    ({"tracking.entity": "lab#1"}, "tracking.entity", "'lab#1'"),
    ({"tracking.samples": 10**6}, "tracking.samples", "1000000"),
    ({"data.shuffle_shards": 0}, "data.shuffle_shards", "0"),
    ({"generator.channels": ()}, "generator.channels", "()"),
    ({"generator.channels": (8, 0, 8, 8)}, "generator.channels", "(8, 0, 8, 8)"),
    (WITH_DISCRIMINATOR | {"discriminator.channels": (8, -1)}, "discriminator.channels", "(8, -1)"),
    (
        {"discriminator.family": "patchgan", "discriminator.channels": (0,)},
        "discriminator.channels",
        "(0,)",
    ),
    ({"generator.kernels": (4,)}, "generator.kernels", "(4,)"),
    ({"generator.kernels": (-3,)}, "generator.kernels", "(-3,)"),
    ({"generator.kernels": (3, 3)}, "generator.kernels", "(3, 3)"),
    ({"generator.kernels": ()}, "generator.kernels", "()"),
    ({"generator.family": "dense", "generator.kernels": (3, 3)}, "generator.kernels", "(3, 3)"),
    (WITH_DISCRIMINATOR | {"discriminator.kernels": (3, 3)}, "discriminator.kernels", "(3, 3)"),
    ({"generator.family": "unet", "generator.channels": (8,)}, "generator.channels", "(8,)"),
    (WITH_DISCRIMINATOR | {"loss.lambda_bce": -1.0}, "loss.lambda_bce", "-1.0"),
    ({"loss.lambda_recon": -1.0}, "loss.lambda_recon", "-1.0"),
    ({"loss.lambda_gradient": -2.0}, "loss.lambda_gradient", "-2.0"),
    ({"loss.lambda_perceptual": -0.5}, "loss.lambda_perceptual", "-0.5"),
    ({"loss.lambda_recon": 0.0}, "loss", "LossConfig("),
    ({"loss.lambda_bce": 1.0}, "loss.lambda_bce", "1.0"),
    ({"loss.lambda_recon": math.inf}, "loss.lambda_recon", "inf"),
    ({"optim.lr_generator": 0.0}, "optim.lr_generator", "0.0"),
    ({"optim.lr_discriminator": -1.0}, "optim.lr_discriminator", "-1.0"),
    ({"optim.lr_generator": math.nan}, "optim.lr_generator", "nan"),
    ({"optim.beta1": 1.0}, "optim.beta1", "1.0"),
    ({"optim.beta2": -0.1}, "optim.beta2", "-0.1"),
    ({"optim.clip_norm": -1.0}, "optim.clip_norm", "-1.0"),
    ({"train.epochs": 0}, "train.epochs", "0"),
    ({"train.batch_size": 0}, "train.batch_size", "0"),
    ({"train.accumulation": 0}, "train.accumulation", "0"),
    ({"train.accumulation": 5}, "train.accumulation", "5"),
    ({"train.log_every": 0}, "train.log_every", "0"),
    ({"train.validate_every": 0}, "train.validate_every", "0"),
    ({"train.checkpoint_every": -1}, "train.checkpoint_every", "-1"),
    ({"train.seed": -1}, "train.seed", "-1"),
    ({"stitch.stride": 0}, "stitch.stride", "0"),
    ({"data.patch_size": (16, 16)}, "stitch.stride", "20"),
    ({"data.neighbours": -1}, "data.neighbours", "-1"),
    ({"data.patch_size": (32, 32, 32), "data.neighbours": 1}, "data.neighbours", "1"),
    ({"stitch.trim": -1}, "stitch.trim", "-1"),
    (SMALL_PATCH | {"stitch.trim": 5}, "stitch.trim", "5"),
    ({"stitch.axes": ()}, "stitch.axes", "()"),
    ({"stitch.axes": (0, 0)}, "stitch.axes", "(0, 0)"),
    ({"stitch.axes": (3,)}, "stitch.axes", "(3,)"),
    ({"tracking.samples": -1}, "tracking.samples", "-1"),
]


@pytest.mark.parametrize(("overrides", "field", "value"), RULES)
def test_each_rule_names_field_and_value(overrides, field, value):
    with pytest.raises(ConfigError) as caught:
        with_overrides(RunConfig(), overrides)
    message = str(caught.value)
    assert message.startswith(f"{field} must be ")
    rule, found = message.split(", got ")
    assert len(rule) > len(f"{field} must be ")
    assert found.startswith(value)


@pytest.mark.parametrize(
    "overrides",
    [
        SMALL_PATCH | {"stitch.trim": 4},
        {"train.batch_size": 6, "train.accumulation": 3},
        WITH_DISCRIMINATOR | {"loss.lambda_bce": 1.0},
        {"loss.lambda_recon": 0.0, "loss.lambda_gradient": 1.0},
        {"optim.beta1": 0.0, "optim.clip_norm": 0.0, "train.checkpoint_every": 0},
    ],
)
def test_the_edge_of_a_rule_is_allowed(overrides):
    with_overrides(RunConfig(), overrides)


def test_json_is_readable_and_complete():
    values = json.loads(to_json(RunConfig()))
    assert values["loss"]["lambda_recon"] == 1.0
    leaves = {f"{section}.{name}" for section, part in values.items() for name in part}
    assert leaves == {name for name, _ in dotted_fields(RunConfig())}
