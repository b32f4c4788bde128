"""Progress of items that are made in steps, wherever they are made: workers tell of each step.

The work calls `begin_step`; `StepProgress` shows it. Between the two stands a listener, which
`sharding.io.parallel` sets in this process or in its workers.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from sharding.io.progress import OverallProgress

Listener = Callable[[tuple[str, str]], None]
"""Receives the name of an item, and the step that it begins."""

MOST_SHOWN = 4
"""Items under way that are named."""
SECONDS_BETWEEN_TICKS = 1.0

_listener: Listener | None = None


def begin_step(item: str, step: str) -> None:
    """Tell whoever listens that an item begins a step."""
    if _listener is not None:
        # A queue whose reader has gone must not fail the work.
        with contextlib.suppress(OSError, ValueError):
            _listener((item, step))


def set_listener(listener: Listener | None) -> None:
    """Have this process tell a listener; None for nobody."""
    global _listener
    _listener = listener


class StepProgress:
    """Shows how many items are done, which ones are under way, and in which step.

    Args:
        title: What is being done.
        items: How many items there are.
        weights: Every step of an item, in order, and how long it takes compared with the others.
    """

    def __init__(self, title: str, items: int, weights: Mapping[str, float]) -> None:
        self._items, self._weights = items, weights
        self._under_way: dict[str, str] = {}
        self._done, self._free = 0, 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._shown = OverallProgress(title)
        # A step may take minutes: meanwhile the time that is shown goes on.
        self._ticking = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._shown.start()
        self._ticking.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._ticking.join()
        if kind is None:
            self._shown.end(f"{self._done} of {self._items} done")
        self._shown.close()

    def begin(self, event: tuple[str, str]) -> None:
        """An item begins a step."""
        with self._lock:
            item, step = event
            self._under_way[item] = step
            self._show(always=True)

    def finish(self, item: str) -> None:
        """An item is done; one without any step was done before."""
        with self._lock:
            self._done += 1
            self._free += self._under_way.pop(item, None) is None
            self._show(always=True)

    @contextlib.contextmanager
    def listening_to(self, events: Any) -> Iterator[None]:
        """Begin the steps that workers put into a queue while the block runs."""
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                with contextlib.suppress(queue.Empty):
                    self.begin(events.get(timeout=0.2))

        # A daemon that nobody waits for: a worker that was killed may have left half an event.
        threading.Thread(target=read, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _tick(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_TICKS):
            with self._lock:
                self._show()

    def _show(self, always: bool = False) -> None:
        total, items = sum(self._weights.values()), max(self._items, 1)
        share = float(self._done)
        for step in self._under_way.values():
            names = list(self._weights)
            before = names[: names.index(step)]
            share += sum(self._weights[name] for name in before) / total
        under_way = [f"{item} {step}" for item, step in self._under_way.items()]
        more = len(under_way) - MOST_SHOWN
        text = f"{self._done} of {self._items} done"
        if under_way:
            text += "; " + ", ".join(under_way[:MOST_SHOWN]) + (f" and {more} more" * (more > 0))
        self._shown.show(share / items, text, self._free / items, always)
