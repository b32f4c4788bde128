"""Marks networks that were hardly trained, beside their numbers."""

from __future__ import annotations

LEAST_STEPS = 1000
"""Optimiser steps under which a network counts as untrained: its numbers tell how it starts, not
what it is worth."""
MARK = "†"
MARK_MEANS = (
    f"{MARK} Untrained: fewer than {LEAST_STEPS:,} optimiser steps. Such a row says how a network "
    "starts, not what it is worth."
)


def is_untrained(steps: int | None) -> bool:
    """Whether a network of so many optimiser steps is marked; None: a method without steps."""
    return steps is not None and steps < LEAST_STEPS


def marked(name: str, steps: int | None) -> str:
    """The name of a row, with the mark if it is of an untrained network."""
    return f"{name} {MARK}" if is_untrained(steps) else name
