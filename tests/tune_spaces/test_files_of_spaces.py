"""Spaces in files: read, merged and explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray import tune
from same_spaces import same

from tune_spaces.domains import ZeroOrLog
from tune_spaces.named import named_space, read_space
from tune_spaces.registry import SPACES


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
