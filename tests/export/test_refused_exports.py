"""Exports that were changed, cut or forged are refused, and nothing of them is unpickled."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from exports import run

from distsynth.export.export import CARD, ONNX
from distsynth.inference.predictor import load_predictor
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.package import (
    CONFIG,
    RECORD,
    SUMS,
    WEIGHTS,
    export_files,
    write_files,
)
from sharding.volumes.cohort import read_cohort


@pytest.fixture
def forged(made, tmp_path):
    """A function that writes an export with other files, its checksums right."""

    def write(**changes):
        checkpoint = load_checkpoint(made("conv")[0])
        files = export_files(checkpoint)
        for name, change in changes.items():
            name = {"weights": WEIGHTS, "config": CONFIG, "record": RECORD}[name]
            files[name] = change(files[name])
        write_files(tmp_path / "forged", files)
        return tmp_path / "forged"

    return write


def edited(change):
    """JSON with its values changed in place."""

    def edit(content):
        values = json.loads(content)
        change(values)
        return json.dumps(values).encode()

    return edit


def reweighted(change):
    """Weights with the dict of tensors changed in place."""

    def edit(content):
        tensors = safetensors.torch.load(content)
        change(tensors)
        return safetensors.torch.save(tensors)

    return edit


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, RECORD, ONNX, CARD])
@pytest.mark.parametrize("harm", [flip, cut])
def test_a_changed_file_is_refused(name, harm, copy, refused):
    harm(copy / name)
    with refused(copy / name, "its sha256 must be .*: it was changed or cut", "Copy .* again"):
        load_predictor(copy, "cpu")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, RECORD, ONNX, CARD, SUMS])
def test_a_missing_file_is_refused(name, copy, refused):
    (copy / name).unlink()
    with refused(copy / name, "there is no such file", "copy the file again"):
        load_predictor(copy, "cpu")


def test_checksums_that_name_no_file_are_refused(copy, refused):
    (copy / SUMS).write_text("what is this\n")
    with refused(copy / SUMS, "not a file of an export", "again"):
        load_predictor(copy, "cpu")
    (copy / SUMS).write_text(f"{'0' * 64}  ../{WEIGHTS}\n")
    with refused(copy / SUMS, "which is no file here", "again"):
        load_predictor(copy, "cpu")
    (copy / SUMS).write_text("")
    with refused(copy / SUMS, f"must hold the sha256 of {WEIGHTS}", "again"):
        load_predictor(copy, "cpu")


def test_the_command_ends_with_one_line_on_a_changed_export(copy, phantom_cohort, tmp_path, capsys):
    flip(copy / WEIGHTS)
    source = read_cohort(phantom_cohort)[-1].source
    assert run("predict", copy, source, "-o", tmp_path / "out.nii") == 1
    message = capsys.readouterr().err
    assert message.startswith(f"distsynth: {copy / WEIGHTS}: its sha256 must be")
    assert message.count("\n") == 1


FIRST = "network.layers.0.weight"


@pytest.mark.parametrize(
    ("changes", "name", "rule"),
    [
        (
            {"weights": reweighted(lambda tensors: tensors.pop(FIRST))},
            WEIGHTS,
            rf"do not fit the configuration \(Missing key.*{FIRST}",
        ),
        (
            {
                "weights": reweighted(
                    lambda tensors: tensors.update({FIRST: torch.zeros(5, 1, 3, 3)})
                )
            },
            WEIGHTS,
            f"do not fit the configuration .size mismatch for {FIRST}",
        ),
        ({"weights": lambda content: content[:100]}, WEIGHTS, "not a file of an export"),
        ({"weights": lambda _: b"\x80\x04K\x01."}, WEIGHTS, "not a file of an export"),
        (
            {"config": edited(lambda values: values.update({"more": 1}))},
            CONFIG,
            "more is not a field of the configuration",
        ),
        (
            {"config": edited(lambda values: values["stitch"].update({"stride": 0}))},
            CONFIG,
            "stitch.stride must be >= 1",
        ),
        ({"config": lambda _: b"\xff"}, CONFIG, "not a file of an export"),
        (
            {"record": edited(lambda values: values["data"].pop("spacing_mm"))},
            RECORD,
            "spacing_mm: Field required",
        ),
        ({"record": edited(lambda values: values.pop("version"))}, RECORD, "'version' is missing"),
        (
            {"record": edited(lambda values: values.update({"version": 9}))},
            RECORD,
            "version 9, this program reads 1",
        ),
    ],
)
def test_a_forged_export_is_refused(changes, name, rule, forged, refused):
    folder = forged(**changes)
    with refused(folder / name, rule, "again"):
        load_predictor(folder, "cpu")


def test_nothing_is_unpickled(made, monkeypatch):
    def failing(*_args, **_options):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", failing)
    monkeypatch.setattr("pickle.load", failing)
    monkeypatch.setattr("pickle.loads", failing)
    predictor = load_predictor(made("conv")[1], "cpu")
    assert not predictor.generator.training
