"""What a term of the generator's loss sees, and what it must be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from distsynth.rules import Rule
from sharding.io.records import STRICT


@dataclass(frozen=True)
class TermConfig:
    """The fields of a term, in the section `loss`; each term adds its own."""

    __pydantic_config__ = STRICT

    def rules(self) -> Iterable[Rule]:
        """The rules that the term's own fields obey; the weight is checked for all terms."""
        return ()

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse patches that the term cannot compare.

        Raises:
            ConfigError: Names the field, the rule and the remedy.
        """


@dataclass(frozen=True)
class MaskedConfig(TermConfig):
    """A field that terms share which compare voxel by voxel."""

    mask_weight: float = field(default=1.0, kw_only=True)
    """What a voxel outside of the specimen's mask counts in the reconstruction and structure terms,
    where one inside counts 1. At 0 they see the mask alone, and nothing but other terms says what
    the background must be."""

    def weights(self, inside: Tensor | None) -> Tensor | None:
        """What each voxel counts; None if all count 1.

        Args:
            inside: Whether it lies in the mask, shape (batch, 1, *spatial).

        Raises:
            ValueError: If there is no mask and one is needed.
        """
        if self.mask_weight == 1:
            return None
        if inside is None:
            raise ValueError("loss.mask_weight needs the mask of each patch")
        return torch.where(inside, 1.0, self.mask_weight)


class SourceToTarget(Protocol):
    """A generator, as far as a term needs it.

    Attributes:
        multiple: By which every side of a source must be divisible.
    """

    @property
    def multiple(self) -> int: ...

    def __call__(self, source: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Outputs:
    """A batch as the generator's loss sees it.

    Attributes:
        synthetic: Generator output, shape (batch, 1, *spatial), standardised intensity (zero mean,
            unit variance, unitless).
        target: Registered high-field patches, same shape and scale.
        fake_logits: The discriminator's logits for synthetic; None where there are none.
        fake_features: The discriminator's features of synthetic, a tensor a layer.
        real_features: Its features of target.
        source: What synthetic was made of, shape (batch, channels, *spatial).
        generator: What made it.
        inside: Whether a voxel of the target lies in the specimen's mask, same shape; None where
            all voxels count alike.
    """

    synthetic: Tensor
    target: Tensor
    fake_logits: Tensor | None = None
    fake_features: Sequence[Tensor] | None = None
    real_features: Sequence[Tensor] | None = None
    source: Tensor | None = None
    generator: SourceToTarget | None = None
    inside: Tensor | None = None


class Term(nn.Module, ABC):
    """A term of the generator's loss, built from the section `loss` of the configuration.

    Attributes:
        name: Of the term in logs; its weight is the field lambda_NAME.
        supervised: Whether it compares synthetic with target without a discriminator.
        config: The dataclass of its fields.
    """

    name: ClassVar[str]
    supervised: ClassVar[bool] = True
    config: ClassVar[type[TermConfig]]

    @classmethod
    def label(cls, config: Any) -> str:  # noqa: ARG003
        """The term in a word, for listings."""
        return cls.name

    @classmethod
    @abstractmethod
    def description(cls, config: Any) -> str:
        """The term in a few words, for the model card."""

    @abstractmethod
    def forward(self, outputs: Outputs) -> Tensor | None:
        """The unweighted term, a scalar in float32; None where it has nothing to compare."""


class FixedMeasure(nn.Module):
    """A network by which images are compared; it is not trained with the generator."""

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in evaluation mode whatever the mode of the generator is."""
        return super().train(False)


def check_same_shape(synthetic: Tensor, target: Tensor) -> None:
    """Raise ValueError if the shapes differ: torch would broadcast them silently."""
    if synthetic.shape != target.shape:
        raise ValueError(
            f"synthetic and target must have the same shape, got {tuple(synthetic.shape)} and "
            f"{tuple(target.shape)}"
        )
