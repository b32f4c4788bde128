from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import Ended, cli, done
from killed_commands import command_on_a_small_disk
from tiny_runs import PLAIN, start, tiny_config

import distsynth.cli.main
from distsynth.config import from_json, to_json, with_overrides
from distsynth.errors import ConfigError
from distsynth.models import GENERATOR_FAMILIES
from distsynth.presets import PRESETS
from distsynth.runs.folder import BEST, CONFIG_FILE, METRICS_FILE
from sharding.io.errors import DataError
from sharding.io.interruption import Interrupted
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import read_cohort
from sharding.volumes.volume import read_volume

LAST_FAMILY = list(GENERATOR_FAMILIES)[-1]
COMMANDS = tuple(distsynth.cli.main.COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands below work one after the other."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def phantoms(folder):
    ended = done("phantom", folder / "phantoms", "--specimens", 5, "--shape", 40, 36, 32)
    assert ended.out == f"{folder / 'phantoms' / 'cohort.csv'}\n"
    return folder / "phantoms"


@pytest.fixture(scope="module")
def shards(folder, phantoms):
    out = folder / "shards"
    options = "--patch-size 16 16 --patches-per-specimen 40 --stride 8 --val-slices 4 --workers 1"
    ended = done("shard", phantoms, "--out", out, *options.split())
    assert ended.out == f"{out}\n"
    assert "train: 3 specimens, 120 patches" in ended.err
    return out


@pytest.fixture(scope="module")
def run_dir(folder, shards):
    config = folder / "config.json"
    config.write_text(to_json(tiny_config(shards)))
    ended = done("train", config, "-o", folder / "run", "--loss.lambda-gradient", "0.5")
    assert ended.out == f"{folder / 'run' / BEST}\n"
    assert "epoch 2/2" in ended.err
    return folder / "run"


@pytest.fixture(scope="module")
def held_out(phantoms, shards):
    (name,) = ShardSet(shards).manifest.names("test")
    return next(row for row in read_cohort(phantoms) if row.name == name)


@pytest.mark.slow
def test_training_took_the_file_and_the_options(run_dir, shards):
    found = from_json((run_dir / CONFIG_FILE).read_text())
    more = {"loss.lambda_gradient": 0.5, "data.neighbours": 0}
    assert found == with_overrides(tiny_config(shards), more)
    assert (run_dir / METRICS_FILE).is_file()


def test_training_a_preset_with_options_and_resuming(folder, shards):
    out = folder / "from preset"
    options = [f"--data.shards={shards}", "--stitch.stride", 8]
    options += ["--generator.channels", 4, "--generator.kernels", 3, "--stitch.trim", 0]
    options += ["--discriminator.channels", 4, "--tracking.mode", "disabled"]
    options += ["--train.batch-size", 40, "--train.device", "cpu", "--optim.schedule", "constant"]
    one = done("train", "small", "--run-dir", out, *options, "--train.epochs", 1)
    two = done("train", "small", "--run-dir", out, *options, "--train.epochs", 2, "--resume")
    assert one.out == two.out == f"{out / BEST}\n"
    assert "resuming from step 3" in two.err
    found = from_json((out / CONFIG_FILE).read_text())
    assert found.generator.residual == PRESETS["small"].generator.residual
    assert found.generator.channels == (4,)
    assert (found.data.patch_size, found.data.neighbours) == ((16, 16), 0)
    refused = cli("train", "small", "--run-dir", out, *options)
    assert refused.status == 1
    assert "holds a run already" in refused.err
    assert refused.out == ""


def test_simulate(folder, phantoms):
    out = folder / "simulated"
    ended = done("simulate", phantoms, "--out", out, "--factor", 2, "--noise", 0.01)
    assert ended.out == f"{out / 'cohort.csv'}\n"
    assert len(read_cohort(out)) == 5
    assert cli("simulate", phantoms, "--out", out).status == 1


def test_predict(folder, run_dir, held_out):
    out = folder / "synthetic.nii.gz"
    args = ["predict", run_dir / BEST, held_out.source, "-o", out]
    ended = done(*args)
    assert ended.out == f"{out}\n"
    plain = read_volume(out)
    assert plain.shape == (40, 36, 32)
    assert cli(*args).status == 1
    done(*args, "--overwrite", "--stitch.trim", 2, "--stitch.axes", 0, 1, 2)
    assert not np.array_equal(read_volume(out).data, plain.data)
    bad = cli(*args, "--overwrite", "--stitch.trim", 7)
    assert bad.status == 2
    assert "stitch.trim must be" in bad.err


@pytest.mark.slow
@pytest.mark.parametrize("form", ["checkpoint", "inside"])
def test_evaluate(form, folder, phantoms, run_dir, held_out, monkeypatch):
    out = folder / f"evaluated by {form}"
    given = {"checkpoint": run_dir / BEST, "inside": Path()}[form]
    if form == "inside":
        monkeypatch.chdir(run_dir)
    ended = done("evaluate", given, "--cohort", phantoms, "-o", out, "--save-volumes")
    table, page, verdict = ended.out.rstrip().rsplit("\n", 2)
    assert verdict.startswith("Too few specimens to tell: on a single one run differs from ")
    assert table.startswith(verdict)
    assert page == str(out / "report.html")
    assert table.strip() == (out / "table.txt").read_text().strip()
    assert "run" in json.loads((out / "results.json").read_text())["methods"]
    assert held_out.name in table
    assert (out / "report.html").is_file()
    assert [path.name for path in (out / "volumes").iterdir()] == [f"{held_out.name}_run.nii.gz"]
    again = cli("evaluate", given, "--cohort", phantoms, "-o", out)
    assert again.status == 1
    assert "exists already" in again.err


def test_evaluate_leaves_nothing_when_it_fails(folder, phantoms, run_dir, monkeypatch):
    def failing(*_):
        raise OSError("disk full")

    monkeypatch.setattr("distsynth.reporting.evaluation_files.write_evaluation", failing)
    before = sorted(folder.iterdir())
    args = ["--cohort", phantoms, "-o", folder / "failed", "--save-volumes"]
    ended = cli("evaluate", run_dir, *args)
    assert (ended.status, ended.out) == (1, "")
    assert "disk full" in ended.err
    assert sorted(folder.iterdir()) == before


def test_evaluate_refuses_nothing_and_two_of_a_name(folder, phantoms, run_dir):
    out = folder / "never"
    ended = cli("evaluate", "--cohort", phantoms, "-o", out)
    assert ended.status == 2
    ended = cli("evaluate", run_dir, run_dir / BEST, "--cohort", phantoms, "-o", out)
    assert ended.status == 2
    assert "two checkpoints are named run" in ended.err
    assert not out.exists()


def test_usage_and_version():
    for flag in ("-h", "--help"):
        ended = done(flag)
        assert all(command in ended.out for command in COMMANDS)
    assert cli().status == 2
    assert done("--version").out.strip()
    ended = cli("trian")
    assert ended.status == 2
    assert "no command trian" in ended.err
    assert ended.out == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train"], "name a preset or a configuration file"),
        (["train", "--run-dir", "x"], "name a preset or a configuration file"),
        (["train", "unet-77", "-o", "x"], "did you mean unet-7?"),
        (["train", "small"], "--run-dir"),
        (["train", "small", "-o", "x", "--loss.lambda-gradiant", "2"], "--loss.lambda-gradient"),
        (["train", "small", "-o", "x", "--train.epochs", "many"], "many"),
        (["train", "small", "-o", "x", "--train.epochs", "0"], "train.epochs must be >= 1, got 0"),
        (["train", "small", "-o", "x", "--generator.family", "res"], f"{LAST_FAMILY}, got 'res'"),
        (["train", "unet-7", "-o", "x", "--generator.kernels", "3"], "not a field of a unet"),
        (
            ["train", "unet-7", "-o", "x", "--generator.family=conv", "--generator.kernels", "4"],
            "odd",
        ),
        (
            ["train", "small", "-o", "x", "--generator.family", ""],
            f"{LAST_FAMILY}, got ''",
        ),
        (["presets", "smal"], "did you mean small?"),
        (["predict"], "checkpoint"),
        (["shard", "x", "-o", "y", "--stride", "0"], "stride must be >= 1"),
        (["phantom", "x", "--specimens", "few"], "few"),
        (["phantom", "x", "--specimens", "0"], "specimens must be >= 1, got 0"),
        (["phantom", "x", "--specimens", "-5"], "specimens must be >= 1, got -5"),
        (["phantom", "x", "--shape", "0", "8", "8"], "shape must be >= 8 along each axis"),
        (["phantom", "x", "--simulation.bias", "1e30"], "bias must be from 0 to 1, got 1e+30"),
        (["phantom", "x", "--simulation.noise", "nan"], "noise must be from 0 to 10, got nan"),
        (["phantom", "x", "--simulation.blur-voxels", "inf"], "blur_voxels must be from 0 to 100"),
        (["shard", "x", "-o", "y", "--workers", "-1"], "workers must be >= 0"),
        (["prepare", "x", "-o", "y", "--workers", "-1"], "workers must be >= 0"),
    ],
)
def test_usage_and_configuration_end_with_2(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli(*args)
    assert ended.status == 2
    assert message in ended.err
    assert ended.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "none.json", "-o", "x"], "none.json: the configuration does not exist"),
        (["train", "small", "-o", "x", "--data.shards", "none"], "no shard set here"),
        (["shard", "none", "-o", "x"], "none: the cohort does not exist"),
        (["simulate", "none", "-o", "x"], "none: the cohort does not exist"),
        (["predict", "none.pt", "a.nii", "-o", "b.nii"], "none.pt: the checkpoint does not exist"),
        (["evaluate", "none.pt", "--cohort", "none", "-o", "x"], "the cohort does not exist"),
    ],
)
def test_bad_input_ends_with_1(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli(*args)
    assert ended.status == 1
    assert ended.err.startswith("distsynth: ")
    assert message in ended.err
    assert ended.out == ""
    assert not list(tmp_path.iterdir())


def test_a_configuration_file_with_a_typo_ends_with_2(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"loss": {"lambda_recn": 1}}')
    ended = cli("train", path, "-o", tmp_path / "run")
    assert ended.status == 2
    assert f"{path}: loss.lambda_recn is not a field" in ended.err
    assert "did you mean loss.lambda_recon?" in ended.err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (Interrupted(signal.SIGINT), 130),
        (Interrupted(signal.SIGTERM), 143),
        (Interrupted(signal.SIGHUP), 129),
        (FloatingPointError("diverged"), 1),
        (OSError("disk full"), 1),
        (ConfigError("wrong"), 2),
        (DataError("file", "is bad", "Replace it"), 1),
        (ValueError("a bug"), 1),
        (KeyError("a bug"), 1),
    ],
)
def test_statuses_of_errors(error, status, monkeypatch):
    def failing(_):
        raise error

    monkeypatch.setitem(distsynth.cli.main.COMMANDS, "presets", failing)
    ended = cli("presets")
    assert (ended.status, ended.out) == (status, "")
    assert (str(error) or "interrupted") in ended.err
    if isinstance(error, KeyboardInterrupt):
        again, last = ended.err.splitlines()
        assert again == "nothing was kept; to start again: distsynth presets"
        assert last.startswith("distsynth: interrupted by ")
    else:
        assert ended.err.startswith("distsynth: ")


