from __future__ import annotations

import getpass
import importlib.util
import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from exports import FAMILIES, run

import distsynth.export.onnx
from distsynth.evaluation.baselines import Cubic, Identity
from distsynth.evaluation.evaluate import evaluate
from distsynth.export.export import CARD, ONNX
from distsynth.export.model_card import INTENSITIES, UNKNOWN, model_card
from distsynth.export.onnx import TOLERANCE, compare
from distsynth.inference.predictor import load_predictor, run_dir_of
from distsynth.metrics.results import RESULTS_FILE, results_json, results_table
from distsynth.models import parameter_count
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import BEST
from distsynth.runs.package import (
    CONFIG,
    RECORD,
    SUMS,
    WEIGHTS,
    export_files,
    is_export,
    read_export,
)
from sharding.volumes.cohort import read_cohort
from sharding.volumes.config import Intensities
from sharding.volumes.volume import read_volume


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_export_predicts_the_same_voxels(family, made, phantom_cohort, tmp_path, capsys):
    checkpoint, folder = made(family)
    source = read_cohort(phantom_cohort)[-1].source
    found = []
    for name, model in (("one", checkpoint), ("two", folder)):
        out = tmp_path / f"{name}.nii"
        assert run("predict", model, source, "-o", out, "--device", "cpu") == 0
        found.append(out.read_bytes())
        data = read_volume(out).data
        assert data.std() > 1e-3, "something was predicted"
    assert found[0] == found[1]
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'two.nii'}\n")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_gives_what_the_network_gives(family, made):
    _, folder = made(family)
    predictor = load_predictor(folder, "cpu")
    data, multiple = predictor.checkpoint.config.data, predictor.generator.multiple
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    others = [multiple * (factor + 2) for factor in range(len(data.patch_size))]
    for batch, sides in ((5, data.patch_size), (2, others), (1, others[::-1])):
        source = np.random.default_rng(2).normal(size=(batch, data.channels, *sides))
        source = source.astype(np.float32)
        with torch.inference_mode():
            expected = predictor.generator(torch.from_numpy(source)).numpy()
        (found,) = session.run(["synthetic"], {"source": source})
        assert found.shape == (batch, 1, *sides)
        assert expected.std() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_names_the_machine_its_user_or_a_specimen(family, made, phantom_cohort):
    checkpoint, folder = made(family)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {WEIGHTS, CONFIG, RECORD, ONNX, CARD, SUMS}
    here = [Path.home(), Path.cwd(), Path(torch.__file__).parent, checkpoint.parents[2]]
    specimens = [specimen.name for specimen in read_cohort(phantom_cohort)]
    secret = [str(path) for path in here] + specimens + ["secret-name", "someone", ".py"]
    for name, content in files.items():
        for word in secret:
            assert word.encode() not in content, f"{word} in {name}"
    names = {socket.gethostname(), socket.getfqdn(), getpass.getuser()}
    for name in (CONFIG, RECORD, CARD, SUMS):
        text = files[name].decode()
        assert not re.search(r"(?<![\w/])/\w|[A-Z]:\\|~/", text), f"a path in {name}"
        for word in names:
            assert not re.search(rf"\b{re.escape(word)}\b", text), f"{word} in {name}"


