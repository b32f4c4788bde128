"""A preparation that takes a second for a tiny phantom."""

from __future__ import annotations

from pathlib import Path

from sharding.registration.bias_correction import CorrectConfig
from sharding.registration.config import PrepareConfig
from sharding.registration.prepare import prepare_cohort
from sharding.registration.register import RegisterConfig
from sharding.volumes.cohort import read_cohort

CHEAP = PrepareConfig(
    correct=CorrectConfig(iterations=(5, 5), spline_mm=8.0),
    register=RegisterConfig(
        affine_shrink=(2, 1),
        affine_iterations=15,
        deform_shrink=2,
        deform_iterations=(6,),
    ),
)


def prepare_two(raw: Path, out: Path) -> None:
    """Prepare the first two specimens of a cohort, in a process that may be killed."""
    prepare_cohort(read_cohort(raw)[:2], out, CHEAP, workers=1)
