"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10


def progress(items: Iterable[Item], title: str, total: int, quiet: bool = False) -> Iterator[Item]:
    """Yield the items while telling on standard error how far it is."""
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, desc=title, total=total, leave=False)
    else:
        started = last = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if done == total or now - last > SECONDS_BETWEEN_LINES:
                print(
                    f"{title}: {done}/{total}, {now - started:.0f} s", file=sys.stderr, flush=True
                )
                last = now