def test_a_diverged_training_ends_with_1(folder, shards):
    config = folder / "diverging.json"
    values = PLAIN | {"optim.lr_generator": 1e30, "train.epochs": 3}
    config.write_text(to_json(tiny_config(shards, values)))
    ended = cli("train", config, "-o", folder / "diverged")
    assert ended.status == 1
    assert "the run diverged. Lower optim.lr_generator" in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("pattern", ["/etc/*", "../*.nii"])
@pytest.mark.parametrize("option", ["--source-pattern", "--target-pattern"])
def test_a_pattern_that_leads_out_of_a_subject_is_refused(option, pattern, tmp_path):
    (tmp_path / "bids" / "sub-01").mkdir(parents=True)
    patterns = {"--source-pattern": "*_T1w.nii", "--target-pattern": "*_T2w.nii"} | {
        option: pattern
    }
    words = [word for pair in patterns.items() for word in pair]
    ended = cli("shard", tmp_path / "bids", "-o", tmp_path / "out", *words)
    assert ended.status == 1
    assert f"{option}: must be a pattern below each subject's folder" in ended.err
    assert not (tmp_path / "out").exists()


def on_a_small_disk(log, limit, *args):
    """A command that may not write files of more bytes."""
    words = [str(word) for word in args]
    process = start(command_on_a_small_disk, limit, words, environment={}, log=log)
    process.join()
    return Ended(process.exitcode, "", log.read_text())


@pytest.mark.slow
def test_a_full_disk_is_one_line_that_names_the_file(folder, phantoms, run_dir, held_out, tmp_path):
    config = folder / "config.json"
    evaluated = ["--cohort", phantoms, "-o", tmp_path / "evaluation"]
    for limit, named, args in (
        (20_000, "phantom-00_target.nii.gz", ["phantom", tmp_path / "c", "--shape", 40, 36, 32]),
        (20_000, "s.nii", ["predict", run_dir, held_out.source, "-o", tmp_path / "s.nii"]),
        (2_000, "", ["export", run_dir, "-o", tmp_path / "export", "--no-onnx"]),
        (20_000, "", ["evaluate", run_dir, *evaluated]),
        (4_000, "checkpoints/best.pt", ["train", config, "-o", tmp_path / "run"]),
    ):
        ended = on_a_small_disk(tmp_path / "log", limit, *args)
        assert ended.status == 1, ended.err
        last = ended.err.splitlines()[-1]
        assert last.startswith("distsynth: "), ended.err
        assert re.search(r"no space|the disk is full", last), ended.err
        assert named in last
        assert "Traceback" not in ended.err
        assert "bug of distsynth" not in ended.err
    assert not list(tmp_path.rglob("*partial-*"))
