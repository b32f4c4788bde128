"""What the key of each step depends on."""

from __future__ import annotations

import importlib.metadata

import pytest

from sharding.registration.config import PrepareConfig
from sharding.registration.specimen_steps import SpecimenSteps
from sharding.volumes.cohort import read_cohort


@pytest.mark.parametrize(
    ("package", "changed"),
    [
        ("picsl_greedy", ["deform", "resample"]),
        ("SimpleITK", ["correct", "scale", "rigid", "affine", "deform", "resample"]),
        ("scipy", ["resample"]),
    ],
)
def test_another_version_of_a_tool_redoes_its_steps_and_what_follows(
    package, changed, raw, monkeypatch
):
    specimen = read_cohort(raw)[0]
    before = SpecimenSteps(specimen, PrepareConfig()).steps
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9" if name == package else version(name)
    )
    after = SpecimenSteps(specimen, PrepareConfig()).steps
    assert [one.name for one, two in zip(before, after, strict=True) if one.key != two.key] == (
        changed
    )


def test_a_deformation_alone_depends_on_both_registration_tools(raw):
    config = PrepareConfig(steps=("scale", "deform", "resample"))
    steps = {step.name: step for step in SpecimenSteps(read_cohort(raw)[0], config).steps}
    assert set(steps["deform"].tools) == {"picsl_greedy", "SimpleITK"}
