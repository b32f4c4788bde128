"""Preparing small folders, and what a preparation left or did again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cheap_preparation import CHEAP

from sharding.registration.prepare import prepare_cohort
from sharding.volumes.volume import Volume, write_volume

PLAIN = replace(CHEAP, steps=("scale", "resample"))


def prepared(specimens, out, config=PLAIN, **options):
    return prepare_cohort(specimens, out, config, **{"workers": 1, **options})


def contents(folder):
    """Path -> bytes of every file but locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def inodes(out):
    """Specimen/step -> inode of its record: another one means that the step was done again."""
    return {
        path.parent.relative_to(out).as_posix(): path.stat().st_ino
        for path in out.rglob("step.json")
    }


def redone(before, after):
    return {name for name in after if after[name] != before.get(name)}


def mask_of(grid, folder, data, affine=None):
    path = folder / "mask.nii.gz"
    write_volume(path, Volume(data.astype(np.float32), grid.affine if affine is None else affine))
    return path
