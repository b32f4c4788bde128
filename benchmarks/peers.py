"""Ours side by side with MONAI, TorchIO, KonfAI and WebDataset: training, reading, prediction.

    python -m benchmarks.peers [--turns N] [--quick]

Training: steps of one network (the generator of `best`, L1, two blocks of 32 voxels a side) from
volumes to weights, in float32: `train()` on its shards, the loops that the manuals of MONAI and
TorchIO show, KonfAI's own command. Reading: batches of 32 pairs of 64x64 patches, see
benchmarks.reading. Prediction: a volume by windows of 32 at a stride of 16, plainly averaged.

Each cell is a process of its own in one thread. Its seconds are processor time, so that other
programs change little of them, without imports and the making of what it reads; those of KonfAI,
which is a command, are the difference of a long and a short run. Peak memory is of the whole
process, which for reading has the sets of all tools. Programs take turns; ratios are of the same
turn, as median, smallest and largest. Peers that are not installed are left out:
pip install ".[bench]".
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import reading
from benchmarks.processor_time import processor
from benchmarks.startup import cost
from distsynth.config import RunConfig, with_overrides
from distsynth.data.memory import keep_freed_memory
from distsynth.inference.precision import multiplies_bf16
from distsynth.inference.predictor import Predictor
from distsynth.models import build_generator
from distsynth.presets import EVEN_BLOCKS, preset
from distsynth.runs.checkpoint import Checkpoint, Position
from distsynth.runs.data_record import DataRecord
from distsynth.training.loop import epochs
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort
from sharding.volumes.pair import prepare_pair

NAME, SIDE, STRIDE, BATCH = "best", 32, 16, 2
SHAPE, QUICK_SHAPE = (96, 96, 64), (64, 64, 32)
QUEUE = 36
"""Blocks that TorchIO draws at a time."""
BF16 = "ours, bf16"
"""Left out where the processor has no instructions for it: there it is many times slower."""
PEERS = {"MONAI": "monai", "TorchIO": "torchio", "KonfAI": "konfai", "WebDataset": "webdataset"}
UNITS = {"train": "step", "read": "batch", "predict": "volume"}
TOOLS = {
    "train": ("ours", BF16, "MONAI", "TorchIO", "KonfAI"),
    "read": ("ours", "ours, streaming", "WebDataset", "MONAI", "TorchIO"),
    "predict": ("ours", "ours, whole", "MONAI", "TorchIO", "KonfAI"),
}
"""Task -> who does it, the first one being what the others are compared with."""
Array = NDArray[np.float32]
Step = Callable[[], object]


@dataclass
class Measured:
    """A cell.

    Attributes:
        seconds: Processor seconds a unit, one for each turn.
        peak_mb: Largest memory of a turn.
    """

    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0


def config(shards: Path, epoch_count: int, precision: str) -> RunConfig:
    """A training of NAME by L1 as the peers are asked for."""
    changes = {
        "data.shards": str(shards),
        "data.patch_size": (SIDE,) * 3,
        "data.neighbours": 0,
        "data.alignment": 2,
        "train.epochs": epoch_count,
        "train.minutes": 0.0,
        "train.validate_every": epoch_count,
        "train.precision": precision,
        "tracking.mode": "disabled",
        "tracking.samples": 0,
    }
    return with_overrides(preset(NAME), changes)


def make_data(folder: Path, shape: tuple[int, int, int]) -> int:
    """Phantoms, their volumes as arrays, and shards of blocks.

    Returns:
        Steps of an epoch: one pass through the blocks that fill two volumes, as KonfAI's is.
    """
    specimens = read_cohort(write_phantom_cohort(folder / "cohort", specimens=4, shape=shape))
    each = math.prod(side // SIDE for side in shape)
    blocks = replace(EVEN_BLOCKS, patches_per_specimen=each)
    write_shards(specimens, folder / "shards", blocks, workers=1)
    for number, specimen in enumerate(specimens[:2]):
        pair = prepare_pair(specimen, blocks.preprocess)
        np.save(folder / f"pair{number}.npy", np.stack([pair.source, pair.target]))
    return 2 * each // BATCH


def volumes(folder: Path) -> list[tuple[Array, Array]]:
    """Source and target of two specimens."""
    pairs = (np.load(folder / f"pair{number}.npy") for number in range(2))
    return [(source, target) for source, target in pairs]


# Training


def train_ours(folder: Path, units: int, precision: str) -> float:
    """Whole epochs of train(), but the first one, and the last, which is validated."""
    shards, scratch = folder / "shards", tempfile.mkdtemp(dir=folder)
    started, before, steps = 0.0, 0, 0
    with closing(epochs(config(shards, 10_000, precision), scratch)) as run:
        for report in run:
            if not before:
                started, before = time.process_time(), report.step
            steps = report.step - before
            if steps >= units:
                break
        return (time.process_time() - started) / steps


def plain_step(batches: Iterator[tuple[Tensor, Tensor]]) -> Step:
    """A step of the tutorials, its batch read before."""
    network = build_generator(preset(NAME).generator, (SIDE,) * 3)
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> float:
        source, target = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.l1_loss(network(source), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def monai_batches(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Random crops of volumes in a CacheDataset."""
    from monai.data.dataloader import DataLoader  # type: ignore
    from monai.data.dataset import CacheDataset  # type: ignore
    from monai.transforms.compose import Compose  # type: ignore
    from monai.transforms.croppad.dictionary import RandSpatialCropd  # type: ignore

    rows = [
        {"source": torch.from_numpy(source)[None], "target": torch.from_numpy(target)[None]}
        for source, target in volumes(folder)
    ]
    crop = RandSpatialCropd(["source", "target"], (SIDE,) * 3, random_size=False)
    dataset = CacheDataset(rows * BATCH, Compose([crop]), progress=False, copy_cache=False)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    while True:
        for batch in loader:
            yield batch["source"], batch["target"]


