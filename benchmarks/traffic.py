"""What ranks send in a training step: counted, checked on the wire, and as time on links.

    unshare -rn python -m benchmarks.traffic [PRESET ...]

Gradients are counted as DDP hands them to all-reduce. Then the bytes are read that loopback carried
in a step of 2 and of 4 ranks (gloo). In a network namespace of its own, as unshare makes it, only
these ranks use loopback; elsewhere the bytes of other programs count too.

A ring sends 2 (n - 1) / n of the gradients from each of n ranks, and 2 (n - 1) times the gradients
in all. From that follow the times of the second table, which nothing measures: none of the exchange
hidden behind the backward pass, and a latency for each of the 2 (n - 1) hops of each all-reduce.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling import Traffic, TrafficCounter, joined_as, ring_seconds
from benchmarks.whole_table import Step, of_patches

FAMILIES = ("small", "fcn-1", "unet-7", "dcsrn-l1", "dcgan-2", "pix2pix-9")
RANKS = (2, 4)
STEPS = 2
"""Steps whose bytes are counted, after one that is not."""
MANY = (2, 4, 8, 16, 32, 64)
LINKS = {"10 Gb/s": 1.25e9, "25 Gb/s": 3.125e9, "100 Gb/s": 12.5e9, "NVLink, 450 GB/s": 450e9}
LATENCY = {"10 Gb/s": 30e-6, "25 Gb/s": 20e-6, "100 Gb/s": 10e-6, "NVLink, 450 GB/s": 3e-6}
"""Seconds a hop, assumed."""
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def loopback_bytes() -> int:
    """Bytes that loopback has carried."""
    rows = Path("/proc/net/dev").read_text().splitlines()
    return int(next(row for row in rows if row.strip().startswith("lo:")).split(":")[1].split()[0])


def start_loopback() -> None:
    """Switch loopback on, which a new namespace has switched off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, asked))
        if not flags & IFF_UP:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def rank_main(rank: int, ranks: int, port: int, names: Sequence[str], answers: Any) -> None:
    """One rank: steps of each preset, the bytes of loopback around them."""
    accelerator = joined_as(rank, ranks, port)
    for name in names:
        step = Step(of_patches(name), 2, accelerator)
        counter = TrafficCounter()
        for learner in step.learners.values():
            counter.watch(learner.network)
        step()
        counted = Traffic(**vars(counter))
        torch.distributed.barrier()
        before = loopback_bytes()
        for _ in range(STEPS):
            step()
        torch.distributed.barrier()
        if rank == 0:
            answers.put((name, counted, (loopback_bytes() - before) / STEPS))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def on_ranks(ranks: int, names: Sequence[str]) -> dict[str, tuple[Traffic, float]]:
    """Preset to what was counted and what loopback carried, a step.

    Raises:
        RuntimeError: If a rank fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=rank_main, args=(rank, ranks, port, names, answers))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = {}
    for _ in names:
        name, counted, carried = answers.get(timeout=600)
        found[name] = counted, carried
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a rank of {ranks} failed, see above")
    return found


def main(names: Sequence[str]) -> None:
    """Print both tables."""
    start_loopback()
    found = {ranks: on_ranks(ranks, names) for ranks in RANKS}
    columns = " | ".join(
        f"{ranks} ranks: expected, MB | carried, MB | carried / expected" for ranks in RANKS
    )
    print(f"| preset | all-reduces | gradients, MB | {columns} |")
    print("|---" * (3 + 3 * len(RANKS)) + "|")
    for name in names:
        traffic = found[RANKS[0]][name][0]
        cells = [name, str(traffic.calls), f"{traffic.bytes / 1e6:.3f}"]
        for ranks in RANKS:
            own, carried = found[ranks][name]
            expected = 2 * (ranks - 1) * own.bytes
            cells += [f"{expected / 1e6:.3f}", f"{carried / 1e6:.3f}", f"{carried / expected:.3f}"]
        print(f"| {' | '.join(cells)} |")
    print("\nCOMPUTED, not measured: milliseconds of the exchanges of a step\n")
    print(f"| preset | link | {' | '.join(f'{ranks} ranks' for ranks in MANY)} |")
    print("|---" * (2 + len(MANY)) + "|")
    for name in names:
        traffic = found[RANKS[0]][name][0]
        for link, bandwidth in LINKS.items():
            times = [ring_seconds(traffic, n, LATENCY[link], bandwidth) for n in MANY]
            cells = " | ".join(f"{1e3 * seconds:.2f}" for seconds in times)
            print(f"| {name} | {link} | {cells} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="*", default=FAMILIES)
    main(parser.parse_args().presets)
