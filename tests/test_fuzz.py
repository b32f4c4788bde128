"""Whatever a file holds, it is taken, or refused by the program's own errors.

Few examples here; `HYPOTHESIS_PROFILE=thorough pytest tests/test_fuzz.py` tries many.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import damaged, mutated
from tiny_runs import ADVERSARIAL, tiny_config

from distsynth.config import RunConfig, from_json, to_dict, to_json
from distsynth.errors import ConfigError
from distsynth.inference.predictor import load_predictor
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import LAST
from distsynth.sweep.hyperparameters import configure
from distsynth.training.loop import train
from sharding.io.errors import DataError
from sharding.shards.manifest import MANIFEST
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import read_cohort
from sharding.volumes.volume import read_volume
from tune_spaces.named import read_space

COHORT = """specimen,source,target,split
a,a_source.nii.gz,a_target.nii.gz,train
b,b_source.nii.gz,b_target.nii.gz,val
c,c_source.nii.gz,c_target.nii.gz,test
"""
SPACE = {
    "description": "weights",
    "loss.lambda_gradient": {"loguniform": [0.01, 1]},
    "loss.lambda_bce": {"zero_or_log": [0.01, 1], "zero": 0.3},
    "optim.lr_generator": {"choice": [1e-3, 1e-4]},
    "train.batch_size": {"randint": [4, 16]},
}
# A fixture's folder is written over by each example.
fuzzed = settings(suppress_health_check=list(HealthCheck), print_blob=False)


@contextlib.contextmanager
def own_errors_only() -> Iterator[None]:
    """Pass over the program's own errors; warnings of libraries about odd files are no failures."""
    with warnings.catch_warnings(), contextlib.suppress(DataError, ConfigError):
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def nifti() -> bytes:
    """A small NIfTI file."""
    data = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    image = nibabel.Nifti1Image(data, np.diag([0.5, 0.5, 0.5, 1]))
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()


@pytest.fixture(scope="module")
def shards(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set whose manifest may be written over."""
    folder = tmp_path_factory.mktemp("fuzzed") / "shards"
    shutil.copytree(shard_folder, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_config(shard_folder, ADVERSARIAL, {"train.epochs": 1}), folder)
    return folder / LAST


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_headers(suffix, data, nifti, tmp_path):
    content = data.draw(damaged(nifti, end=352))
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(gzip.compress(content, 1) if suffix.endswith(".gz") else content)
    with own_errors_only():
        volume = read_volume(path)
        assert np.isfinite(volume.affine).all()
        assert np.asarray(volume.data).ndim == 3


@fuzzed
@given(data=st.data())
def test_compressed_files(data, nifti, tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(data.draw(damaged(gzip.compress(nifti, 1))))
    with own_errors_only():
        np.asarray(read_volume(path).data)


@fuzzed
@given(data=st.data())
def test_manifests(data, shard_folder, shards):
    right = json.loads((shard_folder / MANIFEST).read_text())
    text = json.dumps(data.draw(mutated(right)))
    if data.draw(st.integers(0, 4)) == 0:
        text = data.draw(damaged(text.encode())).decode(errors="replace")
    (shards / MANIFEST).write_text(text, encoding="utf-8", errors="replace")
    with own_errors_only():
        ShardSet(shards)


@fuzzed
@given(data=st.data())
def test_checkpoints(data, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    file = io.BytesIO()
    torch.save(data.draw(mutated(state)), file)
    path = tmp_path / "last.pt"
    path.write_bytes(file.getvalue())
    with own_errors_only():
        load_predictor(path, "cpu")


@fuzzed
@given(data=st.data())
def test_damaged_checkpoints(data, checkpoint, tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(data.draw(damaged(checkpoint.read_bytes())))
    with own_errors_only():
        load_checkpoint(path)


@fuzzed
@given(data=st.data())
def test_configurations(data):
    right = to_dict(tiny_config(Path("shards"), ADVERSARIAL))
    text = json.dumps(data.draw(mutated(right)))
    if data.draw(st.integers(0, 4)) == 0:
        text = data.draw(damaged(text.encode())).decode(errors="replace")
    with own_errors_only():
        config = from_json(text)
        assert from_json(to_json(config)) == config


@fuzzed
@given(data=st.data())
def test_spaces(data, tmp_path):
    path = tmp_path / "space.yaml"
    text = yaml.safe_dump(data.draw(mutated(SPACE)))
    if data.draw(st.integers(0, 2)) == 0:
        text = data.draw(damaged(text.encode())).decode(errors="replace")
    path.write_text(text, encoding="utf-8", errors="replace")
    # Spaces know nothing of the program: a ValueError that names the file is their own error.
    try:
        space = read_space(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    with own_errors_only():
        first = {field: domain.sample(random_state=0) for field, domain in space.items()}
        configure(RunConfig(), first)


@fuzzed
@given(data=st.data())
def test_cohorts(data, tmp_path):
    (tmp_path / "cohort.csv").write_bytes(data.draw(damaged(COHORT.encode())))
    with own_errors_only():
        read_cohort(tmp_path / "cohort.csv")