def test_the_card_has_its_facts(made, trained):
    _, folder = made("conv")
    card = (folder / CARD).read_text()
    generator = load_predictor(folder, "cpu").generator
    report = trained.record["reports"][-1]
    assert report["epoch"] == trained.position.epoch
    for fact in (
        f"- parameters: {parameter_count(generator):,}\n",
        "- family: conv\n",
        "- channels: 4\n- kernels: 3\n",
        "- residual (the source is added to the output): yes\n",
        f"- fingerprint: {trained.data.manifest_sha256} ",
        "- specimens: 3 train, 1 val, 1 test\n",
        "- training sources: 3 scans, RAS\n- their voxel size: 0.4 x 0.4 x 0.4 mm",
        f"- their preparation: {UNKNOWN}\n",
        f"- epochs: {trained.position.epoch} of 2\n",
        f"- optimizer steps: {trained.position.step}\n",
        "- losses: 0.1 x adversarial (binary cross-entropy) + 1 x reconstruction (mean absolute "
        "difference) + 0.5 x gradient difference\n",
        "- discriminator: family conv, ",
        "- optimizer: AdamW, betas 0.9 and 0.999, weight decay 0\n",
        "- learning rate: 0.01 (generator), 0.001 (discriminator), constant, 0 steps of warm-up\n",
        "- seed: 0\n",
        f"torch {torch.__version__}",
        f"onnxruntime {onnxruntime.__version__}",
        f"better: {trained.record['best_score']:.6g}.",
        f"| psnr | {report['metrics']['val/psnr']:.6g} |",
        "Not known: no evaluation was given",
        "- stride: 8 voxels\n",
        f"- tolerance: {TOLERANCE:g} of the largest output",
        "random normal input of 1x1x16x16, 3x1x16x16, 1x1x17x16, 1x1x16x18",
        "Not for diagnosis",
        "Synthetic detail is not measured detail",
        "distsynth predict . scan.nii.gz",
    ):
        assert fact in card, fact
    measured = re.search(r"- largest difference: (\S+) standardised units", card)
    assert measured is not None
    assert 0 <= float(measured[1]) <= TOLERANCE * 100
    assert card.count(UNKNOWN) == 4, card
    assert not re.search(r"\b(nan|None|TODO|TBD|\?\?)\b|\{\}|<[a-z]", card)


@pytest.mark.parametrize("mode", get_args(Intensities))
def test_the_card_says_how_intensities_are_scaled(mode, made):
    path, folder = made("conv")
    checkpoint = load_checkpoint(path)
    preprocess = replace(checkpoint.data.preprocess, intensities=mode)
    checkpoint = replace(checkpoint, data=replace(checkpoint.data, preprocess=preprocess))
    card = model_card(checkpoint, load_predictor(folder, "cpu").generator, b"", {})
    assert f"- intensities: scaled to [0, 1], then {INTENSITIES[mode]}\n" in card
    assert ("zero mean" in card) == (mode in ("standardise", "foreground"))


def test_a_card_of_an_untrained_network_says_what_is_not_known(made):
    card = (made("unet")[1] / CARD).read_text()
    assert "better: not known." in card
    assert "at this very checkpoint: not known" in card
    assert f"- ranks: {UNKNOWN}\n" in card
    assert "not divisible by 4 give an error" in card
    assert "- input `source`: batch x 1 x 4*side_0 x 4*side_1, float32" in card


def test_evaluate_takes_an_export_and_the_card_takes_the_evaluation(
    made, run_dir, phantom_cohort, tmp_path
):
    _, folder = made("conv")
    predictors = {run_dir_of(path).name: load_predictor(path, "cpu") for path in (folder, run_dir)}
    specimens = read_cohort(phantom_cohort)
    # Without what is fitted, and without pictures: those take most of the time of the command.
    found = evaluate(predictors, specimens, baselines=[Identity(), Cubic()])
    evaluated = tmp_path / "evaluated"
    evaluated.mkdir()
    (evaluated / RESULTS_FILE).write_text(results_json(results_table(found.results)))
    methods = json.loads((evaluated / RESULTS_FILE).read_text())["methods"]
    assert methods["conv"]["specimens"] == methods["secret-name"]["specimens"]

    out = tmp_path / "export"
    command = ["export", run_dir, "-o", out, "--no-onnx", "--evaluation", evaluated]
    assert run(*command) == 0
    card = (out / CARD).read_text()
    assert "| metric | better | this model | identity | cubic |\n" in card
    psnr = methods["secret-name"]["summary"]["psnr_mask"]["mean"]
    row = re.escape("| PSNR, mask (dB, peak = range of the target) | higher | ")
    assert re.search(rf"{row}{psnr:.2f}( \(.+ to .+\))? \|", card)
    assert "Evaluated specimens by split: 1 test." in card
    assert "secret-name" not in card
    assert "- input" not in card
    assert not (out / ONNX).exists()
    assert run(*command, "--overwrite", "--row", "conv") == 0
    assert (out / CARD).read_text() == card


