"""Adversarial losses: what the discriminator is trained by, and the generator's term (eq. 1, 2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from distsynth.losses.penalty import Kind, Penalty
from distsynth.losses.term import Outputs, Term, TermConfig
from distsynth.rules import Rule, at_least, positive

Name = Literal["bce", "least-squares", "hinge", "wasserstein", "kl"]
LARGEST_LOGIT = 10.0
"""Up to which the KL divergence takes the exponential of a logit."""


class AdversarialLoss(Protocol):
    """A pair of losses on the discriminator's logits, (batch, 1) or (batch, 1, *map).

    Attributes:
        description: Of the pair in a few words, for the model card.
    """

    description: str

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What the discriminator minimises: a scalar, mean over batch and map.

        Args:
            real_logits: Of target patches.
            fake_logits: Of synthetic patches, same shape.
        """
        ...

    def generator(self, fake_logits: Tensor) -> Tensor:
        """What the generator minimises: a scalar, mean over batch and map.

        Args:
            fake_logits: Of synthetic patches.
        """
        ...


class CrossEntropy:
    """Binary cross-entropy with label 1 for real and 0 for fake, as in the paper."""

    description = "binary cross-entropy"

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Half the cross-entropy of taking real for 1 and fake for 0 (eq. 1)."""
        fake_logits = fake_logits.float()
        fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
        return (_taken_for_real(real_logits) + fake) / 2

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Cross-entropy of the discriminator taking fake for 1 (eq. 2)."""
        return _taken_for_real(fake_logits)


class LeastSquares:
    """Squared distance of logits from 1 for real and 0 for fake (Mao et al., 2017)."""

    description = "least squares"

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Half the squared distance of real from 1 and of fake from 0."""
        real, fake = real_logits.float(), fake_logits.float()
        return ((real - 1).square().mean() + fake.square().mean()) / 2

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Squared distance of fake from 1."""
        return (fake_logits.float() - 1).square().mean()


class Hinge:
    """Logits beyond 1 for real and -1 for fake cost nothing (Lim and Ye, 2017)."""

    description = "hinge"

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Half of what real lacks to 1 and fake exceeds -1."""
        real, fake = real_logits.float(), fake_logits.float()
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2

    def generator(self, fake_logits: Tensor) -> Tensor:
        """The negative mean logit, which has no lower bound."""
        return -fake_logits.float().mean()


class Wasserstein:
    """The difference of mean logits: the Wasserstein distance (Arjovsky et al., 2017).

    It is one only for a discriminator of bounded slope, a critic: the configuration asks for a
    penalty or for spectral norm, and refuses BatchNorm.
    """

    description = "Wasserstein"

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What the mean logit of fake exceeds that of real by."""
        return fake_logits.float().mean() - real_logits.float().mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """The negative mean logit, which has no lower bound."""
        return -fake_logits.float().mean()


class KullbackLeibler:
    """The KL divergence of target from synthetic, bounded by logits (Nowozin et al., 2016).

    The bound is E[T(real)] - E[exp(T(fake) - 1)], largest for T = 1 + log(p / q). Beyond a logit of
    10 the exponential goes on along its tangent, so that one certain logit does not end a run
    (ours).
    """

    description = "KL divergence"

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The negative bound."""
        fake = fake_logits.float()
        within = fake.clamp(max=LARGEST_LOGIT)
        conjugate = torch.exp(within - 1) * (1 + fake - within)
        return conjugate.mean() - real_logits.float().mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        """The negative mean logit, as the authors of this f-GAN train it (section 3.2 there)."""
        return -fake_logits.float().mean()


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    "bce": CrossEntropy(),
    "least-squares": LeastSquares(),
    "hinge": Hinge(),
    "wasserstein": Wasserstein(),
    "kl": KullbackLeibler(),
}
"""The registry of adversarial losses, by the names that `loss.adversarial` takes."""


@dataclass(frozen=True)
class AdversarialConfig(TermConfig):
    """Fields of the adversarial term."""

    lambda_bce: float = 0.0
    """Weight of the adversarial term (eq. 2)."""
    adversarial: Name = field(default="bce", kw_only=True)
    """Adversarial loss of both networks: bce is the paper's binary cross-entropy, the others are
    ours. wasserstein needs a penalty or spectral norm, and no BatchNorm. lambda_bce weighs it, and
    logs call its value bce, whichever it is."""
    penalty: Kind = field(default="none", kw_only=True)
    """What the discriminator's loss adds: gradient keeps its slope near 1 between target and
    synthetic (WGAN-GP), r1 keeps it small at the target."""
    penalty_weight: float = field(default=10.0, kw_only=True)
    """Weight of the penalty."""
    penalty_every: int = field(default=1, kw_only=True)
    """Steps between updates with the penalty, which then counts as many times as much."""

    def rules(self) -> Iterable[Rule]:
        """A positive penalty, and a positive interval."""
        yield positive("penalty_weight", self.penalty_weight)
        yield at_least("penalty_every", self.penalty_every, 1)

    def build_penalty(self) -> Penalty | None:
        """The configured penalty, if there is one."""
        if self.penalty == "none":
            return None
        return Penalty(self.penalty, self.penalty_weight, self.penalty_every)


class Adversarial(Term):
    """How far the discriminator is from taking synthetic for target."""

    name = "bce"
    supervised = False
    config = AdversarialConfig

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        self.loss = ADVERSARIAL_LOSSES[config.adversarial]

    @classmethod
    def description(cls, config: Any) -> str:
        """The term in a few words."""
        return f"adversarial ({ADVERSARIAL_LOSSES[config.adversarial].description})"

    def forward(self, outputs: Outputs) -> Tensor | None:
        """The generator's adversarial loss; None without a discriminator's logits."""
        return None if outputs.fake_logits is None else self.loss.generator(outputs.fake_logits)


def _taken_for_real(logits: Tensor) -> Tensor:
    """Mean cross-entropy of logits with label 1."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
