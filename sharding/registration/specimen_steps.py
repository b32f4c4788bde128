"""What preparing a specimen will do: its steps, and the key of each, before anything is done."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from sharding.registration.alignment import LEAST_GAIN
from sharding.registration.config import REGISTRATION_STEPS, PrepareConfig, StepName
from sharding.registration.step_cache import Step, file_sha256
from sharding.volumes.cohort import Specimen
from sharding.volumes.contrasts import SOURCE
from sharding.volumes.formats.registry import files_of
from sharding.volumes.intensities import SCALED_MAX
from sharding.volumes.pair import source_of

FORMAT = 3
"""Part of every key: raise it when a step comes to do something else with the same parameters."""
QUALITY_FORMAT = 2
"""The same for what is measured and drawn of a finished specimen."""

SPLINE_ORDER = 3

AFFINE_ONLY = ("affine_",)
DEFORM_ONLY = ("deform_", "update_", "field_")
"""How the names of those fields of RegisterConfig begin that only linear or only deformable
registration reads."""


class SpecimenSteps:
    """The steps of one specimen.

    A key is made of the step's parameters, its tools' versions and the keys of what it reads, down
    to the bytes of the raw files: a change anywhere changes the keys of what follows, and no other.

    Args:
        specimen: With a source.
        config: What to do.
    """

    def __init__(self, specimen: Specimen, config: PrepareConfig) -> None:
        self.specimen = specimen
        self.config = config

    @property
    def first_registration(self) -> StepName | None:
        """The first step that moves the source; None without any."""
        return next((step for step in self.config.steps if step in REGISTRATION_STEPS), None)

    @cached_property
    def sources(self) -> dict[str, Path]:
        """Role -> raw file of each contrast of the source: `source`, then such as `source_t2`."""
        further = {f"{SOURCE}{each.name}": each.source for each in self.specimen.further}
        return {"source": source_of(self.specimen), **further}

    @cached_property
    def raw_sha256(self) -> dict[str, str]:
        """Role -> sha256 of the raw file; of the checksums of its files if it has several."""
        files = {
            **self.sources,
            "target": self.specimen.target,
            "mask": self.specimen.mask,
        }
        return {role: _volume_sha256(path) for role, path in files.items() if path}

    @cached_property
    def steps(self) -> list[Step]:
        """The steps, each with its key, without doing any."""
        raw = dict(self.raw_sha256)
        mask = {"mask": raw.pop("mask")} if "mask" in raw else {}
        volumes, transform = raw, {}
        found = []
        for name in self.config.steps:
            inputs = dict(volumes)
            if name == "correct":
                inputs |= mask
            if name in (*REGISTRATION_STEPS, "resample"):
                inputs |= transform | mask
            parameters, tools = self._depends_on(name)
            step = Step(name, parameters | {"format": FORMAT}, tools, inputs)
            if name in ("correct", "scale"):
                volumes = {name: step.key}
            else:
                transform = {name: step.key}
            found.append(step)
        return found

    def _depends_on(self, name: StepName) -> tuple[dict[str, Any], dict[str, str]]:
        """Parameters and tools of a step."""
        config = self.config
        threshold = {} if self.specimen.mask else _some(config.preprocess, "foreground_threshold")
        threshold |= _some(config.preprocess, "orientation")
        if "scale" not in config.steps:
            threshold |= _some(config.preprocess, "clip_percentiles")
        if name == "correct":
            return asdict(config.correct), _versions("SimpleITK")
        if name == "scale":
            clip = _some(config.preprocess, "clip_percentiles")
            return clip | {"maximum": SCALED_MAX}, _versions("numpy")
        if name == "resample":
            overlap = _some(config.preprocess, "min_overlap")
            own = threshold | overlap | {"order": SPLINE_ORDER}
            if not (self.specimen.further and config.registers):
                return own, _versions("scipy")
            # It also registers the other contrasts to the first.
            names = {"contrasts": list(self.specimen.contrasts)}
            rigid = _register(config, DEFORM_ONLY)
            return own | names | rigid | {"least_gain": LEAST_GAIN}, _versions("scipy", "SimpleITK")
        others = AFFINE_ONLY if name == "deform" else DEFORM_ONLY
        if name == "deform" and name == self.first_registration:
            others = ()  # It measures how well the mirrored source fits, by a rigid registration.
        register = _register(config, others)
        tools = ["picsl_greedy"] if name == "deform" else []
        if name != "deform" or not others:
            tools.append("SimpleITK")
        return threshold | register | {"least_gain": LEAST_GAIN}, _versions(*tools)

    @cached_property
    def key(self) -> str:
        """Key of the finished specimen: of its steps and of all that is checked or measured."""
        keys = {step.name: step.key for step in self.steps} | self.raw_sha256
        tools = _versions("numpy", "scipy", "scikit-image", "matplotlib")
        formats = {"format": FORMAT, "quality_format": QUALITY_FORMAT}
        return Step("quality", asdict(self.config) | formats, tools, keys).key


def _volume_sha256(path: Path) -> str:
    digests = [file_sha256(file) for file in files_of(path)]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _register(config: PrepareConfig, without: tuple[str, ...]) -> dict[str, Any]:
    """The fields of the registration whose names do not begin like these."""
    fields = asdict(config.register).items()
    return {field: value for field, value in fields if not field.startswith(without)}


def _some(config: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}
