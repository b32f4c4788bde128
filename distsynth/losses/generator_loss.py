"""The generator's loss: the weighted sum of the terms in the registry (section 6.4, eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distsynth.losses.adversarial import ADVERSARIAL_LOSSES
from distsynth.losses.encoder import EncoderLoss
from distsynth.losses.perceptual import Perceptual
from distsynth.losses.registry import TERMS, LossConfig
from distsynth.losses.term import MaskedConfig, Outputs, SourceToTarget, Term


class GeneratorLoss(nn.Module):
    """The generator's weighted sum of losses (eq. 5).

    All terms are computed in float32, under autocast too, and never wait for the device.

    Attributes:
        config: The weights; a term of weight 0 is neither built nor computed.
        terms: Name -> Term, those of positive weight.
        adversarial: The loss that the discriminator is trained by, whatever the generator's weight.
        penalty: What is added to it; None without one.

    Raises:
        ConfigError: If a term needs a file that is not there.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.adversarial = ADVERSARIAL_LOSSES[config.adversarial]
        self.penalty = config.build_penalty()
        self.terms = nn.ModuleDict(
            {term.name: term(config) for term in TERMS if config.weight(term.name) > 0}
        )

    @property
    def needs_mask(self) -> bool:
        """Whether a term weighs voxels by the mask."""
        masked = any(issubclass(term.config, MaskedConfig) for term in self._built())
        return masked and self.config.mask_weight != 1

    def _built(self) -> list[Term]:
        return [term for term in self.terms.values() if isinstance(term, Term)]

    @property
    def compares_features(self) -> bool:
        """Whether a term needs the discriminator's features."""
        return "matching" in self.terms

    def use_encoder(self, encoder: nn.Module) -> None:
        """Give the perceptual term the cohort's encoder, where the configuration asks for it."""
        for term in self.terms.values():
            if isinstance(term, Perceptual) and isinstance(term.loss, EncoderLoss):
                term.loss.use(encoder)

    def forward(
        self,
        synthetic: Tensor,
        target: Tensor,
        fake_logits: Tensor | None = None,
        *,
        features: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
        source: Tensor | None = None,
        generator: SourceToTarget | None = None,
        inside: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the terms.

        Args:
            synthetic: Generator output, shape (batch, 1, *spatial), standardised intensity.
            target: Registered high-field patches, same shape and scale.
            fake_logits: The discriminator's logits for synthetic; without them there is no
                adversarial term.
            features: The discriminator's, of synthetic and of target.
            source: What synthetic was made of.
            generator: What made it; a term may ask it for more.
            inside: Whether a voxel lies in the specimen's mask, same shape as target; needed where
                the mask weight is not 1.

        Returns:
            The weighted total, a scalar, and the unweighted terms that it sums, detached for the
            log, by their names.
        """
        fake, real = features or (None, None)
        outputs = Outputs(synthetic, target, fake_logits, fake, real, source, generator, inside)
        found = {name: term(outputs) for name, term in self.terms.items()}
        found = {name: value for name, value in found.items() if value is not None}
        total = torch.stack(
            [self.config.weight(name) * value for name, value in found.items()]
        ).sum()
        return total, {name: value.detach() for name, value in found.items()}
