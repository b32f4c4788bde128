"""The error of a configuration that cannot be run."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the dotted field and the rule."""
