"""Perceptual loss on the features of an ImageNet VGG16 (section 6.4), or of the cohort's encoder.

VGG16 is written out here and reads torchvision's weights from a local file. Nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distsynth.errors import ConfigError
from distsynth.losses.encoder import EncoderLoss
from distsynth.losses.term import FixedMeasure, Outputs, Term, TermConfig, check_same_shape
from distsynth.rules import Rule, at_least

CUTS = (4, 9, 16, 23)
"""Layers of VGG16's `features` after which images are compared: the last ReLU of a block each."""
Scale = Literal["fixed", "image"]
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
"""Widths of the convolutions up to the last cut, a max-pool between blocks."""
MIN_SIDE = 16
"""Voxels: three max-pools leave 2 x 2 features at the last cut."""
WEIGHTS_FILE = "vgg16-397923af.pth"
"""Torchvision's name of the file (VGG16_Weights.IMAGENET1K_V1)."""


@dataclass(frozen=True)
class PerceptualConfig(TermConfig):
    """Fields of the perceptual term."""

    lambda_perceptual: float = 0.0
    """Weight of the perceptual term (section 6.4)."""
    vgg_weights: str | None = None
    """File of torchvision's VGG16 weights; none looks in the torch hub cache of this user."""
    perceptual_network: Literal["vgg16", "cohort"] = field(default="vgg16", kw_only=True)
    """Whose features are compared. vgg16 is the paper's, and needs its ImageNet weights. cohort is
    a small encoder that the run trains first, on the targets of the training split alone (ours)."""
    encoder_steps: int = field(default=200, kw_only=True)
    """Optimizer steps that train the cohort's encoder, of 16 patches each, fewer of blocks."""
    perceptual_scale: Scale = field(default="fixed", kw_only=True)
    """How images are standardised for VGG16; the cohort's encoder takes them as they are. fixed
    takes the intensities as they are: standardised by specimen, as ImageNet's are by fixed
    statistics (ours). image standardises each image by itself, the literal reading of the paper,
    and is blind to gain and offset."""

    @property
    def needs_encoder(self) -> bool:
        """Whether the cohort's encoder must be there."""
        return self.lambda_perceptual > 0 and self.perceptual_network == "cohort"

    @property
    def needs_vgg16(self) -> bool:
        """Whether the weights of VGG16 must be there."""
        return self.lambda_perceptual > 0 and self.perceptual_network == "vgg16"

    def rules(self) -> Iterable[Rule]:
        """The encoder is trained."""
        yield at_least("encoder_steps", self.encoder_steps, 1)

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Refuse slices that leave no features at VGG16's last cut; the encoder takes any."""
        if self.perceptual_network == "vgg16":
            _check_slice(patch_size)


class Perceptual(Term):
    """The perceptual loss as a term of the generator's loss."""

    name = "perceptual"
    config = PerceptualConfig

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        self.loss: PerceptualLoss | EncoderLoss = (
            EncoderLoss()
            if config.perceptual_network == "cohort"
            else PerceptualLoss(config.vgg_weights, config.perceptual_scale)
        )

    @classmethod
    def description(cls, config: Any) -> str:
        """The term in a few words."""
        network = "VGG16" if config.perceptual_network == "vgg16" else "the cohort's encoder"
        return f"perceptual ({network})"

    def forward(self, outputs: Outputs) -> Tensor:
        """The distance, a scalar."""
        return self.loss(outputs.synthetic, outputs.target)