def torchio_batches(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """A Queue of uniformly drawn blocks."""
    import torchio as tio  # type: ignore

    subjects = [
        tio.Subject(
            source=tio.ScalarImage(tensor=torch.from_numpy(source)[None]),
            target=tio.ScalarImage(tensor=torch.from_numpy(target)[None]),
        )
        for source, target in volumes(folder)
    ]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects),
        max_length=QUEUE,
        samples_per_volume=QUEUE // 2,
        sampler=tio.UniformSampler(SIDE),
    )
    loader = tio.SubjectsLoader(queue, batch_size=BATCH)
    while True:
        for batch in loader:
            yield batch["source"][tio.DATA], batch["target"][tio.DATA]


# Prediction


def model(method: str) -> Predictor:
    """NAME with random weights."""
    run = config(Path("shards"), 1, "no")
    chosen = {"stitch.method": method, "stitch.stride": STRIDE, "stitch.trim": 0}
    generator = build_generator(run.generator, (SIDE,) * 3).eval()
    record = DataRecord("", EVEN_BLOCKS.preprocess, (1.0, 1.0, 1.0), "RAS", {}, ())
    checkpoint = Checkpoint(with_overrides(run, chosen), record, Position(), {}, [], {})
    return Predictor(checkpoint, generator, torch.device("cpu"), "no")


def predict_monai(network: nn.Module, source: Array) -> Any:
    """MONAI's sliding windows, plainly averaged."""
    from monai.inferers.utils import sliding_window_inference  # type: ignore

    given = torch.from_numpy(source)[None, None]
    return sliding_window_inference(given, (SIDE,) * 3, 4, network, 1 - STRIDE / SIDE)


def predict_torchio(network: nn.Module, source: Array) -> Tensor:
    """TorchIO's grid of blocks, averaged."""
    import torchio as tio  # type: ignore

    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(source)[None]))
    sampler = tio.GridSampler(subject, SIDE, SIDE - STRIDE)
    aggregator = tio.GridAggregator(sampler, overlap_mode="average")
    for batch in tio.SubjectsLoader(sampler, batch_size=4):
        aggregator.add_batch(network(batch["image"][tio.DATA]), batch[tio.LOCATION])
    return aggregator.get_output_tensor()


# What a process does


def work(task: str, tool: str, units: int, folder: Path) -> float:
    """Processor seconds a unit; of KonfAI, whose process the caller times, 0."""
    warnings.filterwarnings("ignore")  # of the peers
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if tool == "KonfAI":
        _konfai(task, units, folder)
        return 0.0
    if task == "train" and tool.startswith("ours"):
        return train_ours(folder, units, "bf16" if "bf16" in tool else "no")
    keep_freed_memory()
    with torch.inference_mode(task == "predict"):
        step = _step(task, tool, units, folder)
        step()
        started = time.process_time()
        for _ in range(units):
            step()
        return (time.process_time() - started) / units


