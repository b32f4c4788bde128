"""A checkpoint whose weights are the mean of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import ADVERSARIAL, BATCH_NORM, tiny_config

from distsynth.api import evaluate
from distsynth.cli.main import main
from distsynth.errors import ConfigError
from distsynth.export.export import CARD, write_export
from distsynth.inference.averaging import AVERAGE_OF, average_checkpoints
from distsynth.inference.predictor import load_predictor
from distsynth.runs.checkpoint import load_checkpoint, save_checkpoint
from distsynth.runs.folder import BEST, LAST, epoch_checkpoint
from distsynth.training.loop import train
from sharding.volumes.cohort import read_cohort

pytestmark = pytest.mark.slow
AVERAGED = {"train.keep_epochs": 2, "optim.average": 0.5}


@pytest.fixture(scope="module")
def run(shard_folder, tmp_path_factory) -> Path:
    """A run of two epochs, with the checkpoint of each."""
    config = tiny_config(shard_folder, ADVERSARIAL, BATCH_NORM, AVERAGED)
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def epochs(run) -> list[Path]:
    return [run / epoch_checkpoint(number) for number in (1, 2)]


@pytest.fixture(scope="module")
def averaged(epochs, tmp_path_factory) -> Path:
    return average_checkpoints(epochs, tmp_path_factory.mktemp("averages") / "averaged")


def test_the_average_of_one_is_that_one_to_the_bit(epochs, tmp_path):
    average_checkpoints([epochs[0]], tmp_path / "out")
    found, given = load_checkpoint(tmp_path / "out" / BEST), load_checkpoint(epochs[0])
    assert found.weights().keys() == given.weights().keys()
    assert all(torch.equal(value, given.weights()[name]) for name, value in found.weights().items())
    assert (found.config, found.data, found.position) == (given.config, given.data, given.position)


def test_the_average_of_two_is_their_arithmetic_mean(epochs, averaged):
    found = load_checkpoint(averaged / BEST)
    one, two = (load_checkpoint(path).weights() for path in epochs)
    statistics = 0
    for name, value in found.weights().items():
        if not value.is_floating_point():
            # BatchNorm's count of batches.
            assert int(value) == int(two[name]) > int(one[name])
            continue
        expected = (one[name].double().numpy() + two[name].double().numpy()) / 2
        np.testing.assert_array_equal(value.numpy(), expected.astype(np.float32))
        assert not torch.equal(one[name], two[name])
        statistics += name.endswith(("running_mean", "running_var"))
    assert statistics == 2
    assert list(found.learners) == ["generator"]


def test_the_record_says_what_it_was_made_of(epochs, averaged):
    parts = load_checkpoint(averaged / BEST).record[AVERAGE_OF]
    assert [(part["name"], part["epoch"], part["step"]) for part in parts] == [
        ("one", 1, 5),
        ("one", 2, 10),
    ]
    assert len({part["weights_sha256"] for part in parts}) == 2
    assert load_checkpoint(averaged / BEST).position == load_checkpoint(epochs[1]).position


def test_it_predicts_is_evaluated_and_exported(averaged, phantom_cohort, tmp_path):
    source = read_cohort(phantom_cohort)[-1].source
    synthetic = load_predictor(averaged, "cpu").predict(source).data
    export = write_export(averaged, tmp_path / "export", onnx=False)
    again = load_predictor(export, "cpu").predict(source).data
    np.testing.assert_array_equal(synthetic, again)
    assert (
        "mean of 2 checkpoints, of each averaged over steps, decay 0.5; after steps 5 (seed 0)"
        in (export / CARD).read_text()
    )
    results = evaluate([averaged], read_cohort(phantom_cohort), device="cpu").results
    assert "averaged" in results
    # An export of one part may stand in for it.
    whole = average_checkpoints([export, averaged], tmp_path / "both")
    for name, value in load_checkpoint(whole / BEST).weights().items():
        assert torch.equal(value, load_checkpoint(averaged / BEST).weights()[name])


def test_a_run_can_start_from_it(averaged, shard_folder, tmp_path):
    config = tiny_config(
        shard_folder, BATCH_NORM, {"train.start_from": str(averaged), "train.epochs": 1}
    )
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / LAST).is_file()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"generator.channels": (6,)}, r"generator\.channels must be as in .*, \(4,\), got \(6,\)"),
        (
            {"generator.norm": "instance"},
            r"generator\.norm must be as in .*'batch', got 'instance'",
        ),
    ],
    ids=["channels", "norm"],
)
def test_another_architecture_is_refused_by_its_field(
    epochs, shard_folder, tmp_path, refused, change, field
):
    train(tiny_config(shard_folder, BATCH_NORM, change, {"train.epochs": 1}), tmp_path / "other")
    with refused(tmp_path / "other", field, "of one architecture that were trained on the same"):
        average_checkpoints([epochs[0], tmp_path / "other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_data_are_refused_by_their_field(epochs, tmp_path, refused):
    given = load_checkpoint(epochs[1])
    other = replace(given, data=replace(given.data, manifest_sha256="0" * 64))
    save_checkpoint(tmp_path / "other.pt", other)
    with refused(tmp_path / "other.pt", "data: manifest_sha256 must be as in", "the same shards"):
        average_checkpoints([epochs[0], tmp_path / "other.pt"], tmp_path / "out")


def test_the_command(epochs, averaged, tmp_path, capsys):
    out = tmp_path / "averaged"
    words = ["average", *map(str, epochs), "-o", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert (out / BEST).read_bytes() == (averaged / BEST).read_bytes()
    assert main(words) == 1
    assert main([*words, "--overwrite"]) == 0
    with pytest.raises(ConfigError, match="name at least one checkpoint"):
        average_checkpoints([], tmp_path / "none")
