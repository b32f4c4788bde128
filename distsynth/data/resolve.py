"""What the shards know of a run: the patch, where it starts, its slices and its contrasts."""

from __future__ import annotations

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from sharding.shards.manifest import Manifest

SHARD_FIELDS = ("patch_size", "neighbours", "alignment", "contrasts")
"""Fields of the section `data` that the manifest decides."""


def resolved(config: RunConfig, manifest: Manifest) -> RunConfig:
    """The configuration with the patch of its shards, checked as a whole once more.

    Args:
        config: As it was asked for; fields of the patch that are None are filled in.
        manifest: The manifest of the shards that it names.

    Raises:
        ConfigError: If a field that was given does not agree with the shards, or their patch does
            not suit the networks, the losses or the stitching.
    """
    found = {}
    for name in SHARD_FIELDS:
        here = manifest.contrast_count if name == "contrasts" else getattr(manifest.config, name)
        given = getattr(config.data, name)
        if given is not None and given != here:
            raise ConfigError(
                f"data.{name} must be {here}, as in the shards {config.data.shards}, got {given}; "
                "leave it out, and it is taken from the shards"
            )
        found[f"data.{name}"] = here
    return with_overrides(config, found)
