"""A job that is submitted from the repository takes code along and nothing else that lies there."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

REPOSITORY = Path(__file__).parents[2]
CODE = ("distsynth", "sharding", "tune_spaces", "jobs")
SCANS = (
    "scans/sub-01/anat/sub-01_T1w.nii.gz",
    "prepared/volumes/a_target.nii.gz",
    "prepared/index.html",
    "sweeps/first/runs/00000/checkpoints/last.pt",
    "runs/unet/wandb/offline-run-1/files/media/images/samples.png",
    "shards/train-000000.tar",
    "any name/brain.nii",
    "ADNI",
    "brain.nii.zst",
    "notes.txt",
    "table.csv",
    ".hidden/brain.nii.gz",
    # In folders of code.
    "distsynth/brain.nii.gz",
    "distsynth/models/scans/brain.img",
    "sharding/brain.mgz",
    "tune_spaces/IM0001",
    "jobs/dicom/I10",
    "jobs/cluster/cohort.csv",
    "jobs/brain.py.nii",
    "sharding/volumes/T1w",
    "jobs/v1.2/brain",
)


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the repository."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    return {name for name in names.decode().split("\0") if name and (REPOSITORY / name).exists()}


@pytest.mark.parametrize("include_gitignore", [True, False])
def test_only_code_travels(tracked, include_gitignore, tmp_path):
    tree = tmp_path / "tree"
    for name in sorted(tracked):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, tree / name)
    for name in SCANS:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"a person's brain")
    package = tmp_path / "package.zip"
    create_package(str(tree), package, include_gitignore)
    with zipfile.ZipFile(package) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
    code = {name for name in tracked if name.startswith(tuple(f"{part}/" for part in CODE))}
    assert code
    assert names == code | {"pyproject.toml", "README.md", "LICENSE"}


def test_git_takes_no_scan():
    scans = [name for name in SCANS if ".nii" in name or name.startswith(("prepared", "sweeps"))]
    command = ["git", "-C", str(REPOSITORY), "check-ignore", "--no-index", *scans]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.stdout.splitlines() == scans
