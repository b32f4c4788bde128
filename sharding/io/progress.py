"""Progress of long work: a bar on a terminal or in a notebook, otherwise an occasional line."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10
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
