"""How training scales: with ranks, with GPUs that are not here (a model), with specimens.

    python -m benchmarks.scaling [--quick] [--only ranks|model|cohort]

ranks: patches a second of the same global batch on one and on two processes of one thread each,
DDP over gloo.

model: the bytes and calls of all-reduce in one step are counted on two ranks, and the efficiency
on up to 64 GPUs is estimated from them; nothing of that table is measured but the bytes and calls,
and the step where there is a GPU. A ring overstates what small messages take: the trees that NCCL
may choose have fewer hops.

cohort: seconds and peak memory of cutting shards, an epoch and predicting for growing cohorts of
phantoms, each in a new process. The last columns show whether time is linear and memory flat.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.whole_table import Step, seconds_each, step_flops
from distsynth.config import RunConfig, with_overrides
from distsynth.inference.predictor import load_predictor
from distsynth.prediction.file import predict_file
from distsynth.presets import preset
from distsynth.training.loop import epochs
from distsynth.training.steps import make_accelerator
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import Split, read_cohort

COUNTED = ("small", "unet-7", "dcgan-2")
GPUS = (1, 2, 4, 8, 16, 32, 64)
BATCH = 32
"""Patches of a step, as in the paper."""
SIZES = (2, 4, 8)
STAGES = ("shard", "epoch", "predict")


class Traffic(NamedTuple):
    """What a rank sends in a step.

    Attributes:
        calls: All-reduces of gradients.
        bytes: In them.
        norm_calls: Exchanges of BatchNorm's statistics, as SyncBatchNorm makes them on GPUs.
        norm_bytes: In those.
    """

    calls: int
    bytes: int
    norm_calls: int
    norm_bytes: int


class TrafficCounter:
    """Counts what goes through DDP and through BatchNorm layers."""

    def __init__(self) -> None:
        self.calls = self.bytes = self.norm_calls = self.norm_bytes = 0

    def watch(self, network: nn.Module) -> None:
        """Count for a network that DDP wraps."""
        assert isinstance(network, nn.parallel.DistributedDataParallel)
        network.register_comm_hook(None, lambda _, bucket: self._reduced(bucket))
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_hook(self._normalised)

    def _reduced(self, bucket: Any) -> Any:
        self.calls += 1
        self.bytes += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    def _normalised(self, module: Any, *_: object) -> None:
        # SyncBatchNorm gathers mean, variance and count of every rank in the forward, and sums two
        # gradients over ranks in the backward that follows each.
        self.norm_calls += 2
        self.norm_bytes += 4 * (4 * module.num_features + 1)


def joined_as(rank: int, ranks: int, port: int) -> Accelerator:
    """This process as one of several ranks on this machine, with one thread."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    accelerator = make_accelerator("no", cpu=True)
    assert accelerator.num_processes == ranks
    return accelerator


