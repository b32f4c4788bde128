"""What the program says of itself: presets, options, usage and version."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from commands import done

import distsynth.cli.main
from distsynth.cli.listed_names import FURTHER_ROWS, PRESET_NAMES, SPACE_NAMES, USUAL_ROWS
from distsynth.cli.short_help import SECTIONS, SWEEP, TRAIN
from distsynth.config import from_json
from distsynth.presets import PRESETS
from distsynth.reproduction.rows import ROWS, USUAL
from tune_spaces.registry import SPACES

COMMANDS = tuple(distsynth.cli.main.COMMANDS)


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
    assert f"usage: distsynth {command}" in ended.out
    assert re.search(rf"(?m)^ *distsynth {command} ", ended.out), "no example"
    assert not re.search(rf"distsynth {command} .*distsynth {command}\b", ended.out)
    first, _, _ = ended.out.partition("\n")
    assert not re.search(r"\b(STR|PATH|INT)\b", first)
    assert ended.err == ""


@pytest.mark.slow
def test_help_needs_none_of_the_large_libraries():
    code = """
import contextlib, sys
from distsynth.cli.main import COMMANDS, main
main(["--help"])
main(["--version"])
for words in [[command] for command in COMMANDS] + [["train", "small"], ["sweep", "small"]]:
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
sys.exit(", ".join({"torch", "ray", "wandb"} & set(sys.modules)) or None)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        (["--help"], "1"),
        (["--help"], ""),
        (["train", "--help"], "1"),
        (["train", "--help"], ""),
        (["presets"], ""),
    ],
)
def test_a_reader_that_has_gone_ends_the_program_silently(words, unbuffered):
    ended = read_nothing(words, unbuffered)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_an_error_is_said_though_nobody_reads_standard_output():
    ended = read_nothing(["verify", "/no/such/shards"], "")
    assert ended.returncode == 1
    assert re.fullmatch(rb"distsynth: /no/such/shards.*\n", ended.stderr)


def read_nothing(words, unbuffered):
    """The program with a standard output whose reader has gone before it writes."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "distsynth", *words],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writer)


def test_help_lists_every_name():
    assert tuple(PRESETS) == PRESET_NAMES
    assert tuple(SPACES) == SPACE_NAMES
    assert tuple(row for row in ROWS if row in USUAL) == USUAL_ROWS
    assert tuple(row for row in ROWS if row not in USUAL) == FURTHER_ROWS
    for words, names in (
        (["train", "--help"], PRESET_NAMES),
        (["sweep", "small", "--help"], SPACE_NAMES),
        (["sweep", "small", "--help-all"], SPACE_NAMES),
        (["reproduce", "--help"], (*USUAL_ROWS, *FURTHER_ROWS)),
    ):
        shown = set(re.split(r"[\s,.;:│]+", done(*words).out))
        assert not set(names) - shown, words


@pytest.mark.parametrize(("command", "groups"), [("train", TRAIN), ("sweep", SWEEP)])
def test_the_short_help_names_options_of_the_whole_one(command, groups):
    short = done(command, "unet-7", "--help").out
    whole = options_of(command, "unet-7")
    options = [option for group in groups.values() for option in group]
    assert len(options) == len(set(options)) > 15
    for option in options:
        assert option.name.rpartition(" ")[2] in whole
        assert f"  {option.name}" in short
    assert {f"--{field.name}.*" for field in fields(PRESETS["unet-7"])} == set(SECTIONS)
    assert len(short.splitlines()) < 110
    assert max(map(len, short.splitlines())) <= 80


def options_of(*args):
    words = done(*args, "--help-all").out.split()
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
        assert len(re.findall(r"(?m)^ *distsynth sweep --", shown)) == 3
