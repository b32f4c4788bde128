"""Versions of the packages that a run, a report or an export was made with."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

PACKAGES = ("distsynth", "torch", "accelerate", "numpy", "scipy", "scikit-image", "SimpleITK")
"""Packages whose versions a report names."""


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed, without importing them."""
    versions = {"Python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
