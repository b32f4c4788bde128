"""What the documentation names exists: links, files, commands, options, Python names, numbers."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from programs import with_path
from warm_workers import PROGRAMS

import distsynth
from distsynth.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    path
    for path in (
        README,
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/**/*.md"),
        *ROOT.glob("jobs/**/*.md"),
    )
    if not {"_build", "reference"} & set(path.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"--[a-z][a-z0-9._-]*[a-z0-9]")
FOLDERS = "distsynth|sharding|tune_spaces|jobs|tests|benchmarks|docs|examples"
REPOSITORY_FILE = re.compile(rf"(?:{FOLDERS})/[\w./-]*\w/?")
OURS = r"(distsynth|sharding|tune_spaces)\b"
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt|opt|tmp|var|private)/")
JOBS = {"train_gan.py": "train", "tune_gan.py": "sweep", "shard_volumes.py": "shard"}
"""A script of jobs/ takes the options of a command."""
OTHERS = {"--local", "--address"}
"""Options that the scripts of jobs/ read before the command does."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", read(page))


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(read(page)) if language in languages]


def shell_lines(page: Path) -> list[list[str]]:
    """Words of each command line of the page's shell blocks, without comments."""
    lines = []
    for block in blocks(page, "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                lines.append(words)
    return lines


@functools.cache
def help_of(*words: str) -> str:
    """What `distsynth WORDS --help-all` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help-all"])
    return text.getvalue()


def options_of(command: str, following: list[str]) -> set[str]:
    """The options that a command line may use."""
    starts: list[tuple[str, ...]] = [(command,)]
    if command in ("train", "sweep"):
        named = following and not following[0].startswith("-")
        # A configuration file may hold any family; of a preset the options are known.
        preset = following[0] if named and not following[0].endswith(".json") else "small"
        starts = [(command, preset)]
        if command == "sweep" and not named:
            starts = [(command, "--resume", "NAME")]
    return {option for words in starts for option in OPTION.findall(help_of(*words))}


def distsynth_lines(page: Path) -> list[tuple[str, list[str]]]:
    """(Command, words after it) of every call of the program in the page's shell blocks."""
    found = []
    for words in shell_lines(page):
        for at, word in enumerate(words):
            if word == "distsynth":
                found.append((words[at + 1], words[at + 2 :]))
                break
            if Path(word).name in JOBS and word.endswith(".py"):
                rest = [other for other in words[at + 1 :] if other not in ("--", *OTHERS)]
                found.append((JOBS[Path(word).name], rest))
                break
    return found


def test_the_readme_is_short():
    assert len(read(README).splitlines()) <= 150


def test_pages_are_found():
    assert len(PAGES) > 20
    assert sum(len(distsynth_lines(page)) for page in PAGES) > 50


@pages
def test_relative_links_resolve(page: Path):
    broken = []
    for groups in LINK.findall(prose(page)):
        target = groups[0] or groups[1]
        if re.match(r"[a-z]+:|#", target):
            continue
        path, _, _ = target.partition("#")
        if not (page.parent / path).exists():
            broken.append(target)
    assert not broken


@pages
def test_links_go_to_nothing_on_the_network_but_what_is_named(page: Path):
    """No badge, no picture and no script is loaded from elsewhere when the page is shown."""
    assert not re.search(r"!\[[^]]*\]\(https?:|src=\"https?:", read(page))


@pages
def test_commands_and_options_exist(page: Path):
    wrong = []
    for command, following in distsynth_lines(page):
        if command in ("COMMAND", "--help", "--version"):
            continue
        if command not in COMMANDS:
            wrong.append(command)
            continue
        known = options_of(command, following)
        used = {word.partition("=")[0] for word in following if word.startswith("--")}
        known |= {"--help", "--help-all"}
        wrong += [f"{command} {option}" for option in sorted(used - known)]
    assert not wrong


@pages
def test_commands_and_options_in_sentences_exist(page: Path):
    if page.is_relative_to(ROOT / "benchmarks"):
        pytest.skip("the programs of benchmarks/ have options of their own")
    spans = CODE_SPAN.findall(prose(page))
    called = [span.split() for span in spans if span.startswith("distsynth ")]
    commands = {words[1] for words in called if len(words) > 1}
    assert commands <= {*COMMANDS, "COMMAND", "--help", "--version", "--debug"}
    options = {
        option
        for span in spans
        if span.startswith("--") or span.startswith("distsynth ")
        for option in OPTION.findall(span)
    }
    # The example of a new family or term has options of its own.
    defined = re.findall(r"(?m)^ {4}(\w+): ", "".join(blocks(page, "python")))
    fields = {name.replace("_", "-") for name in defined}
    unknown = options - every_option() - OPTIONS_OF_OTHERS
    assert not {option for option in unknown if option.rpartition(".")[2] not in fields}


OPTIONS_OF_OTHERS = {
    "--num_processes",
    "--tmux",
    "--dry-run",
    "--working-dir",
    "--help",
    "--help-all",
    "--version",
    "--debug",
}
"""Of Ray, W&B and the program as a whole, as the pages mention them."""


@functools.cache
def every_option() -> frozenset[str]:
    starts = [(name,) for name in COMMANDS if name not in ("train", "sweep")]
    starts += [
        ("train", "small"),
        ("train", "unet-7"),
        ("sweep", "small"),
        ("sweep", "--resume", "NAME"),
    ]
    return frozenset(option for words in starts for option in OPTION.findall(help_of(*words)))


@pages
def test_files_of_the_repository_exist(page: Path):
    named = {name for span in CODE_SPAN.findall(prose(page)) for name in paths_in(span)}
    # Made by `make docs`.
    named = {name for name in named if not name.startswith("docs/_build/")}
    assert not {name for name in named if not (ROOT / name).exists()}


def paths_in(span: str) -> list[str]:
    return [span] if REPOSITORY_FILE.fullmatch(span) else []


@pages
def test_modules_and_make_targets_exist(page: Path):
    text = read(page)
    modules = set(re.findall(r"python -m ((?:distsynth|sharding|benchmarks)[\w.]*\w)", text))
    assert not {name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()}
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    named = set(re.findall(r"(?:`|^ {4})make ([\w-]+)", text, re.MULTILINE))
    assert named <= targets


@pages
def test_python_blocks_name_what_exists(page: Path):
    nodes = [node for text in blocks(page, "python") for node in ast.walk(ast.parse(text))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and re.match(OURS, node.module or ""):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pages
def test_python_blocks_use_public_names(page: Path):
    text = "".join(blocks(page, "python"))
    assert set(re.findall(r"\bds\.(\w+)", text)) <= set(distsynth.__all__)


@pytest.mark.parametrize(
    "page", [README, ROOT / "docs" / "tutorials" / "python.md"], ids=["readme", "tutorial"]
)
def test_the_quickstart_is_that_of_the_examples(page: Path):
    shown = [line for line in blocks(page, "python")[0].splitlines() if line.strip()]
    example = read(ROOT / "examples" / "quickstart.py").splitlines()
    assert len(shown) >= 10
    assert not [line for line in shown if line not in example]


@pages
def test_no_page_names_a_path_of_one_machine(page: Path):
    assert not MACHINE_PATH.search(read(page))


def test_the_import_rule_is_the_contract():
    text = read(ROOT / "docs" / "architecture.md").partition("## The import rule")[2]
    shown = [set(line.split()) for line in FENCE.findall(text)[0][1].splitlines()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [re.findall(r"distsynth\.(\w+)", layer) for layer in contract]
    assert shown == [set(layer) for layer in names]


def test_the_folder_map_has_every_folder():
    text = read(ROOT / "docs" / "architecture.md")
    folders = [path for package in ("distsynth", "sharding") for path in (ROOT / package).iterdir()]
    packages = [path for path in folders if (path / "__init__.py").is_file()]
    assert len(packages) > 15
    assert not [path.name for path in packages if f"{path.parent.name}/{path.name}/" not in text]


def test_messages_that_the_remedies_are_for_are_those_of_the_program():
    files = (
        path for package in ("distsynth", "sharding") for path in ROOT.glob(f"{package}/**/*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", "".join(map(read, files)))
    quoted = re.findall(r'^\*\*"(.+?)"', read(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    parts = [part.strip() for message in quoted for part in message.split("...") if part.strip()]
    assert len(parts) >= 3
    assert not [part for part in parts if part not in joined]


def test_numbers_of_the_readme_stand_in_the_results():
    table = read(README).partition("## What is measured")[2].partition("\n## ")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")]
    numbers = {number for cell in cells[1:] for number in re.findall(r"\d[\d.,]*\d|\d", cell)}
    results = "".join(map(read, ROOT.glob("benchmarks/results/*.md")))
    known = set(re.findall(r"\d[\d.,]*\d|\d", results))
    assert len(numbers) > 15
    assert not numbers - known


def without_numbers(text: str) -> str:
    """Scores differ in their last digits from machine to machine."""
    return re.sub(r"[\d.]+", "#", text)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_phantom_tutorial_runs_as_it_is_written(tmp_path: Path):
    page = ROOT / "docs" / "tutorials" / "phantom.md"
    script = "".join(["set -euo pipefail\n", *blocks(page, "bash")])
    program = tmp_path / "bin" / "distsynth"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m distsynth "$@"\n')
    program.chmod(0o755)
    path = {"PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = os.environ | PROGRAMS | with_path(ROOT) | path
    ran = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout + ran.stderr + (tmp_path / "cohort" / "cohort.csv").read_text()
    shown = [line for text in blocks(page, "text") for line in text.splitlines()]
    assert shown
    assert not [line for line in shown if without_numbers(line) not in without_numbers(printed)]
    assert "project  distsynth" in ran.stdout
    assert "Would sync 1 run" in ran.stdout + ran.stderr
    assert (tmp_path / "synthetic.nii.gz").is_file()
    assert "neighbourhood-regression" in (tmp_path / "evaluation" / "table.txt").read_text()
    assert (tmp_path / "small.html").stat().st_size > 100_000