def rank_main(
    rank: int, ranks: int, port: int, config: RunConfig, batch: int, steps: int, answers: Any
) -> None:
    """One rank: time steps on its share of the batch, then count one."""
    accelerator = joined_as(rank, ranks, port)
    step = Step(config, batch // ranks, accelerator)
    seconds = seconds_each(step, steps, accelerator.device)
    counter = TrafficCounter()
    if ranks > 1:
        for learner in step.learners.values():
            counter.watch(learner.network)
        step()
        torch.distributed.destroy_process_group()
    if rank == 0:
        answers.put((seconds, Traffic(**vars(counter))))


def on_ranks(ranks: int, config: RunConfig, batch: int, steps: int) -> tuple[float, Traffic]:
    """Median seconds of a step with a global batch over some ranks, and its traffic.

    Raises:
        RuntimeError: If a rank fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=rank_main, args=(rank, ranks, port, config, batch, steps, answers))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a rank of {ranks} failed, see above")
    return answers.get()


def ranks_table(quick: bool) -> None:
    """One rank against two."""
    batch, steps = (8, 2) if quick else (BATCH, 9)
    print(f"## Ranks on CPU\n\nglobal batch {batch}, one thread a rank, median of {steps} steps\n")
    print("| preset | 1 rank patches/s | 2 ranks patches/s | speedup | efficiency |")
    print("|---|---|---|---|---|")
    for name in COUNTED:
        alone, together = (
            batch / on_ranks(ranks, preset(name), batch, steps)[0] for ranks in (1, 2)
        )
        speedup = together / alone
        cells = f"{alone:.1f} | {together:.1f} | {speedup:.2f} | {speedup / 2:.0%}"
        print(f"| {name} | {cells} |", flush=True)


def ring_seconds(traffic: Traffic, ranks: int, latency: float, bandwidth: float) -> float:
    """Seconds of a step's exchanges over a ring: 2(n - 1) hops a call, each of an n-th of it."""
    calls = traffic.calls + traffic.norm_calls
    sent = traffic.bytes + traffic.norm_bytes
    return 2 * (ranks - 1) * (calls * latency + sent / ranks / bandwidth)


def model_table(options: argparse.Namespace) -> None:
    """The traffic of a step, counted, and what it would cost on GPUs, estimated."""
    latency, bandwidth = options.latency_us * 1e-6, options.bandwidth_gb * 1e9
    gpu = torch.cuda.is_available()
    computing = (
        "as timed on this GPU"
        if gpu
        else f"FLOPs at {options.sustained:g} TFLOP/s, no step under {options.least_ms:g} ms"
    )
    print("## Communication of a step, counted, and an estimate for GPUs\n")
    print(
        f"ESTIMATE, not measured. Exchanges: a ring with {options.latency_us:g} us a hop and "
        f"{options.bandwidth_gb:g} GB/s, none of it hidden behind the backward. Computing: "
        f"{computing}.\nEfficiency; weak: {BATCH} patches a GPU; strong: {BATCH} in all\n"
    )
    columns = " | ".join(f"{count} GPUs" for count in GPUS)
    print(
        f"| preset | all-reduces | MB | SyncBatchNorm exchanges | their kB | step of {BATCH}, ms | "
        f"scaling | {columns} |"
    )
    print("|---" * (7 + len(GPUS)) + "|")
    for name in COUNTED:
        _, traffic = on_ranks(2, preset(name), 4, 1)
        seconds = _timed(name) if gpu else _assumed(name, options)
        alone = seconds(BATCH)
        counted = (
            f"{name} | {traffic.calls} | {traffic.bytes / 1e6:.2f} | {traffic.norm_calls} | "
            f"{traffic.norm_bytes / 1e3:.1f} | {alone * 1e3:.1f}"
        )
        exchange = {count: ring_seconds(traffic, count, latency, bandwidth) for count in GPUS}
        weak = [f"{alone / (alone + exchange[count]):.0%}" for count in GPUS]
        strong = [
            f"{alone / count / (seconds(BATCH // count) + exchange[count]):.0%}"
            for count in GPUS
            if count <= BATCH
        ]
        strong += ["-"] * (len(GPUS) - len(strong))
        print(f"| {counted} | weak | {' | '.join(weak)} |")
        print(f"| {counted} | strong | {' | '.join(strong)} |", flush=True)


def _assumed(name: str, options: argparse.Namespace) -> Callable[[int], float]:
    """Seconds of a step by its patches, on a GPU that is not here."""
    flops = step_flops(preset(name), make_accelerator("no", cpu=True)) / BATCH
    return lambda patches: max(flops * patches / options.sustained / 1e12, options.least_ms / 1e3)


def _timed(name: str) -> Callable[[int], float]:
    """Seconds of a step by its patches, on this GPU."""
    accelerator = make_accelerator("no", cpu=False)
    return lambda patches: seconds_each(
        Step(preset(name), patches, accelerator), 9, accelerator.device
    )


def cohort_table(quick: bool) -> None:
    """Cost against the number of training specimens."""
    shape = (56, 56, 48) if quick else (96, 96, 80)
    print("## Cohorts\n")
    print(f"training on phantoms of {shape} voxels, one more validates; one process, one thread\n")
    print("| stage | specimens | s | peak MB | s a specimen | against the smallest | peak |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {size: Path(scratch) / str(size) for size in SIZES}
        for size, folder in folders.items():
            write_phantom_cohort(folder, size + 2, shape)
        for stage in STAGES:
            costs = {size: _in_new_process(stage, folder) for size, folder in folders.items()}
            first, first_peak = costs[SIZES[0]]
            for size, (seconds, peak) in costs.items():
                each = seconds / size
                print(
                    f"| {stage} | {size} | {seconds:.2f} | {peak:.0f} | {each:.2f} | "
                    f"x {each * SIZES[0] / first:.2f} | x {peak / first_peak:.2f} |",
                    flush=True,
                )


def _in_new_process(stage: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of a stage."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--stage", stage, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    seconds, peak = json.loads(ended.stdout.splitlines()[-1])
    return seconds, peak


def stage_main(stage: str, folder: Path) -> None:
    """Carry out a stage in this process, which has done nothing else."""
    stages = {"shard": _shard, "epoch": _epoch, "predict": _predict}
    print(json.dumps([stages[stage](folder), _peak_mb()]))


def _peak_mb() -> float:
    """The most memory that this process has had; what getrusage tells is its parent's too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _shard(folder: Path) -> float:
    specimens = read_cohort(folder)
    training: list[Split] = ["train"] * (len(specimens) - 2)
    splits: list[Split] = [*training, "val", "test"]
    chosen = [replace(row, split=split) for row, split in zip(specimens, splits, strict=True)]
    # Whatever the size of the cohort, shards are as large.
    cut = ShardConfig(patch_size=(32, 32), val_slices=4, shard_mb=1)
    started = time.perf_counter()
    write_shards(chosen, folder / "shards", cut, workers=1)
    return time.perf_counter() - started


def _epoch(folder: Path) -> float:
    """The second of two epochs: the first one loads libraries."""
    config = with_overrides(
        preset("small"),
        {
            "data.shards": str(folder / "shards"),
            "data.patch_size": (32, 32),
            # What fits is kept in memory: here it shall stream, as a set does that does not fit.
            "data.resident": "never",
            "stitch.axes": (2,),
            "stitch.trim": 4,
            "train.epochs": 2,
            "train.device": "cpu",
            "tracking.mode": "disabled",
        },
    )
    with closing(epochs(config, folder / "run")) as run:
        next(run)
        started = time.perf_counter()
        next(run)
        return time.perf_counter() - started


def _predict(folder: Path) -> float:
    predictor = load_predictor(folder / "run", "cpu")
    started = time.perf_counter()
    for specimen in read_cohort(folder)[:-2]:
        assert specimen.source is not None
        predict_file(predictor, specimen.source, folder / f"{specimen.name}.nii.gz")
    return time.perf_counter() - started


def main(options: argparse.Namespace) -> None:
    """Print the tables."""
    tables = {
        "ranks": lambda: ranks_table(options.quick),
        "model": lambda: model_table(options),
        "cohort": lambda: cohort_table(options.quick),
    }
    for name, table in tables.items():
        if options.only in (None, name):
            table()
            print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small volumes, few steps")
    parser.add_argument("--only", choices=["ranks", "model", "cohort"])
    parser.add_argument("--latency-us", type=float, default=10.0, help="of a hop, assumed")
    parser.add_argument("--bandwidth-gb", type=float, default=25.0, help="GB/s of a GPU's link")
    parser.add_argument("--sustained", type=float, default=20.0, help="TFLOP/s of a GPU, assumed")
    parser.add_argument("--least-ms", type=float, default=5.0, help="of a GPU's step, assumed")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        stage_main(given.stage[0], Path(given.stage[1]))
    else:
        main(given)
