"""Memory and processor time of predict, evaluate and the page of a run for large volumes.

    python -m benchmarks.large_volumes [--sides N ...] [--folder FOLDER] [--commands NAME ...]
                                       [--most-mb MB]

For each side a cohort of two specimens is made, one of training and one of test: targets of so many
voxels along each axis, sources of half as many, as uncompressed NIfTI files. Each command runs in a
process of its own with a network of two channels and untrained weights, predicting by overlapping
windows. Before it, volumes of 64 voxels went through, so that libraries are loaded. With
--commands predict alone only the source that it reads is made.

Anonymous memory is what a process asked for itself, sampled every 50 ms; it cannot be dropped when
memory is short. Its largest value less that before the command is shown. Pages of files, also of
the files without a name in which large arrays lie, are the system's to keep or to drop: with them
the resident memory is larger, and shown beside it. The disk is what those files take at once.
With --most-mb arrays of more MB lie on disk than the program's own limit says: 0 shows with small
volumes what happens with large ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

import sharding.volumes.slabs
from distsynth.api import evaluate, write_report
from distsynth.config import RunConfig, to_json, with_overrides
from distsynth.models import build_generator
from distsynth.prediction.run import predict
from distsynth.runs.checkpoint import Checkpoint, Position, save_checkpoint
from distsynth.runs.data_record import DataRecord
from distsynth.runs.folder import BEST, CONFIG_FILE
from sharding.simulation.phantom import phantom_volume
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.slabs import slabs

SIDES = (192, 256, 384, 512)
COMMANDS = ("predict", "evaluate", "report")
SMALL = 64
SPACING = 0.1
MEGABYTE = 2**20
CONFIG = {
    "data.patch_size": (64, 64),
    "data.neighbours": 0,
    "data.alignment": 1,
    "generator.channels": (2,),
    "generator.kernels": (3,),
    "stitch.stride": 32,
    "stitch.trim": 4,
    "stitch.method": "windows",
    "stitch.memory_mb": 8,
    "tracking.mode": "disabled",
}


def write_specimen(
    folder: Path, name: str, side: int, seed: int, source_alone: bool = False
) -> None:
    """A phantom enlarged to so many voxels a side, with noise, and its means over 2 x 2 x 2."""
    model = phantom_volume((32, 32, 32), seed=seed, spacing_mm=SPACING).data
    random = np.random.default_rng(seed)
    target = None if source_alone else _image(folder / f"{name}_target.nii", side, SPACING)
    source = _image(folder / f"{name}_source.nii", side // 2, 2 * SPACING)
    near = np.arange(side) * len(model) // side
    noise = 0.02 * float(model.max())
    for slab in slabs(source.shape):
        double = slice(2 * slab[2].start, 2 * slab[2].stop)
        part = model[np.ix_(near, near, near[double])]
        part = part + noise * random.standard_normal(part.shape, np.float32)
        if target is not None:
            target[:, :, double] = part
        blocks = part.reshape(side // 2, 2, side // 2, 2, -1, 2)
        source[slab] = blocks.mean(axis=(1, 3, 5))


def _image(path: Path, side: int, spacing: float) -> np.memmap:
    """The voxels of a new NIfTI file, on disk."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((side,) * 3)
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = spacing / 2
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    path.write_bytes(header.binaryblock + bytes(4))
    return np.memmap(path, np.float32, "r+", 352, (side,) * 3, "F")


