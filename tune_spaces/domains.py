"""A weight that may be exactly 0: one continuous dimension for every way of searching."""

from __future__ import annotations

import math
from typing import Any

from ray.tune.search.sample import Float

Space = dict[str, Any]
"""Dotted field of RunConfig -> Ray Tune domain, or Tune's `{"grid_search": [...]}`."""


class ZeroOrLog(Float):
    """Exactly 0, or log-uniform in [low, high].

    To Ray Tune this is a log-uniform float over [floor, upper]; what lies below `low` means 0.
    Random search draws through `cast`. Optuna's TPE sees the raw dimension and hands out raw
    values: pass what it suggests through `cast`, and observed values back through `raw`.
    Population based training moves a weight by a factor, so that 0 stays 0 until it is resampled.

    Build one with `zero_or_log`.
    """

    def __init__(self, low: float, high: float, zero: float) -> None:
        self.low, self.zero = low, zero
        # The share of [floor, high] below low is then `zero` on a logarithmic scale.
        super().__init__(low * (low / high) ** (zero / (1 - zero)), high)
        self.set_sampler(Float._LogUniform())

    def cast(self, value: float) -> float:
        """0.0 below `low`, else the value; casting twice changes nothing."""
        return 0.0 if self.zero and value < self.low else float(value)

    def raw(self, value: float) -> float:
        """A value that `cast` turns into this one, inside the bounds that searchers see.

        Returns:
            For 0 the middle of what means 0, on the logarithmic scale; else the value.

        Raises:
            ValueError: If the value is 0 and the domain never draws 0.
        """
        if value != 0:
            return float(value)
        if not self.zero:
            raise ValueError("0 is not in this domain: build it with zero > 0")
        return math.sqrt(self.lower) * math.sqrt(self.low)

    def is_valid(self, value: float) -> bool:
        """Whether the value can be drawn."""
        return (value == 0 and self.zero > 0) or self.low <= value <= self.upper

    def sample(self, config: Any = None, size: int = 1, random_state: Any = None) -> Any:
        """One value, or a list of `size` values; Ray would not cast more than one."""
        drawn = super().sample(config, size, random_state)
        return drawn if size == 1 else [self.cast(value) for value in drawn]

    @property
    def domain_str(self) -> str:
        """The values, for Ray's messages."""
        return f"0 or ({self.low}, {self.upper})" if self.zero else f"({self.low}, {self.upper})"


def zero_or_log(low: float, high: float, zero: float = 0.2) -> ZeroOrLog:
    """A weight that is 0 in a share `zero` of draws, else log-uniform in [low, high].

    Raises:
        ValueError: Unless 0 < low < high and 0 <= zero < 1, or if `zero` is too near 1.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"zero_or_log must have 0 < low < high, got low {low}, high {high}")
    if not 0 <= zero < 1:
        raise ValueError(f"zero must be a share in [0, 1), got {zero}")
    domain = ZeroOrLog(float(low), float(high), float(zero))
    if domain.lower < 1e-300:
        raise ValueError(f"zero is too near 1 for the range [{low}, {high}], got {zero}; lower it")
    return domain
