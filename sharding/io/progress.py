"""Progress of long work: a bar on a terminal or in a notebook, otherwise an occasional line.

`progress` counts equal items. `OverallProgress` shows work whose parts take unequal time, with what
is going on and the time that is left.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES, MOST_SECONDS_BETWEEN_LINES = 10, 300
SHARE_BETWEEN_LINES = 0.1
"""A line after a tenth of the time so far, within the two limits."""
SECONDS_BETWEEN_REFRESHES = 0.1
LEAST_SHARE, LEAST_SECONDS = 0.01, 2.0
"""With less than this done, the time that is left is not estimated."""
logger = logging.getLogger(__name__)


def progress(
    items: Iterable[Item],
    title: str,
    total: int,
    quiet: bool = False,
    *,
    initial: int = 0,
    logger: logging.Logger = logger,
    last_line: bool = True,
) -> Iterator[Item]:
    """Yield the items while showing how far the work is.

    Args:
        items: The items of the work.
        title: Shown before the count.
        total: Number of items, including those that were done before.
        quiet: Show nothing.
        initial: Number of items that were done before.
        logger: Receives the lines; a bar is not shown if its level, or that of a parent, is above
            INFO: `logging.getLogger("sharding").setLevel(logging.WARNING)` silences both.
        last_line: Log a line when everything is done, even if it took little time.
    """
    if quiet or _is_silenced(logger):
        yield from items
    elif _in_notebook() or sys.stderr.isatty():
        yield from _bar_class()(items, desc=title, total=total, initial=initial, leave=False)
    else:
        started = last = time.monotonic()
        for done, item in enumerate(items, start=initial + 1):
            yield item
            now = time.monotonic()
            if (done == total and last_line) or now - last > SECONDS_BETWEEN_LINES:
                logger.info("%s: %d/%d, %.0f s", title, done, total, now - started)
                last = now


class OverallProgress:
    """How far work has come as a share, what is going on, and how much time is left.

    On a terminal or in a notebook it is one bar; elsewhere a line now and then, the more rarely the
    longer the work has taken.

    Args:
        title: What is being done.
        quiet: Show nothing.
        logger: As for `progress`.
    """

    def __init__(self, title: str, quiet: bool = False, *, logger: logging.Logger = logger) -> None:
        self._title, self._logger, self._quiet = title, logger, quiet
        self._bar: Any = None
        self._lines = False
        self._started = self._last = time.monotonic()

    def start(self) -> None:
        """Show the bar, where there is one, and start the clock."""
        if not self._quiet and not _is_silenced(self._logger):
            self._lines = not (_in_notebook() or sys.stderr.isatty())
            if not self._lines:
                form = "{percentage:3.0f}%|{bar:20}| {desc}"
                self._bar = _bar_class()(
                    total=1.0, bar_format=form, leave=False, dynamic_ncols=True
                )
        self._started = self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether `show` would show anything now."""
        if not self._lines and self._bar is None:
            return False
        now = time.monotonic()
        if self._bar is not None:
            return now - self._last > SECONDS_BETWEEN_REFRESHES
        longer = SHARE_BETWEEN_LINES * (now - self._started)
        between = min(max(SECONDS_BETWEEN_LINES, longer), MOST_SECONDS_BETWEEN_LINES)
        return now - self._last > between

    def show(self, share: float, text: str, free: float = 0.0, always: bool = False) -> None:
        """Show the state, if it is time to.

        Args:
            share: Share of the work that is done, 0 to 1.
            text: What is going on.
            free: Share that was done before, or took no time: it says nothing about the rest.
            always: Show it now, on a bar; lines stay occasional.
        """
        if not self.due and not (always and self._bar is not None):
            return
        self._last = time.monotonic()
        spent = self._last - self._started
        times = f"{duration(spent)} so far"
        done = share - free
        if done >= LEAST_SHARE and spent >= LEAST_SECONDS:
            times += f", about {duration(spent * (1 - share) / done)} left"
        if self._bar is not None:
            self._bar.n = min(share, 1.0)
            self._bar.set_description_str(f"{self._title}: {text}, {times}")
        else:
            self._logger.info("%s: %.0f %%, %s, %s", self._title, 100 * share, text, times)

    def end(self, text: str) -> None:
        """Log what was done and in which time, where there is no bar."""
        if self._lines:
            spent = duration(time.monotonic() - self._started)
            self._logger.info("%s: %s in %s", self._title, text, spent)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """A time in one unit: "42 s", "12 min", "3.4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _is_silenced(logger: logging.Logger) -> bool:
    """Whether a level was set, on the logger or one of its named parents, that hides messages."""
    found: logging.Logger | None = logger
    while found is not None and found is not logging.root:
        if found.level > logging.INFO:
            return True
        found = found.parent
    return False


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


def _bar_class() -> type[tqdm]:
    """tqdm's bar of widgets where they can be shown, and otherwise the one of plain text."""
    if _in_notebook() and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as widget_bar

        return widget_bar
    return tqdm
