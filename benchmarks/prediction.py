"""What a stitched prediction costs beside the bare forwards of its windows, MONAI and TorchIO.

    python -m benchmarks.prediction [--slices N] [--repetitions N] [--quick]

One axis, windows of 64x64 at a stride of 20, plain average. The programs take turns, so that what
else the machine does falls on all of them. Then the peak memory of a prediction, and of whole files
kept in memory or on disk, each in a process of its own. monai and torchio are needed:
pip install monai torchio.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distsynth.config import StitchConfig, with_overrides
from distsynth.data.memory import keep_freed_memory
from distsynth.inference.memory_budget import memory_budget
from distsynth.inference.predictor import Predictor
from distsynth.models import build_generator
from distsynth.prediction.file import predict_file
from distsynth.presets import PAPER_PATCH, preset
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from sharding.shards.patches import cut_channels
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.volume import Volume, write_volume

SIDES = (164, 192)
PATCH, STRIDE = 64, 20
BATCHES = (4, 16, 64)
"""Windows a forward that bare forwards and MONAI may choose from."""
NETWORKS = {"small": 7, "dcgan-2": 8, "unet-7": 0}
"""Preset to trim: as far as it looks, where that is known."""
HEAD = (
    "network | program | s (smallest to largest) | of bare forwards | voxels evaluated a voxel | "
    "counted saving reached | largest difference"
)
MEMORY_HEAD = "prediction | memory_mb | volume | peak memory above an idle process (MB)"
FILE_HEAD = "file to file, small | memory_mb | MB a volume | peak memory of its own (MB) | s"
FILE_SIDES = (192, 288, 384)
Run = Callable[[], NDArray[np.float32] | None]


@dataclass
class Program:
    """One way to do the same work.

    Attributes:
        name: In the table.
        run: Does it; returns the volume where there is one.
        like: Name of the program whose volume it should equal.
        seconds: Of each repetition.
        voxels: That went through the generator.
        volume: What came out.
    """

    name: str
    run: Run
    like: str = ""
    seconds: list[float] = field(default_factory=list)
    voxels: int = 0
    volume: NDArray[np.float32] | None = None


def predictor(name: str, trim: int, **changes: object) -> Predictor:
    """A preset with random weights."""
    stitch = {"stride": STRIDE, "trim": trim, "weights": "uniform", "axes": (2,)}
    overrides = {f"stitch.{key}": value for key, value in stitch.items()} | changes
    config = with_overrides(preset(name), overrides)
    torch.manual_seed(0)
    generator = build_generator(config.generator, PAPER_PATCH).eval()
    record = DataRecord("", PreprocessConfig(), (1.0, 1.0, 1.0), "RAS", {}, ())
    return Predictor(
        Checkpoint(config, record, Position(), {}, [], {}), generator, torch.device("cpu")
    )


def random_volume(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Noise: what it shows changes no time."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def programs(model: Predictor, source: NDArray[np.float32]) -> list[Program]:
    """The same work by everybody, the limit first."""
    generator = model.generator
    patches = torch.from_numpy(
        cut_channels(source, (PATCH, PATCH), model.locations(source.shape), 0)  # type: ignore[arg-type]
    )
    config = model.checkpoint.config
    budget = memory_budget(
        config.generator, (PATCH, PATCH), 1, config.stitch.memory_mb, model.device
    )
    ours = budget.batch_size(PATCH**2)
    whole = model.stitched(method="whole")
    windows = model.stitched(method="windows")
    plain = windows.stitched(trim=0)
    predict = partial(Predictor.__call__, source=source, quiet=True)
    found = [
        Program(f"bare forwards, {size} at once", partial(bare, generator, patches, size))
        for size in sorted({ours, *BATCHES})
    ]
    found.append(Program("ours, windows", partial(predict, windows)))
    found.append(
        Program("ours, whole", partial(predict, whole), "ours, windows" if model.exact else "")
    )
    if model is not plain and config.stitch.trim:
        found.append(Program("ours, windows, no trim", partial(predict, plain)))
    no_trim = found[-1].name if config.stitch.trim else "ours, windows"
    found += [
        Program(f"MONAI, {size} at once", partial(monai, generator, source, size), no_trim)
        for size in BATCHES
    ]
    found += [
        Program("TorchIO, average", partial(torchio, generator, source, "average"), no_trim),
        Program("TorchIO, Hann window", partial(torchio, generator, source, "hann")),
    ]
    return found


def bare(generator: torch.nn.Module, patches: Tensor, size: int) -> None:
    """The windows, cut already, through the network; nothing is kept."""
    for batch in patches.split(size):
        generator(batch)


def monai(
    generator: torch.nn.Module, source: NDArray[np.float32], size: int
) -> NDArray[np.float32]:
    """MONAI's sliding windows over the slices, constant weights."""
    from monai.inferers.utils import sliding_window_inference  # type: ignore

    slices = torch.from_numpy(np.moveaxis(source, 2, 0)[:, None].copy())
    overlap = 1 - STRIDE / PATCH
    joined = sliding_window_inference(slices, (PATCH, PATCH), size, generator, overlap)
    assert isinstance(joined, Tensor)
    return np.moveaxis(joined[:, 0].numpy(), 0, 2)


