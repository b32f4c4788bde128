"""What the shards know of a run: the patch, where it starts, its slices and its contrasts."""

from __future__ import annotations

from typing import Any

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from sharding.shards.manifest import Manifest

CUT_FIELDS = ("patch_size", "neighbours", "alignment")
"""Fields of the section `data` that are fields of ShardConfig too."""
SHARD_FIELDS = (*CUT_FIELDS, "contrasts")
"""Fields of the section `data` that the manifest decides."""


def fields_of(manifest: Manifest) -> dict[str, Any]:
    """The fields of a run that its shards decide, by dotted name."""
    cut = {f"data.{name}": getattr(manifest.config, name) for name in CUT_FIELDS}
    return {**cut, "data.contrasts": manifest.contrast_count}


def resolved(config: RunConfig, manifest: Manifest) -> RunConfig:
    """The configuration with the patch of its shards, checked as a whole once more.

    Args:
        config: As it was asked for; fields of the patch that are None are filled in.
        manifest: The manifest of the shards that it names.

    Raises:
        ConfigError: If a field that was given does not agree with the shards, or their patch does
            not suit the networks, the losses or the stitching.
    """
    found = fields_of(manifest)
    for name, here in found.items():
        given = getattr(config.data, name.removeprefix("data."))
        if given is not None and given != here:
            raise ConfigError(
                f"{name} must be {here}, as in the shards {config.data.shards}, got {given}; "
                "leave it out, and it is taken from the shards"
            )
    return with_overrides(config, found)
