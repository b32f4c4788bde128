"""The registry of the terms of the generator's loss, and the configuration that they share.

To add a term, write its fields and its class in a file of their own, and list both here: the class
in TERMS, the fields among the bases of LossConfig; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from distsynth.losses.adversarial import Adversarial, AdversarialConfig
from distsynth.losses.frequency import FocalFrequency, FrequencyConfig
from distsynth.losses.gradient import GradientConfig, GradientDifference
from distsynth.losses.matching import FeatureMatching, MatchingConfig
from distsynth.losses.overlap import Overlap, OverlapConfig
from distsynth.losses.perceptual import Perceptual, PerceptualConfig
from distsynth.losses.reconstruction import Reconstruction, ReconstructionConfig
from distsynth.losses.structure import Structure, StructureConfig
from distsynth.losses.term import MaskedConfig, Term
from distsynth.rules import Rule, at_least

TERMS: tuple[type[Term], ...] = (
    Adversarial,
    Reconstruction,
    GradientDifference,
    Perceptual,
    FeatureMatching,
    Overlap,
    Structure,
    FocalFrequency,
)
"""Every term, in the order in which they are summed and logged."""


# Dataclasses take the fields of the last base first: they stand in the order of TERMS.
@dataclass(frozen=True)
class LossConfig(
    FrequencyConfig,
    StructureConfig,
    OverlapConfig,
    MatchingConfig,
    PerceptualConfig,
    GradientConfig,
    ReconstructionConfig,
    AdversarialConfig,
):
    """Weights of the generator's loss (eq. 5), and what its terms need besides."""

    def weight(self, term: str) -> float:
        """The weight of a term by its name."""
        return getattr(self, f"lambda_{term}")

    def rules(self) -> Iterable[Rule]:
        """No weight is negative, and the pairs count."""
        yield at_least("mask_weight", self.mask_weight, 0)
        for term in TERMS:
            yield at_least(f"lambda_{term.name}", self.weight(term.name), 0)
            yield from term.config.rules(self)
        supervised = sum(self.weight(term.name) for term in TERMS if term.supervised)
        rule = "more than terms of the discriminator: the pairs must count"
        yield Rule("", supervised > 0, rule, self)

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse patches that a term of positive weight cannot compare."""
        for term in TERMS:
            if self.weight(term.name) > 0:
                term.config.check_patch(self, patch_size)

    @property
    def discriminated(self) -> dict[str, float]:
        """Weights of the terms that need a discriminator, by their fields."""
        names = (term.name for term in TERMS if not term.supervised)
        return {f"lambda_{name}": self.weight(name) for name in names}

    @property
    def label(self) -> str:
        """The terms in one line for listings, such as "1 bce + 1.5 l1"."""
        return " + ".join(f"{weight:g} {term.label(self)}" for term, weight in self._used())

    @property
    def description(self) -> str:
        """The terms in one line for the model card."""
        terms = " + ".join(
            f"{weight:g} x {term.description(self)}" for term, weight in self._used()
        )
        masked = any(issubclass(term.config, MaskedConfig) for term, _ in self._used())
        if not masked or self.mask_weight == 1:
            return terms
        return f"{terms}; voxels outside of the mask count {self.mask_weight:g}"

    def _used(self) -> Iterator[tuple[type[Term], float]]:
        for term in TERMS:
            if weight := self.weight(term.name):
                yield term, weight