def torchio(
    generator: torch.nn.Module, source: NDArray[np.float32], mode: str
) -> NDArray[np.float32]:
    """TorchIO's grid of patches, loaded 16 at a time in this process."""
    import torchio as tio  # type: ignore

    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(source)[None]))
    overlap = (PATCH - STRIDE, PATCH - STRIDE, 0)
    sampler = tio.data.GridSampler(subject, (PATCH, PATCH, 1), overlap)
    aggregator = tio.data.GridAggregator(sampler, overlap_mode=mode)
    for batch in tio.SubjectsLoader(sampler, batch_size=16):  # type: ignore[arg-type]
        synthetic = generator(batch["image"][tio.constants.DATA][..., 0])
        aggregator.add_batch(synthetic[..., None], batch[tio.constants.LOCATION])
    return aggregator.get_output_tensor()[0].numpy()


def measure(found: list[Program], generator: torch.nn.Module, repetitions: int) -> None:
    """Run all in turns; the first round warms up and counts."""
    count: list[int] = []
    handle = generator.register_forward_hook(
        lambda _module, given, _out: count.append(_size(given))
    )
    with torch.inference_mode():
        for program in found:
            count.clear()
            program.volume = program.run()
            program.voxels = sum(count)
        handle.remove()
        for _ in range(repetitions):
            for program in found:
                start = time.perf_counter()
                program.run()
                program.seconds.append(time.perf_counter() - start)


def _size(given: tuple[Tensor, ...]) -> int:
    return given[0].numel()


