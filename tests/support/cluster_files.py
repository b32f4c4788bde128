"""Reading the files in jobs/cluster, and what the package is built from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

TOP = Path(__file__).parents[2]

CLUSTER = TOP / "jobs" / "cluster"

ENDS = {";", "&", "&&", "|", "||", ">"}

NODE = "192.0.2.1"


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text(encoding="utf-8")


def cluster_of(name: str) -> dict[str, Any]:
    return yaml.safe_load(text_of(name))


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
    path.chmod(0o755)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))


def package_parts() -> set[str]:
    """Files and folders that the package is built from."""
    project = pyproject()
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    return {
        "pyproject.toml",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *(package.rstrip("*") for package in packages),
    }
