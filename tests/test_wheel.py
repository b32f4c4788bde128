"""The wheel, installed alone, runs the whole path in a folder without the checkout."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COPIED = ("distsynth", "sharding", "tune_spaces", "pyproject.toml", "README.md", "LICENSE")
PATH = """
phantom cohort --specimens 4 --shape 40 36 32
shard cohort -o shards --patch-size 16 16 --patches-per-specimen 32 --stride 8 --val-slices 4 \
--workers 1
train small -o run --data.shards shards --data.patch-size 16 16 --stitch.stride 8 --stitch.trim 2 \
--generator.channels 4 --generator.kernels 3 --discriminator.channels 4 --train.epochs 1 \
--train.batch-size 16 --train.device cpu --optim.schedule constant
predict run cohort/phantom-00_source.nii.gz -o synthetic.nii.gz
evaluate run --cohort cohort -o evaluation
report run -o page.html
""".replace("\\\n", "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("source") / "distsynth"
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True)
    (found,) = (copy / "dist").glob("distsynth-*.whl")
    return found


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`distsynth` in an environment of its own, which borrows only the dependencies."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True)
    command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    offline = ["--no-deps", "--no-index", "--quiet", wheel]
    # A checkout on the path would pass for an installed package.
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, *offline], check=True, capture_output=True, env=alone)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    borrowed = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "dependencies.pth").write_text("\n".join(borrowed) + "\n")
    return folder / "bin" / "distsynth"


def test_everything_that_is_no_code_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("distsynth", "sharding", "tune_spaces")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"{package}/py.typed" for package in ("distsynth", "sharding", "tune_spaces")} <= packed
    assert expected <= packed, sorted(expected - packed)
    assert not [name for name in packed if name.startswith(("tests", "jobs", "benchmarks"))]


@pytest.mark.long
def test_the_whole_path_runs_outside_the_checkout(program, tmp_path):
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def run(*command: str | Path) -> str:
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    python = program.with_name("python")
    where = run(python, "-c", "import distsynth, sharding; print(distsynth.__file__)")
    assert Path(where.strip()).is_relative_to(program.parents[1])
    first, *rest = [line.split() for line in PATH.strip().splitlines()]
    run(program, *first)
    # In one process, which loads the libraries once.
    calls = f"from distsynth.cli.main import main; sys.exit(any(map(main, {rest})))"
    run(python, "-c", f"import sys; {calls}")
    assert (tmp_path / "synthetic.nii.gz").is_file()
    assert (tmp_path / "page.html").is_file()
    assert "PSNR" in (tmp_path / "evaluation" / "table.txt").read_text()
    said = run(program, "run", "cohort", "-o", "study", "--minutes", "0.02", "--workers", "1")
    assert said.splitlines()[-1].startswith("Too few specimens to tell")
    assert (tmp_path / "study" / "report.html").is_file()
