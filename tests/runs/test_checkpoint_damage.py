"""A checkpoint that is not what it should be gives one error that names the file."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config

from distsynth.inference.predictor import load_predictor
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import LAST
from distsynth.training.loop import train
from sharding.io.errors import DataError


@pytest.fixture(scope="module")
def run_dir(shard_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "run"
    train(tiny_config(shard_folder, {"train.epochs": 1}), folder)
    return folder


@pytest.fixture
def state(run_dir):
    return torch.load(run_dir / LAST, weights_only=True)


UNREADABLE = {
    "no learners": lambda state: state.update(learners=None),
    "a learner that is none": lambda state: state["learners"].update(generator=None),
    "weights that are none": lambda state: state["learners"]["generator"].update(network={"a": 1}),
    "no position": lambda state: state.pop("position"),
    "a position in words": lambda state: state["position"].update(step="five"),
    "random states of another kind": lambda state: state.update(random=[1, 2]),
    "no record": lambda state: state.update(record=[]),
    "a step below zero": lambda state: state["position"].update(step=-1),
    "a spacing of zero": lambda state: state["data"].update(spacing_mm=[0.2, 0.0, 0.2]),
    "a spacing of NaN": lambda state: state["data"].update(spacing_mm=[0.2, np.nan, 0.2]),
    "a negative spacing": lambda state: state["data"].update(spacing_mm=[0.2, 0.2, -0.2]),
    "a spacing of kilometres": lambda state: state["data"].update(spacing_mm=[1e6, 1e6, 1e6]),
    "two spacings": lambda state: state["data"].update(spacing_mm=[0.2, 0.2]),
    "axes of nowhere": lambda state: state["data"].update(orientation="RLS"),
    "percentiles that fall": lambda state: state["data"]["preprocess"].update(
        clip_percentiles=[99, 1]
    ),
    "another version": lambda state: state.update(version=0),
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_what_is_no_checkpoint_is_refused(state, damage, tmp_path, refused):
    UNREADABLE[damage](state)
    path = tmp_path / "bad.pt"
    torch.save(state, path)
    with refused(path, "not a checkpoint that can be read", "another checkpoint"):
        load_checkpoint(path)


RESUMED = {
    "no optimizer": lambda state: state["learners"]["generator"].pop("optimizer"),
    "bad python state": lambda state: state["random"][0].update(python=(3, (1, 2), None)),
    "bad numpy state": lambda state: state["random"][0].update(numpy=["MT19937"]),
    "bad torch state": lambda state: state["random"][0].update(torch=torch.zeros(3)),
    "no random state": lambda state: state["random"][0].clear(),
    "no sums": lambda state: state["record"].pop("sums"),
    "bad reports": lambda state: state["record"].update(reports=[{"epoch": 1}]),
}


@pytest.mark.parametrize("damage", RESUMED)
def test_what_cannot_be_resumed_is_refused(shard_folder, state, damage, tmp_path, refused):
    RESUMED[damage](state)
    (tmp_path / LAST).parent.mkdir()
    torch.save(state, tmp_path / LAST)
    with refused(tmp_path / LAST, "not the state of a run that can be resumed", "--overwrite"):
        train(tiny_config(shard_folder), tmp_path, resume=True)


def test_a_file_that_unpacks_to_more_than_its_size_is_refused(run_dir, tmp_path, refused):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(run_dir / LAST) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in parts.items():
            bomb.writestr(name, content)
        bomb.writestr("archive/data/99", bytes(2**24))
    with refused(path, "unpacks to 1[67][0-9]{6} bytes", "another checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(state, value, tmp_path):
    network = state["learners"]["generator"]["network"]
    first, *_ = network
    network[first].view(-1)[0] = value
    path = tmp_path / "bad.pt"
    torch.save(state, path)
    with pytest.raises(DataError, match=f"the weights must be finite, {first} are not"):
        load_predictor(path)


def test_a_prediction_that_is_not_finite_is_refused(run_dir):
    predictor = load_predictor(run_dir)
    with torch.no_grad():
        next(predictor.generator.parameters()).fill_(3e38)
    source = np.ones((20, 20, 20), np.float32)
    with pytest.raises(FloatingPointError, match=r"my scan: 8000 of 8000 predicted voxels"):
        predictor(source, title="my scan", quiet=True)
