"""Perceptual loss on the features of an encoder that is trained on the cohort's own targets.

It needs no weights from elsewhere: distsynth.training.encoder trains it at the start of a run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distsynth.losses.term import FixedMeasure, check_same_shape


class EncoderLoss(FixedMeasure):
    """Distance between the encoder's features of synthetic and target.

    sum_i mean(|E_i(target) - E_i(synthetic)|) over the levels i of the encoder, in float32 whatever
    autocast says.

    Attributes:
        encoder: To be set before the first forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module | None = None

    def use(self, encoder: nn.Module) -> None:
        """Measure by this encoder from now on; it is not trained any further.

        Args:
            encoder: Maps (batch, 1, *spatial) to a list of features.
        """
        self.encoder = encoder.requires_grad_(False).eval()

    def forward(self, synthetic: Tensor, target: Tensor) -> Tensor:
        """Compare two batches; the gradient flows to synthetic only.

        Args:
            synthetic: Generator output, shape (batch, 1, *spatial).
            target: Registered high-field patches, same shape.

        Returns:
            Scalar.

        Raises:
            ValueError: If shapes differ, or there is no encoder yet.
        """
        check_same_shape(synthetic, target)
        if self.encoder is None:
            raise ValueError("the cohort's encoder must be trained first: give it to `use`")
        with torch.autocast(target.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.encoder(target.float())
            pairs = zip(self.encoder(synthetic.float()), wanted, strict=True)
            return torch.stack([F.l1_loss(found, goal) for found, goal in pairs]).sum()