def test_an_evaluation_without_the_model_is_refused(run_dir, tmp_path, capsys):
    (tmp_path / RESULTS_FILE).write_text(
        json.dumps({"methods": {"cubic": {"specimens": {"a": {"psnr_mask": 20.0}}}}})
    )
    command = ["export", run_dir, "-o", tmp_path / "out", "--no-onnx", "--evaluation"]
    assert run(*command, tmp_path) == 1
    assert (
        "no model of the name secret-name was evaluated there, but cubic" in capsys.readouterr().err
    )
    assert run(*command, tmp_path / "none") == 1
    assert "results.json: there is no such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_the_record_keeps_splits_without_names(made, trained):
    _, folder = made("conv")
    found = read_export(folder)
    assert found.position == trained.position
    assert found.data == trained.data.anonymous() == found.data.anonymous()
    assert replace(found.data, splits={}) == replace(trained.data, splits={})
    assert not set(found.data.splits) & set(trained.data.splits)
    for name, split in trained.data.splits.items():
        assert found.data.split_of(name) == trained.data.split_of(name) == split
    assert found.data.split_of("unheard-of") == trained.data.split_of("unheard-of") == "test"
    config = json.loads((folder / CONFIG).read_text())
    assert "tracking" not in config
    assert "shards" not in config["data"]
    assert "vgg_weights" not in config["loss"]


def test_weights_are_those_of_the_generator_to_the_bit(made, trained):
    found = safetensors.torch.load_file(made("conv")[1] / WEIGHTS)
    expected = trained.learners["generator"]["network"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert export_files(trained) == export_files(trained)


def test_an_export_is_told_from_a_run(made, run_dir, copy):
    _, folder = made("conv")
    assert is_export(folder)
    assert run_dir_of(folder) == folder.resolve()
    assert not is_export(run_dir)
    assert not is_export(run_dir / BEST)
    (copy / RECORD).unlink()
    assert is_export(copy)


def test_only_an_export_is_replaced(made, run_dir, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / WEIGHTS).write_bytes(b"precious")
    command = ["export", run_dir, "--no-onnx", "-o"]
    assert run(*command, foreign) == 1
    assert "exists already" in capsys.readouterr().err
    assert run(*command, foreign, "--overwrite") == 1
    assert f"holds no {RECORD}" in capsys.readouterr().err
    assert (foreign / WEIGHTS).read_bytes() == b"precious"
    assert run(*command, tmp_path / "out") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert run(*command, tmp_path / "out") == 1
    (tmp_path / "out" / "more").touch()
    assert run(*command, tmp_path / "out", "--overwrite") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        {WEIGHTS, CONFIG, RECORD, CARD, SUMS}
    )
    assert run(*command, tmp_path / "again", "--no-onnx") == 0
    capsys.readouterr()
    assert run("export", made("conv")[1], "-o", tmp_path / "twice") == 1
    assert "this is an export already. Copy the folder." in capsys.readouterr().err


def test_an_onnx_model_that_differs_is_refused(made, run_dir, tmp_path, monkeypatch, capsys):
    """That of the same network with one weight changed by 0.01."""
    proto = onnx.load(made("conv")[1] / ONNX)
    weight = next(part for part in proto.graph.initializer if len(part.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    generator = load_predictor(run_dir, "cpu").generator
    with pytest.raises(
        ValueError, match=r"must agree with PyTorch within 0\.0001 .* it differs by"
    ):
        compare(proto.SerializeToString(), generator, [(1, 1, 16, 16)])
    monkeypatch.setattr(distsynth.export.onnx, "_translated", lambda *_: proto)
    assert run("export", run_dir, "-o", tmp_path / "out") == 1
    assert "model.onnx: must agree with PyTorch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_optional_packages(run_dir, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    assert run("export", run_dir, "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "with onnxscript, which" in message
    assert 'pip install "distsynth[onnx]", or give --no-onnx' in message
    assert not list(tmp_path.iterdir())
    assert run("export", run_dir, "-o", tmp_path / "out", "--no-onnx") == 0
    card = (tmp_path / "out" / CARD).read_text()
    assert "None: exported with `--no-onnx`." in card
