"""Whether it pays to train several small networks as one: k separate steps against a packed one.

    python -m benchmarks.packing [--presets NAME ...] [--counts K ...] [--batches N ...]
    python -m benchmarks.packing --cores [--presets NAME ...]
    python -m benchmarks.packing --profile PRESET

A sweep over weights and rates trains many networks of one architecture. Separate: the step of
training, network after network. Packed: one step for all, each with its own weights, patches,
batch statistics and loss; either by `vmap` over stacked parameters, or by networks of k times the
channels whose convolutions have k groups, in both layouts. All optimizers are fused. Rates and
loss weights are alike for all k and packed steps take no norms of gradients, which favours packing.
Losses, gradients and running statistics of a step are checked to be those of the separate ones
before anything is timed.

On a processor one thread works and its own time counts; on a GPU it is the clock. The ways take
turns, and ratios are of each turn. --cores compares two processes of one thread, which is how a
sweep uses two cores, with one process of two threads, by the clock.
"""

from __future__ import annotations

import argparse
import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.packed_networks import DEVICE, WAYS, Packed, Separate
from benchmarks.whole_table import of_patches
from distsynth.config import RunConfig
from distsynth.data.memory import keep_freed_memory

NAMES = ("dcgan-1", "unet-7", "small")
PRECISIONS = ("no", "bf16")
ROUNDING = 1e-5
"""The largest relative difference from separate steps that is taken for rounding where networks
work in double precision and losses in single; in bf16 it is twice what separate steps in bf16
differ from those in float32."""
KINDS = {
    "convolution": ("convolution",),
    "BatchNorm": ("batch_norm",),
    "copies": ("copy_", "cat", "index", "slice_backward"),
    "optimizer": ("adam", "foreach"),
}
"""Kind of work -> what the names of its operators contain."""
Kept = tuple[str, int, int, str, str, int]
"""Preset, number of networks, patches, way, precision and threads of a step."""


def difference(config: RunConfig, way: str, precision: str, count: int, batch: int) -> float:
    """The largest relative difference of losses, gradients and statistics after a step.

    Raises:
        SystemExit: If it is more than rounding.
    """
    separate = Separate(config, count, batch, precision)
    if precision == "no":
        separate.double()
    packed = Packed(config, separate, way, precision)
    bound = ROUNDING
    if precision == "bf16":
        full = Separate(config, count, batch, "no")
        bound = 2 * _largest(results(separate), results(full))
        separate = Separate(config, count, batch, precision)
    most = _largest(results(packed), results(separate))
    if not most < bound:
        raise SystemExit(f"{way} in {precision} differs from separate steps by {most:.1e}")
    return most


def results(step: Separate | Packed) -> dict[str, Tensor]:
    """What comes of the first step: losses, gradients and statistics, k rows each."""
    found = step()
    for name in ("generator", "discriminator"):
        if name in found:
            found[f"gradients/{name}"] = step.moments(name)
    statistics = step.statistics()
    return found | ({"statistics": torch.cat(statistics, 1)} if statistics else {})


def _largest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    shared = found.keys() & expected.keys()
    return max(
        float((found[name] - expected[name]).norm() / expected[name].norm()) for name in shared
    )


def seconds(work: Callable[[], object]) -> float:
    """Of a call: the processor's, or by the clock where a GPU works."""
    if DEVICE.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def turns(
    config: RunConfig, count: int, batch: int, precision: str, times: int
) -> dict[str, list[float]]:
    """Seconds of k steps, way by way; the first turn is left out."""
    separate = Separate(config, count, batch, precision)
    ways = {"separate": separate} | {way: Packed(config, separate, way, precision) for way in WAYS}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 + times):
        for way, step in ways.items():
            found[way].append(seconds(step))
    return {way: values[1:] for way, values in found.items()}


def print_steps(options: argparse.Namespace) -> None:
    """A row for each preset, precision, batch and number of networks."""
    print(
        "| preset | precision | patches | k | separate, ms a network (spread) | "
        + " | ".join(f"separate / {way}" for way in WAYS)
        + " |\n|"
        + "---|" * (5 + len(WAYS)),
        flush=True,
    )
    for name in options.presets:
        config = of_patches(name)
        for precision in options.precisions:
            checks = {way: difference(config, way, precision, 2, 4) for way in WAYS}
            for batch in options.batches:
                for count in options.counts:
                    found = turns(config, count, batch, precision, options.times)
                    own = [1e3 * value / count for value in found["separate"]]
                    spread = f"{median(own):.1f} ({min(own):.1f} to {max(own):.1f})"
                    ratios = [_ratio(found["separate"], found[way]) for way in WAYS]
                    cells = [name, precision, str(batch), str(count), spread, *ratios]
                    print(f"| {' | '.join(cells)} |", flush=True)
            shown = ", ".join(f"{way} {value:.0e}" for way, value in checks.items())
            print(f"<!-- {name} {precision}, largest relative difference: {shown} -->", flush=True)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    found = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


