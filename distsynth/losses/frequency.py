"""The focal frequency term: differences of spectra, weighted to where they are large."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distsynth.losses.term import Outputs, Term, TermConfig, check_same_shape
from distsynth.rules import Rule, at_least


@dataclass(frozen=True)
class FrequencyConfig(TermConfig):
    """Fields of the focal frequency term."""

    lambda_frequency: float = field(default=0.0, kw_only=True)
    """Weight of the focal frequency term."""
    frequency_focus: float = field(default=1.0, kw_only=True)
    """Power of a difference by which it is weighted; 0 weighs all frequencies alike, which is the
    squared difference of voxels."""

    def rules(self) -> Iterable[Rule]:
        """The focus is not negative."""
        yield at_least("frequency_focus", self.frequency_focus, 0)


class FocalFrequency(Term):
    """The focal frequency loss of Jiang et al. (ICCV 2021), in two or three dimensions.

    For the orthonormal Fourier transform D of a patch's difference, the mean of w |D|² over its
    frequencies, with w = (|D| / max |D|) ** focus of that patch, which no gradient changes.
    """

    name = "frequency"
    config = FrequencyConfig

    def __init__(self, config: FrequencyConfig) -> None:
        super().__init__()
        self._focus = config.frequency_focus

    @classmethod
    def description(cls, config: Any) -> str:
        """The term in a few words."""
        return f"focal frequency (focus {config.frequency_focus:g})"

    def forward(self, outputs: Outputs) -> Tensor:
        """The weighted difference, a scalar in float32."""
        check_same_shape(outputs.synthetic, outputs.target)
        difference = outputs.synthetic.float() - outputs.target.float()
        sides = tuple(range(2, difference.dim()))
        with torch.autocast(difference.device.type, enabled=False):
            squares = torch.fft.fftn(difference, dim=sides, norm="ortho").abs().square()
        if not self._focus:
            return squares.mean()
        largest = squares.detach().amax(dim=sides, keepdim=True).clamp(min=1e-12)
        weight = (squares.detach() / largest).sqrt() ** self._focus
        return (weight * squares).mean()
