"""Rules about the fields of a configuration, stated by the dataclass that defines the fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from distsynth.errors import ConfigError

MOST_LAYERS, MOST_FEATURES, LARGEST_KERNEL = 256, 16_384, 255
"""Limits that no useful network exceeds: larger values are typing errors and would fill memory."""


class Rule(NamedTuple):
    """A rule about one field.

    Attributes:
        field: Name of the field within its section; empty for a rule about the whole section.
        holds: Whether the value obeys the rule.
        rule: What the field must be, to follow "must be".
        value: What it is.
    """

    field: str
    holds: bool
    rule: str
    value: Any


def at_least(field: str, value: float, low: float) -> Rule:
    """The rule that a number has a lower bound."""
    return Rule(field, value >= low, f">= {low}", value)


def between(field: str, value: float, low: float, high: float) -> Rule:
    """The rule that a number has bounds; the upper one catches typing errors."""
    return Rule(field, low <= value <= high, f"from {low} to {high}", value)


def positive(field: str, value: float) -> Rule:
    """The rule that a number is more than 0."""
    return Rule(field, value > 0, "> 0", value)


def counts(**values: int) -> Iterable[Rule]:
    """The rules that there is at least one of each thing, and no absurd number.

    Args:
        values: Field to value; `features` and `growth` count feature maps, the others layers.
    """
    for field, value in values.items():
        most = MOST_FEATURES if field in ("features", "growth") else MOST_LAYERS
        yield between(field, value, 1, most)


def positive_widths(field: str, widths: Sequence[int]) -> Iterable[Rule]:
    """The rules that there are feature maps in every layer, and no absurd number of either."""
    yield Rule(field, len(widths) > 0 and min(widths) > 0, "positive widths", widths)
    few = len(widths) <= MOST_LAYERS and max(widths) <= MOST_FEATURES
    rule = f"at most {MOST_LAYERS} widths of at most {MOST_FEATURES}"
    yield Rule(field, few, rule, f"{len(widths)} of up to {max(widths)}")


def odd_kernels(field: str, kernels: Sequence[int], layers: int) -> Iterable[Rule]:
    """The rules that kernel sizes are odd, and one for all layers or one for each."""
    odd = all(0 < kernel <= LARGEST_KERNEL and kernel % 2 for kernel in kernels)
    yield Rule(field, odd, f"positive odd sizes of at most {LARGEST_KERNEL}", kernels)
    fits = len(kernels) in {1, layers}
    yield Rule(field, fits, f"1 or {layers} sizes for these channels", kernels)


def check_rules(section: str, rules: Iterable[Rule]) -> None:
    """Refuse the first rule that does not hold.

    Args:
        section: The section of the configuration; empty for rules whose fields are dotted names.
        rules: In the order in which they are checked.

    Raises:
        ConfigError: Names the dotted field, the rule and the value.
    """
    for field, holds, rule, value in rules:
        if not holds:
            name = ".".join(part for part in (section, field) if part)
            raise ConfigError(f"{name} must be {rule}, got {value}")