def rows(name: str, found: list[Program], voxels: int) -> list[str]:
    """The lines of a network; of bare forwards and of MONAI the fastest alone."""
    quickest = []
    for start in ("bare", "ours, windows", "ours, whole", "MONAI", "TorchIO, a", "TorchIO, H"):
        same = [program for program in found if program.name.startswith(start)]
        if start == "ours, windows":
            same = [program for program in same if program.name == start]
        quickest.append(min(same, key=lambda program: median(program.seconds)))
    limit, volumes = quickest[0], {program.name: program.volume for program in found}
    lines = []
    for program in quickest:
        share = median(program.seconds) / median(limit.seconds)
        counted = 1 - program.voxels / limit.voxels
        reached = f"{(1 - share) / counted:.0%}" if counted > 0 else "-"
        twin = volumes.get(program.like)
        difference = "-" if twin is None else f"{np.abs(program.volume - twin).max():.1e}"
        spread = f"{min(program.seconds):.2f} to {max(program.seconds):.2f}"
        cells = (
            name,
            program.name,
            f"{median(program.seconds):.2f} ({spread})",
            f"{share:.3f}",
            f"{program.voxels / voxels:.2f}",
            reached,
            difference,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def peak_memory(kind: str, memory_mb: int, factor: int) -> tuple[str, float]:
    """Shape and megabytes of a prediction in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prediction", "--peak", kind]
    done = subprocess.run(
        [*command, str(memory_mb), str(factor)], check=True, capture_output=True, text=True
    )
    shape, megabytes = done.stdout.split()
    return shape, float(megabytes)


def print_peak(kind: str, memory_mb: int, factor: int) -> None:
    """What the process that peak_memory starts does."""
    name, method, dims = kind.split(",")
    if dims == "3D":
        more = {"data.patch_size": (32, 32, 32), "stitch.stride": 16}
        shape = (64, 64, 64 * factor)
    else:
        more, shape = {}, (*SIDES, 8 * factor)
    more |= {"stitch.method": method, "stitch.memory_mb": memory_mb}
    model, source = predictor(name, NETWORKS[name], **more), random_volume(shape)
    with torch.inference_mode():
        model.generator(torch.zeros(1, 1, *model.checkpoint.config.data.sides))
    # Loading took more memory than is left of it: forget that peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = most_memory()
    model(source, quiet=True)
    print("x".join(map(str, shape)), most_memory() - before)


def print_file(memory_mb: int, side: int) -> None:
    """Predict a file onto a grid of half its spacing: megabytes and seconds.

    What is mapped from files does not count: the system takes it back when it is short of memory.
    """
    model = predictor("small", NETWORKS["small"], **{"stitch.memory_mb": memory_mb})
    model(random_volume((64, 64, 4)), quiet=True)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    with tempfile.TemporaryDirectory() as folder, Sampler() as sampler:
        source = Path(folder) / "source.nii"
        write_volume(source, Volume(random_volume((side // 2,) * 3), affine))
        start = time.perf_counter()
        predict_file(model, source, Path(folder) / "synthetic.nii")
        print(4e-6 * side**3, sampler.most, time.perf_counter() - start)


class Sampler(threading.Thread):
    """The most memory of its own that this process takes while the sampler is open (Linux).

    Attributes:
        most: Megabytes above the start.
    """

    def __enter__(self) -> Sampler:
        self.most, self._before, self._done = 0.0, self.now(), threading.Event()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(0.002):
            self.most = max(self.most, self.now() - self._before)

    @staticmethod
    def now() -> float:
        """Megabytes that are no file's."""
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1e3


def most_memory() -> float:
    """Megabytes that this process has held at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="one slice, once")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--file", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        kind, memory_mb, factor = given.peak
        print_peak(kind, int(memory_mb), int(factor))
        return
    if given.file:
        print_file(*given.file)
        return
    slices, repetitions = (1, 1) if given.quick else (given.slices, given.repetitions)
    source = random_volume((*SIDES, slices))
    keep_freed_memory(
        any_size=False
    )  # as our prediction does, so that its peers have the same from the start
    # TorchIO's own; nothing that is measured here.
    warnings.filterwarnings("ignore", module="torchio|monai|torch.utils.data")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; {PATCH}x{PATCH} windows, stride {STRIDE}, volume "
        f"{'x'.join(map(str, source.shape))}, medians of {repetitions}\n\n| {HEAD} |"
    )
    print("|" + "---|" * len(HEAD.split(" | ")), flush=True)
    for name in given.networks:
        model = predictor(name, NETWORKS[name])
        found = programs(model, source)
        measure(found, model.generator, repetitions)
        print("\n".join(rows(name, found, math.prod(source.shape))), flush=True)
    default = StitchConfig().memory_mb
    print(f"\n| {MEMORY_HEAD} |\n" + "|" + "---|" * len(MEMORY_HEAD.split(" | ")), flush=True)
    for kind, memory_mb in (
        ("small,whole,2D", default),
        ("unet-7,windows,2D", default),
        ("small,whole,3D", 64),
        ("small,whole,3D", 128),
    ):
        for factor in (1,) if given.quick else (1, 2, 4):
            shape, megabytes = peak_memory(kind, memory_mb, factor)
            name = kind.replace(",", ", ")
            print(f"| {name} | {memory_mb} | {shape} | {megabytes:.0f} |", flush=True)
    print(f"\n| {FILE_HEAD} |\n" + "|" + "---|" * len(FILE_HEAD.split(" | ")), flush=True)
    for side in FILE_SIDES[: 1 if given.quick else None]:
        for where, memory_mb in (("in memory", 2**16), ("on disk", 16)):
            command = [sys.executable, "-m", "benchmarks.prediction", "--file"]
            done = subprocess.run(
                [*command, str(memory_mb), str(side)], check=True, capture_output=True, text=True
            )
            volume, most, seconds = map(float, done.stdout.split())
            cells = (
                f"{side}^3, {where}",
                memory_mb,
                f"{volume:.0f}",
                f"{most:.0f}",
                f"{seconds:.1f}",
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
