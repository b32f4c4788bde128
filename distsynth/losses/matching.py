"""Feature matching: the discriminator's features of synthetic and target (Wang et al., CVPR 2018).

A perceptual term that needs no weights from elsewhere: the features are learnt in the run itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distsynth.losses.term import Outputs, Term, TermConfig


@dataclass(frozen=True)
class MatchingConfig(TermConfig):
    """Fields of the feature matching term."""

    lambda_matching: float = field(default=0.0, kw_only=True)
    """Weight of the feature matching term (ours): how far the discriminator's features of synthetic
    are from those of target."""


class FeatureMatching(Term):
    """The mean absolute difference of features, summed over the discriminator's layers.

    sum_i mean(|D_i(target) - D_i(synthetic)|), where D_i is the output of the activation of layer
    i; as in pix2pixHD, but for the features of the logits themselves.
    """

    name = "matching"
    supervised = False
    config = MatchingConfig

    def __init__(self, config: MatchingConfig) -> None:  # noqa: ARG002
        super().__init__()

    @classmethod
    def description(cls, config: Any) -> str:  # noqa: ARG003
        """The term in a few words."""
        return "feature matching"

    def forward(self, outputs: Outputs) -> Tensor | None:
        """The distance, a scalar; None without a discriminator's features."""
        if outputs.fake_features is None or outputs.real_features is None:
            return None
        pairs = zip(outputs.fake_features, outputs.real_features, strict=True)
        distances = [F.l1_loss(fake.float(), real.detach().float()) for fake, real in pairs]
        return torch.stack(distances).sum()