def _step(task: str, tool: str, units: int, folder: Path) -> Step:
    if task == "train":
        batches = monai_batches if tool == "MONAI" else torchio_batches
        return plain_step(batches(folder))
    if task == "read":
        return _reader(tool, units, folder)
    (source, _), *_ = volumes(folder)
    if tool.startswith("ours"):
        predictor = model("whole" if "whole" in tool else "windows")
        return lambda: predictor(source, quiet=True)
    network = model("windows").generator
    predict = predict_monai if tool == "MONAI" else predict_torchio
    return lambda: predict(network, source)


def _reader(tool: str, units: int, folder: Path) -> Step:
    """A batch of a way of benchmarks.reading."""
    scratch = Path(tempfile.mkdtemp(dir=folder))
    shards = reading.make_set(scratch, 2000)
    found = reading.ways(scratch, shards, torch.device("cpu"), units + 1)
    names = {
        "ours": "ours, resident",
        "WebDataset": "WebDataset, one record a patch, 0 workers",
        "MONAI": "MONAI CacheDataset, RandSpatialCropSamples of 8, 0 workers",
        "TorchIO": "TorchIO Queue, 0 workers",
    }
    way = found[names.get(tool, tool)]
    batches = (batch for _ in iter(int, 1) for batch in way())
    return lambda: next(batches)


def _konfai(task: str, units: int, folder: Path) -> None:
    from benchmarks import peers_konfai

    scratch, pairs = Path(tempfile.mkdtemp(dir=folder)), volumes(folder)
    if task == "train":
        each = sum(math.prod(side // SIDE for side in source.shape) for source, _ in pairs)
        peers_konfai.train(pairs, units * BATCH // each, scratch / "run")
    else:
        peers_konfai.predict([pairs[0][0]] * units, scratch / "run")


def measure(task: str, tool: str, units: int, least: int, folder: Path) -> tuple[float, float]:
    """Seconds a unit and peak megabytes of a cell; `least` are the units of the short run."""

    def command(count: int) -> list[str]:
        words = ["--work", task, tool, str(count), str(folder)]
        return [sys.executable, "-m", "benchmarks.peers", *words]

    if tool == "KonfAI":
        short, long = (cost(command(count)) for count in (least, least + units))
        return (long.cpu_seconds - short.cpu_seconds) / units, long.peak_mb
    file = folder / "seconds"
    with file.open("w") as out:
        process = subprocess.Popen(command(units), stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{task} by {tool} ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(file.read_text()), used.ru_maxrss * unit / 1e6


def spread(values: list[float], digits: int) -> str:
    """The median and, in brackets, the smallest and the largest."""
    parts = statistics.median(values), min(values), max(values)
    return "{} ({} to {})".format(*(f"{part:,.{digits}f}" for part in parts))


def rows(task: str, found: dict[str, Measured]) -> Iterator[str]:
    """The lines of a task."""
    first = next(iter(found.values()))
    for tool, measured in found.items():
        ratios = [a / b for a, b in zip(measured.seconds, first.seconds, strict=True)]
        per_second = [1 / seconds for seconds in measured.seconds]
        yield (
            f"| {task} | {tool} | {spread(per_second, 2)} {UNITS[task]}/s | {spread(ratios, 2)} | "
            f"{measured.peak_mb:,.0f} |"
        )


def main(options: argparse.Namespace) -> None:
    """Print the table."""
    missing = {tool for tool, module in PEERS.items() if not importlib.util.find_spec(module)}
    versions = [f"{tool} {version(PEERS[tool])}" for tool in PEERS if tool not in missing]
    if not multiplies_bf16(torch.device("cpu")):
        missing.add(BF16)
    print(
        f"{processor()}, one thread, torch {torch.__version__}, {', '.join(versions)}; "
        f"{options.turns} turns\n\n| task | tool | speed, of processor time | times ours' "
        "seconds | peak MB |\n|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="distsynth-peers-") as name:
        folder = Path(name)
        steps = make_data(folder, QUICK_SHAPE if options.quick else SHAPE)
        times = 1 if options.quick else 5
        units = {"train": times * steps, "read": 40 * times, "predict": times}
        least = {"train": steps, "read": 1, "predict": 1}
        for task in options.tasks:
            found = {tool: Measured() for tool in TOOLS[task] if tool not in missing}
            for _ in range(options.turns):
                for tool, measured in found.items():
                    seconds, peak = measure(task, tool, units[task], least[task], folder)
                    measured.seconds.append(seconds)
                    measured.peak_mb = max(measured.peak_mb, peak)
            print("\n".join(rows(task, found)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small volumes, few units")
    parser.add_argument("--tasks", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(work(given.work[0], given.work[1], int(given.work[2]), Path(given.work[3])))
    else:
        main(given)
