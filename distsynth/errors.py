"""The error of a configuration that cannot be run."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the dotted field and the rule."""


def check_workers(workers: int) -> None:
    """Raise ConfigError for a number of processes that cannot be started."""
    if workers < 0:
        raise ConfigError(f"workers must be >= 0, where 0 starts one for each core, got {workers}")
