"""Fits of baselines that are kept on this machine, so that the next evaluation need not fit anew.

    CACHE/fits/DIGEST.npz    arrays of numbers alone, named by what they depend on

The digest is of every byte of the training files, in their order, of the preprocessing, and of the
program and the libraries that prepare and fit. A file appears complete, by rename, so that any
number of processes may fit the same. A fit takes about 10 kB; any file may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

import sharding.volumes
from distsynth.evaluation import baselines
from distsynth.evaluation.baselines import Fitted, fitted_baselines, new_baselines
from distsynth.evaluation.pairs import prepared_pairs
from distsynth.runs.data_record import DataRecord
from sharding.io.atomic import atomic_path
from sharding.io.cache import default_folder
from sharding.io.errors import one_line
from sharding.io.progress import progress
from sharding.shards.cut import inputs_sha256
from sharding.volumes.cohort import Specimen
from sharding.volumes.slabs import Empty, in_memory

logger = logging.getLogger(__name__)

FOLDER = "fits"
LIBRARIES = ("numpy", "scipy", "SimpleITK")
UNREADABLE = (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error)
"""What a file raises that is no archive, is cut short, or holds other arrays."""


def kept_baselines(
    training: Sequence[Specimen], data: DataRecord, empty: Empty = in_memory
) -> list[Fitted]:
    """The baselines that are fitted on training specimens: those kept, or else fitted and kept.

    Args:
        training: The specimens, in the order in which they count.
        data: How they are prepared.
        empty: Makes the arrays that are as large as a volume.

    Raises:
        DataError: If a file is missing or bad.
    """
    file = default_folder() / FOLDER / f"{fingerprint(training, data)}.npz"
    if file.is_file():
        try:
            found = _read(file, max(1, len(data.contrasts)))
        except UNREADABLE as error:
            reason = one_line(error)
            logger.warning("%s is no kept fit (%s): fitting anew", file, reason)
        else:
            logger.info("the baselines have been fitted on these specimens before")
            return found
    pairs = prepared_pairs(training, data, empty)
    contrasts = max(1, len(data.contrasts))
    fitted = fitted_baselines(progress(pairs, "fitting baselines", len(training)), contrasts)
    try:
        _keep(file, fitted)
    except OSError as error:
        logger.warning("the fitted baselines are not kept for later (%s)", one_line(error))
    return fitted


def fingerprint(training: Sequence[Specimen], data: DataRecord) -> str:
    """sha256 of all that the fitted baselines depend on.

    Raises:
        DataError: If a file is missing.
    """
    stated = {
        "inputs": [inputs_sha256(specimen) for specimen in training],
        "preprocess": asdict(data.preprocess),
        "standards": asdict(data.standards),
        "baselines": {
            each.name: each.settings() for each in new_baselines(max(1, len(data.contrasts)))
        },
        "libraries": {name: version(name) for name in LIBRARIES},
        "program": _program_sha256(),
    }
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


@cache
def _program_sha256() -> str:
    """sha256 of the source text that prepares pairs and fits baselines."""
    folder = Path(sharding.volumes.__file__).parent
    digest = hashlib.sha256(Path(baselines.__file__).read_bytes())
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _keep(file: Path, fitted: Sequence[Fitted]) -> None:
    arrays = {
        f"{each.name}/{name}": values for each in fitted for name, values in each.state().items()
    }
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with atomic_path(file, ".npz") as partial:
        np.savez(partial, **arrays)  # type: ignore[arg-type]


def _read(file: Path, contrasts: int) -> list[Fitted]:
    """Fits of sources of so many contrasts.

    Raises one of UNREADABLE if the file was not written by this program, or is damaged.
    """
    found = new_baselines(contrasts)
    with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
        for each in found:
            start = f"{each.name}/"
            names = [name for name in arrays.files if name.startswith(start)]
            each.restore({name.removeprefix(start): arrays[name] for name in names})
    return found