@functools.cache
def _kept(
    name: str, count: int, batch: int, way: str, precision: str, threads: int
) -> Separate | Packed:
    """A step that a process keeps between its turns."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    config = of_patches(name)
    separate = Separate(config, count, batch, precision)
    step = separate if way == "separate" else Packed(config, separate, way, precision)
    step()
    return step


def perform(times: int, what: Kept) -> None:
    """What a process does in a turn."""
    step = _kept(*what)
    torch.set_num_threads(what[-1])
    for _ in range(times):
        step()


def print_cores(options: argparse.Namespace) -> None:
    """Two networks on two cores: two processes, or one with two threads."""
    ways = ("separate", "groups", "groups, channels last")
    heads = " | ".join(f"{way}, one process / two" for way in ways)
    print(f"| preset | patches | two processes, ms (spread) | {heads} |\n|{'---|' * 6}", flush=True)
    spawn = multiprocessing.get_context("spawn")
    for name in options.presets:
        for batch in options.batches:
            with ExitStack() as stack:
                workers = [
                    stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in range(2)
                ]
                jobs: dict[str, tuple[list[ProcessPoolExecutor], Kept]] = {
                    "two": (workers, (name, 1, batch, "separate", "no", 1))
                }
                for way in ways:
                    jobs[way] = workers[:1], (name, 2, batch, way, "no", 2)
                found = clock(jobs, max(1, 64 // batch), options.times)
            own = [1e3 * value for value in found["two"]]
            cells = [name, str(batch), f"{median(own):.0f} ({min(own):.0f} to {max(own):.0f})"]
            cells += [_ratio(found[way], found["two"]) for way in ways]
            print(f"| {' | '.join(cells)} |", flush=True)


def clock(
    jobs: dict[str, tuple[list[ProcessPoolExecutor], Kept]], steps: int, times: int
) -> dict[str, list[float]]:
    """Seconds a step by the clock, job by job; the first turn is left out."""
    found: dict[str, list[float]] = {way: [] for way in jobs}
    for _ in range(times + 1):
        for way, (workers, what) in jobs.items():
            for worker in workers:
                worker.submit(perform, 0, what).result()
            started = time.perf_counter()
            for task in [worker.submit(perform, steps, what) for worker in workers]:
                task.result()
            found[way].append((time.perf_counter() - started) / steps)
    return {way: values[1:] for way, values in found.items()}


def print_profile(options: argparse.Namespace) -> None:
    """Where the time of a step goes, by kind of operator."""
    count = max(options.counts)
    config = of_patches(options.profile)
    print(f"{options.profile}, k = {count}, ms a network by kind of operator\n")
    kinds = [*KINDS, "other operators", "between operators"]
    print(f"| patches | way | all | {' | '.join(kinds)} |\n|{'---|' * (3 + len(kinds))}")
    for batch in options.batches:
        separate = Separate(config, count, batch, "no")
        for way in ("separate", *WAYS):
            step = separate if way == "separate" else Packed(config, separate, way, "no")
            step()
            whole = min(seconds(step) for _ in range(options.times))
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                step()
            spent = dict.fromkeys(kinds, 0.0)
            for event in seen.key_averages():
                kind = _kind(event.key)
                spent[kind] += event.self_cpu_time_total / 1e6
            spent["between operators"] = max(0.0, whole - math.fsum(spent.values()))
            cells = [f"{1e3 * value / count:.1f}" for value in (whole, *spent.values())]
            print(f"| {batch} | {way} | {' | '.join(cells)} |", flush=True)


def _kind(operator: str) -> str:
    name = operator.lower()
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "other operators"


def main(options: argparse.Namespace) -> None:
    """Print what is asked for."""
    keep_freed_memory()
    where = torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "CPU"
    if not options.cores:
        torch.set_num_threads(1)
    print(f"{where}, torch {torch.__version__}; medians of {options.times} turns\n")
    if options.profile:
        print_profile(options)
    elif options.cores:
        print_cores(options)
    else:
        print_steps(options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=list(NAMES))
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8], metavar="K")
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 4], metavar="N")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--times", type=int, default=3, help="turns; their median counts")
    parser.add_argument("--cores", action="store_true", help="two processes, or two threads")
    parser.add_argument("--profile", metavar="PRESET")
    main(parser.parse_args())
