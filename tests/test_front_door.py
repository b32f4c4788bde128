from __future__ import annotations

import ast
import inspect
import json
import logging
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ray import tune
from tiny_runs import tiny_config

import distsynth as ds
from distsynth.prediction.file import predict_file
from sharding.volumes.cohort import read_cohort as original

HEAVY = {"torch", "ray", "wandb", "accelerate", "pandas", "numpy", "scipy", "nibabel", "tqdm"}


def test_importing_loads_nothing_large():
    code = f"import distsynth, json, sys; print(json.dumps(sorted({HEAVY} & set(sys.modules))))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == []


def test_every_name_is_there_documented_and_listed():
    assert ds.__all__ == sorted(ds.__all__)
    for name in ds.__all__:
        value = getattr(ds, name)
        assert inspect.getdoc(value), name
        assert value.__name__ == name
        assert name in dir(ds)
    assert ds.read_cohort is original
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        ds.trian  # noqa: B018


def test_type_checkers_see_the_names_that_the_interpreter_finds():
    tree = ast.parse(Path(ds.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == ds._PLACES
    assert sorted(seen) == ds.__all__


@pytest.mark.parametrize("package", ["distsynth", "sharding", "tune_spaces"])
def test_packages_are_typed(package):
    assert (files(package) / "py.typed").is_file()


def test_functions_take_few_arguments_by_position():
    for name in ds.__all__:
        value = getattr(ds, name)
        if inspect.isfunction(value):
            kinds = [p.kind for p in inspect.signature(value).parameters.values()]
            assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 5, name


@pytest.fixture(scope="module")
def run(shard_folder, tmp_path_factory):
    return ds.train(tiny_config(shard_folder), tmp_path_factory.mktemp("front") / "run")


def test_a_predictor_takes_a_path_or_a_volume(run, phantom_cohort, tmp_path):
    source = ds.read_cohort(phantom_cohort)[0].source
    predictor = ds.load_predictor(run.best)
    from_path = predictor.predict(str(source))
    from_volume = predictor.predict(ds.read_volume(source))
    written = ds.read_volume(predict_file(predictor, source, tmp_path / "out.nii"))
    for found in (from_path, from_volume):
        assert found.shape == (40, 36, 32)
        np.testing.assert_array_equal(found.data, written.data)
        np.testing.assert_allclose(found.affine, written.affine, atol=1e-6)
    like = predictor.predict(source, like=source)
    assert like.shape == ds.read_volume(source).shape


def test_a_volume_that_is_too_small_is_refused(run, refused):
    tiny = ds.Volume(np.random.default_rng(0).random((4, 4, 4), np.float32), np.eye(4) * 0.4)
    with refused("source", "stitch", "larger volume"):
        ds.load_predictor(run.best).predict(tiny)


@pytest.mark.slow
def test_an_evaluation_is_a_frame(run, phantom_cohort, tmp_path):
    specimens = ds.read_cohort(phantom_cohort)
    found = ds.evaluate(run.best, specimens, tmp_path / "evaluation")
    frame = found.frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.names == ["method", "specimen"]
    assert set(frame.index.get_level_values("method")) >= {"identity", "cubic", "run"}
    for (method, specimen), row in frame.iterrows():
        assert row.to_dict() == pytest.approx(found.results[method][specimen], nan_ok=True)
    assert (tmp_path / "evaluation" / "report.html").is_file()
    named = {"mine": ds.load_predictor(run.best)}
    again = ds.evaluate(named, phantom_cohort, stitching={"trim": 1}).frame()
    assert again.loc["cubic"].equals(frame.loc["cubic"])
    assert not again.loc["mine"].equals(frame.loc["run"])


def test_evaluate_refuses_what_it_cannot_do(run, phantom_cohort):
    with pytest.raises(ds.ConfigError, match="name at least one checkpoint"):
        ds.evaluate([], phantom_cohort)
    with pytest.raises(ds.ConfigError, match="two checkpoints are named run"):
        ds.evaluate([run.best, run.run_dir], phantom_cohort)
    with pytest.raises(ds.ConfigError, match="save_volumes needs a folder"):
        ds.evaluate(run.best, phantom_cohort, save_volumes=True)


def test_a_report(run, tmp_path):
    page = ds.write_report(run.run_dir, tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert "<html" in page.read_text()


def test_phantoms_simulation_and_shards(tmp_path):
    specimens = ds.make_phantoms(tmp_path / "cohort", specimens=3, shape=(24, 24, 20))
    assert [specimen.name for specimen in specimens] == ["phantom-00", "phantom-01", "phantom-02"]
    config = ds.SimulationConfig(factor=4)
    again = ds.simulate(tmp_path / "cohort", tmp_path / "simulated", config)
    assert again[0].source
    assert ds.read_volume(again[0].source).shape == (6, 6, 5)
    cut = ds.ShardConfig(patch_size=(8, 8), stride=4, patches_per_specimen=8, val_slices=2)
    shards = ds.shard(specimens, tmp_path / "shards", cut)
    assert isinstance(shards, ds.ShardSet)
    assert shards.manifest.patches("train") == 8


def test_a_configuration_from_a_preset_or_a_file(tmp_path, refused):
    config = ds.load_config("small", {"train.epochs": 3})
    assert config.train.epochs == 3
    assert isinstance(config, ds.RunConfig)
    with refused("none.json", "does not exist", "Check the path"):
        ds.load_config(tmp_path / "none.json")
    with pytest.raises(ds.ConfigError, match="did you mean small"):
        ds.load_config("smal")


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_is_a_frame(shard_folder, tmp_path):
    space = {"loss.lambda_gradient": tune.uniform(0, 1)}
    result = ds.run_sweep(
        "tiny", tiny_config(shard_folder), space, ds.SweepConfig(trials=2), storage=tmp_path
    )
    assert result.complete
    frame = result.frame()
    assert list(frame["rank"]) == [1, 2]
    assert frame["loss.lambda_gradient"].between(0, 1).all()
    again = ds.run_sweep(
        "tiny",
        tiny_config(shard_folder),
        space,
        ds.SweepConfig(trials=2),
        storage=tmp_path,
        resume=True,
    )
    assert again.frame().equals(frame)


def test_a_sweep_needs_a_name_and_a_space(shard_folder, tmp_path):
    config = tiny_config(shard_folder)
    with pytest.raises(ds.ConfigError, match="name of a sweep"):
        ds.run_sweep("a/b", config, {}, storage=tmp_path)
    with pytest.raises(ds.ConfigError, match="not a search space"):
        ds.run_sweep("one", config, ["los-weights"], storage=tmp_path)


def test_the_loop_speaks_through_logging(shard_folder, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO, "distsynth")
    ds.train(tiny_config(shard_folder), tmp_path / "run")
    assert any(message.startswith("epoch 2/2: PSNR") for message in caplog.messages)
    assert capsys.readouterr().err == ""