def write_cohort(folder: Path, side: int) -> None:
    """Two specimens, their table, and a run that was trained on the first."""
    rows = ["specimen,source,target,split"]
    for seed, split in enumerate(("train", "test")):
        write_specimen(folder, split, side, seed)
        rows.append(f"{split},{split}_source.nii,{split}_target.nii,{split}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_run(folder)


def write_run(folder: Path) -> None:
    """A run with untrained weights that knows the first specimen of write_cohort."""
    config = with_overrides(RunConfig(), CONFIG)
    torch.manual_seed(0)
    network = build_generator(config.generator, config.data.sides, config.data.channels)
    record = DataRecord(
        "0" * 64,
        PreprocessConfig(),
        (SPACING, SPACING, SPACING),
        "RAS",
        {"train": "train"},
        ("seen",),
    )
    learners = {"generator": {"network": network.state_dict()}}
    best = folder / "run" / BEST
    best.parent.mkdir(parents=True)
    save_checkpoint(best, Checkpoint(config, record, Position(), learners, [], {}))
    (folder / "run" / CONFIG_FILE).write_text(to_json(config))


def run(command: str, folder: Path) -> None:
    """One of COMMANDS on the cohort of a folder."""
    most = 10**11
    if command == "predict":
        out = folder / "synthetic.nii"
        predict(folder / "run", folder / "test_source.nii", out, max_voxels=most, overwrite=True)
    elif command == "evaluate":
        evaluate(folder / "run", folder / "cohort.csv", folder / "evaluation", overwrite=True)
    else:
        page = folder / "report.html"
        write_report(folder / "run", page, folder / "cohort.csv", overwrite=True)


class Peaks:
    """The largest anonymous and resident memory, and disk of files without a name, by sampling."""

    def __init__(self, folder: Path) -> None:
        self.anonymous = self.resident = self.disk = 0
        self._folder, self._over = folder, threading.Event()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Sample while the block runs."""
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.05):
            status = memory_status()
            self.anonymous = max(self.anonymous, status["RssAnon"])
            self.resident = max(self.resident, status["VmRSS"])
            self.disk = max(self.disk, mapped_bytes(self._folder))


def memory_status() -> dict[str, int]:
    """Fields of /proc/self/status that count memory, in bytes."""
    rows = Path("/proc/self/status").read_text().splitlines()
    found = (row.split() for row in rows if row.endswith(" kB"))
    return {row[0].rstrip(":"): 1024 * int(row[1]) for row in found}


def mapped_bytes(folder: Path) -> int:
    """Bytes of the files without a name in a folder that are mapped."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("(deleted)") and str(folder) in line:
            low, high = line.split()[0].split("-")
            total += int(high, 16) - int(low, 16)
    return total


def measure(command: str, folder: Path) -> dict[str, float]:
    """Run a command once small and once measured; MB and processor seconds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as small:
        write_cohort(Path(small), SMALL)
        run(command, Path(small))
    before, started = memory_status()["RssAnon"], time.process_time()
    peaks = Peaks(folder)
    with peaks.watch():
        run(command, folder)
    return {
        "anonymous": (peaks.anonymous - before) / MEGABYTE,
        "anonymous in all": peaks.anonymous / MEGABYTE,
        "resident": peaks.resident / MEGABYTE,
        "disk": peaks.disk / MEGABYTE,
        "seconds": time.process_time() - started,
        "largest resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def table(
    sides: Sequence[int],
    folder: Path,
    commands: Sequence[str] = COMMANDS,
    most_mb: str = "",
    say: Callable[[str], None] = print,
) -> None:
    """A row for each side and command."""
    say(
        "| volume | command | anonymous, MB | in all, MB | resident, MB | disk, MB | processor, s |"
    )
    say("|---|---|---|---|---|---|---|")
    for side in sides:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            if set(commands) == {"predict"}:
                write_specimen(Path(made), "test", side, 1, source_alone=True)
                write_run(Path(made))
            else:
                write_cohort(Path(made), side)
            for command in commands:
                arguments = [sys.executable, "-m", __spec__.name, "--one", command, made]
                arguments += ["--most-mb", most_mb] if most_mb else []
                environment = os.environ | {"OMP_NUM_THREADS": "1", "DISTSYNTH_CACHE": made}
                done = subprocess.run(
                    arguments, check=True, stdout=subprocess.PIPE, text=True, env=environment
                )
                found = json.loads(done.stdout.splitlines()[-1])
                cells = [
                    f"{found[key]:,.0f}"
                    for key in ("anonymous", "anonymous in all", "resident", "disk", "seconds")
                ]
                size = f"{side}³, {4 * side**3 / 1e6:,.0f} MB"
                say(f"| {size} | {command} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--most-mb", default="", help="of evaluate and report")
    parser.add_argument("--one", nargs=2, metavar=("COMMAND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.most_mb:
            sharding.volumes.slabs.MOST_IN_MEMORY = int(options.most_mb) * MEGABYTE
        print(json.dumps(measure(options.one[0], Path(options.one[1]))))
    else:
        table(options.sides, options.folder, options.commands, options.most_mb)
