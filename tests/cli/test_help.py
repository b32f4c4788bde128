"""What the program says of itself: presets, options, usage and version."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands import done

from distsynth.cli.preset_names import PRESET_NAMES
from distsynth.config import from_json
from distsynth.presets import PRESETS

COMMANDS = ("phantom", "simulate", "shard", "presets", "train", "sweep", "predict", "evaluate")


def test_presets_as_text():
    ended = done("presets")
    advice, table = ended.out.split("\n\n")
    assert "Take quick" in advice
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(PRESETS)
    assert max(map(len, ended.out.splitlines())) <= 100


def test_presets_as_json():
    rows = json.loads(done("presets", "--json").out)
    assert [row["preset"] for row in rows] == list(PRESETS)
    assert all(row["generator_parameters"] > 0 for row in rows)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_prints_as_its_configuration(name):
    assert from_json(done("presets", name).out) == PRESETS[name]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command):
    ended = done(command, "--help")
    assert f"distsynth {command}" in ended.out
    assert ended.err == ""


def test_help_needs_none_of_the_large_libraries():
    code = """
import contextlib, sys
from distsynth.cli.main import COMMANDS, main
main(["--help"])
main(["--version"])
for command in COMMANDS:
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
sys.exit(", ".join({"torch", "ray", "wandb"} & set(sys.modules)) or None)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_help_names_the_presets():
    assert tuple(PRESETS) == PRESET_NAMES


def options_of(*args):
    words = done(*args, "--help").out.split()
    return {word.rstrip(",") for word in words if word.startswith("--")}


def test_help_shows_the_fields_of_the_family_of_the_preset():
    unet, conv = options_of("train", "unet-7"), options_of("train", "small")
    assert "--generator.channels" in unet & conv
    assert conv - unet == {
        "--generator.kernels",
        "--generator.norm-first",
        "--generator.no-norm-first",
    }
    assert options_of("train", "small", "--generator.family", "unet") == unet
    assert options_of("train", "unet-7", "--generator.family=conv") == conv
    cnn, patchgan = options_of("train", "fcn-1"), options_of("train", "pix2pix-9")
    assert {word for word in cnn if "discriminator." in word} == {"--discriminator.family"}
    assert "--discriminator.conditional" in patchgan
    assert "--discriminator.kernels" not in patchgan


@pytest.mark.parametrize("option", ["--resume", "--status", "--extend"])
def test_help_on_a_sweep_needs_no_name(option):
    for flag in ("-h", "--help"):
        shown = done("sweep", option, flag).out
        assert all(name in shown for name in ("--resume", "--from", "--retry-failed"))
