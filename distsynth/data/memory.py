"""How much memory this process may keep for itself."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

GPU_SHARE, HOST_SHARE = 1 / 2, 1 / 4
"""Shares of the free memory that may be filled for a whole run."""
CGROUPS = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt."""
LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""The largest threshold that glibc accepts."""


def keepable_bytes(device: torch.device, ranks: int = 1) -> int:
    """Bytes of data that may be kept on a device for a whole run.

    Args:
        device: The device of this process. A GPU gives half of its free memory; for any other
            device its host gives a quarter of what is available, shared between the ranks on it.
        ranks: Number of all ranks; all are taken to be on this host unless LOCAL_WORLD_SIZE is set.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * GPU_SHARE)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    return int(available_bytes() * HOST_SHARE / here)


def available_bytes() -> int:
    """Bytes that this process can take without swapping, within its host or container."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups(own: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> Iterator[int]:
    """Bytes left in each control group (version 2) that limits this process."""
    if not own.is_file():
        return
    name = own.read_text().rpartition("::")[2].strip().strip("/")
    # Within a container the name may be the host's, and the container's own group is the root.
    for group in (root / name, *(root / name).parents):
        limit, usage = group / "memory.max", group / "memory.stat"
        if not limit.is_file() or limit.read_text().strip() == "max":
            continue
        used = dict(line.split() for line in usage.read_text().splitlines())
        # Cached files are not counted: the system drops them when memory is short.
        yield int(limit.read_text()) - int(used["anon"]) - int(used["shmem"])


def keep_freed_memory(any_size: bool = True) -> None:
    """Let this process keep what it frees for its next step, where the C library is glibc.

    By default large blocks go back to the system at once, and each step of a training, or forward
    of a prediction, on the CPU waits for fresh pages again. No number changes. The process
    stays as large as its largest step.

    Args:
        any_size: Keep blocks above 32 MB too. They leave gaps between them, so that the process
            takes up to twice what it uses: for training, not where memory is to be bounded.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            if any_size:
                mallopt(M_MMAP_MAX, 0)
            else:
                mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