class PerceptualLoss(FixedMeasure):
    """Distance between the VGG16 features of synthetic and target.

    The one grey channel is repeated to three, and the mean absolute differences of the features at
    the four cuts are summed. Mean over features where the paper has a norm (ours). 3D patches are
    compared slice by slice along their first spatial axis (ours). Features have autocast's
    precision, distances are float32.

    Args:
        weights: Torchvision's VGG16 state dict, `.pth` or `.safetensors`; none looks in the torch
            hub cache of this user.
        scale: "image" standardises each image, or each 3D patch as a whole; "fixed" does not.

    Raises:
        ConfigError: If the file is missing, unreadable or of another network.
    """

    def __init__(self, weights: str | Path | None = None, scale: Scale = "fixed") -> None:
        super().__init__()
        self.scale: Scale = scale
        # On meta, so that nothing is initialised: the run's random numbers stay the same.
        with torch.device("meta"):
            self.features = vgg16_features()
        self.load_state_dict(_read_weights(weights, self.state_dict()), assign=True)
        self.requires_grad_(False)
        self.eval()

    def forward(self, synthetic: Tensor, target: Tensor) -> Tensor:
        """Compare two batches; the gradient flows to synthetic only.

        Args:
            synthetic: Generator output, shape (batch, 1, *spatial).
            target: Registered high-field patches, same shape.

        Returns:
            Scalar.

        Raises:
            ValueError: If shapes differ.
            ConfigError: If a slice has a side under 16 voxels.
        """
        check_same_shape(synthetic, target)
        _check_slice(synthetic.shape)
        with torch.no_grad():
            wanted = self._compared(target)
        distances = [
            F.l1_loss(found.float(), goal.float())
            for found, goal in zip(self._compared(synthetic), wanted, strict=True)
        ]
        return torch.stack(distances).sum()

    def _compared(self, images: Tensor) -> list[Tensor]:
        """The features at each cut, (slices, channels, height, width)."""
        images = _standardise(images) if self.scale == "image" else images.float()
        features = _grey_to_colour(images)
        compared = []
        for layer, module in enumerate(self.features, start=1):
            features = module(features)
            if layer in CUTS:
                compared.append(features)
        return compared


def vgg16_features() -> nn.Sequential:
    """VGG16's `features` up to the last cut, numbered as torchvision numbers them."""
    layers: list[nn.Module] = []
    inputs = 3
    for block, widths in enumerate(BLOCKS):
        if block > 0:
            layers.append(nn.MaxPool2d(2))
        for outputs in widths:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
    return nn.Sequential(*layers)


def _check_slice(shape: Sequence[int]) -> None:
    sides = tuple(shape[-2:])
    if min(sides) < MIN_SIDE:
        raise ConfigError(
            f"loss.lambda_perceptual needs slices of at least {MIN_SIDE} voxels a side, got "
            f"{sides}; enlarge data.patch_size"
        )


def _standardise(images: Tensor) -> Tensor:
    """Zero mean and unit variance for each image of the batch; a constant image becomes 0."""
    images = images.float()
    axes = tuple(range(1, images.ndim))
    variance, mean = torch.var_mean(images, dim=axes, correction=0, keepdim=True)
    return (images - mean) / torch.sqrt(variance + 1e-6)


def _grey_to_colour(images: Tensor) -> Tensor:
    """(batch, 1, [depth,] height, width) -> (batch [* depth], 3, height, width)."""
    if images.ndim == 5:
        images = images.transpose(1, 2).flatten(0, 1)
    return images.expand(-1, 3, -1, -1)


def weights_path(weights: str | Path | None) -> Path:
    """Where the VGG16 weights are looked for; None is this user's torch hub cache."""
    default = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
    return default if weights is None else Path(weights).expanduser()


def check_weights(weights: str | Path | None) -> Path:
    """The file of VGG16 weights; raises ConfigError if there is none."""
    path, default = weights_path(weights), weights_path(None)
    if not path.is_file():
        raise ConfigError(
            f"loss.vgg_weights must be a file with torchvision's VGG16 weights, got {path}, which "
            "is not there; download https://download.pytorch.org/models/"
            f"{WEIGHTS_FILE} (528 MB) and name it here, or put it at {default}; "
            "loss.perceptual_network=cohort needs none"
        )
    return path


def _read_weights(weights: str | Path | None, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The wanted tensors of a VGG16 file, float32; those of later layers are left."""
    path = check_weights(weights)
    state = _load(path)
    for name, tensor in wanted.items():
        shape = getattr(state.get(name), "shape", None)
        if shape != tensor.shape:
            found = "is missing" if shape is None else f"has shape {tuple(shape)}"
            raise ConfigError(
                f"loss.vgg_weights must have torchvision's VGG16 weights, got {path}, where {name} "
                f"{found}, not {tuple(tensor.shape)}; use {WEIGHTS_FILE}"
            )
    return {name: state[name].float() for name in wanted}


def _load(path: Path) -> dict[str, Any]:
    """The state dict in a file, on the CPU."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format, and each kind of damage, has its own
        raise ConfigError(
            f"loss.vgg_weights must be a readable state dict (.pth or .safetensors), got {path}: "
            f"{error}; download {WEIGHTS_FILE} again"
        ) from error
    if not isinstance(state, dict):
        raise ConfigError(
            f"loss.vgg_weights must be a state dict, got {path} with a {type(state).__name__}; "
            f"use {WEIGHTS_FILE}"
        )
    return state
