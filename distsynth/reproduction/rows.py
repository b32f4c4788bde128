"""What is compared: the paper's networks, the random forest, and the controls that it lacks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distsynth.config import RunConfig, with_overrides
from distsynth.errors import ConfigError
from distsynth.evaluation.forest import FORESTS as FOREST_CONFIGS
from distsynth.presets import preset
from distsynth.reproduction.comparison import CNN, CONTROL, GAN

FORESTS = tuple(FOREST_CONFIGS)
"""The paper's residual random forest, and three relatives of it (ours)."""


@dataclass(frozen=True)
class NetworkRow:
    """One network of the comparison, before any budget.

    Attributes:
        name: The name of the row and its run.
        group: The part of the table that holds it.
        preset: What it starts from.
        changes: Dotted fields that differ from the preset.
        usual: Whether it is run when no rows are named.
    """

    name: str
    group: str
    preset: str
    changes: dict[str, Any] = field(default_factory=dict)
    usual: bool = True

    @property
    def config(self) -> RunConfig:
        """The run in the paper's full length."""
        config = preset(self.preset)
        alone = self.changes.get("loss.lambda_bce") == 0
        # A discriminator whose loss has no weight is not trained.
        more = {"discriminator.family": "none"} if alone else {}
        return with_overrides(config, more | self.changes)

    @property
    def slow(self) -> bool:
        """Whether a step costs some twenty times as much as one of a U-Net of the paper."""
        return self.preset in SLOW


# fmt: off
CNNS = ("fcn-1", "fcn-2", "dcsrn-l1", "dcsrn-l2", "dcsrn-perceptual")
GANS = ("dcgan-1", "dcgan-2", "dcgan-3", "dcgan-4", "unet-5", "unet-6", "unet-7", "unet-8",
        "pix2pix-9", "pix2pix-10", "pix2pix-11")
# fmt: on

SLOW = ("fcn-1", "dcgan-2", "dcgan-3", "dcgan-4")
"""Presets with large kernels and many channels at full resolution."""

ALONE = {"loss.lambda_bce": 0.0}
NO_GRADIENT = {"loss.lambda_gradient": 0.0}
ABSOLUTE = {"loss.gradient_form": "absolute"}
MARGIN = {"loss.gradient_margin": 4}
NETWORKS = {
    row.name: row
    for row in (
        *(NetworkRow(name, CNN, name) for name in CNNS),
        *(NetworkRow(name, GAN, name) for name in GANS),
        NetworkRow("dcgan-2-alone", CONTROL, "dcgan-2", ALONE),
        NetworkRow("unet-7-alone", CONTROL, "unet-7", ALONE),
        NetworkRow("unet-5-no-gradient", CONTROL, "unet-5", NO_GRADIENT),
        NetworkRow("unet-6-no-gradient", CONTROL, "unet-6", NO_GRADIENT),
        NetworkRow("unet-5-absolute", CONTROL, "unet-5", ABSOLUTE, usual=False),
        NetworkRow("unet-5-margin", CONTROL, "unet-5", MARGIN, usual=False),
        NetworkRow("unet-6-absolute", CONTROL, "unet-6", ABSOLUTE, usual=False),
        NetworkRow("unet-6-margin", CONTROL, "unet-6", MARGIN, usual=False),
        NetworkRow("small", CONTROL, "small", usual=False),
        NetworkRow("small-alone", CONTROL, "small", ALONE, usual=False),
    )
}
"""Every network by name. `alone` is the same generator without its discriminator, under the same
reconstruction loss: what the adversarial term adds is seen by itself. `no-gradient` leaves out the
gradient term; unet-5 and unet-6 differ in nothing but the sharpening kernel. `absolute` takes the
gradient term as the code has it that the paper cites, `margin` leaves 4 voxels at the borders of a
patch out of it."""

ROWS = (*NETWORKS, *FORESTS)
USUAL = tuple(name for name in ROWS if name not in NETWORKS or NETWORKS[name].usual)
"""Rows that are run when none are named; the others answer the questions of a study."""

QUESTIONS = (
    # What the adversarial term adds to one and the same generator.
    ("dcgan-2", "dcgan-2-alone", "psnr_mask"),
    ("dcgan-2", "dcgan-2-alone", "ssim_mask"),
    ("unet-7", "unet-7-alone", "psnr_mask"),
    ("unet-7", "unet-7-alone", "ssim_mask"),
    ("small", "small-alone", "psnr_mask"),
    ("small", "small-alone", "ssim_mask"),
    # GAN against CNN, L1 against L2.
    ("unet-7", "dcsrn-l1", "ssim_mask"),
    ("dcgan-2", "dcsrn-l1", "ssim_mask"),
    ("dcsrn-l1", "dcsrn-l2", "psnr_mask"),
    ("dcsrn-l1", "dcsrn-l2", "ssim_mask"),
    ("pix2pix-9", "pix2pix-10", "psnr_mask"),
    ("pix2pix-9", "pix2pix-10", "ssim_mask"),
    # What the gradient term does: the only two rows of the paper that differ in nothing else.
    ("dcgan-4", "dcgan-3", "psnr_mask"),
    ("dcgan-4", "dcgan-3", "ssim_mask"),
    ("dcgan-4", "dcgan-3", "seam_index"),
    # What the gradient term and the sharpening kernel do to the seams.
    ("unet-5", "unet-5-no-gradient", "seam_index"),
    ("unet-6", "unet-6-no-gradient", "seam_index"),
    ("unet-6", "unet-5", "seam_index"),
    ("unet-6-no-gradient", "unet-5-no-gradient", "seam_index"),
    # What its form does to them: as cited, and without the patch's border.
    ("unet-5-absolute", "unet-5", "seam_index"),
    ("unet-5-margin", "unet-5", "seam_index"),
    ("unet-6-absolute", "unet-6", "seam_index"),
    ("unet-6-margin", "unet-6", "seam_index"),
    ("unet-5-absolute", "unet-5-margin", "seam_index"),
)
"""(First, second, metric): what the paper concludes or leaves open, asked of pairs of rows."""
SEAM_ROWS = tuple(
    f"{model}{form}"
    for model in ("unet-5", "unet-6")
    for form in ("", "-no-gradient", "-absolute", "-margin")
)
"""Forms of the gradient term and none, crossed with the sharpening kernel."""
STITCHINGS: tuple[dict[str, Any], ...] = tuple(
    {"trim": trim, "weights": weights} for trim in (0, 4, 8) for weights in ("uniform", "smooth")
)
"""How the patches of each of SEAM_ROWS are joined, for the paper's open question."""


def chosen_rows(names: tuple[str, ...]) -> tuple[str, ...]:
    """The rows of these names in the order of the table; the usual ones for none.

    Raises:
        ConfigError: If a name is no row.
    """
    if unknown := [name for name in names if name not in ROWS]:
        raise ConfigError(f"{unknown[0]} is not a row of the comparison (rows: {', '.join(ROWS)})")
    return tuple(name for name in ROWS if name in (names or USUAL))
