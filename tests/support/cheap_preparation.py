"""A preparation that takes a second for a tiny phantom."""

from __future__ import annotations

from sharding.registration.bias_correction import CorrectConfig
from sharding.registration.config import PrepareConfig
from sharding.registration.register import RegisterConfig

CHEAP = PrepareConfig(
    correct=CorrectConfig(iterations=(5, 5), spline_mm=8.0),
    register=RegisterConfig(
        affine_shrink=(2, 1),
        affine_iterations=40,
        deform_shrink=(2,),
        deform_iterations=(12,),
    ),
)
