"""The paper's own results, as printed in its tables 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass

WARNING = (
    "The paper's own values come from other specimens (7T to 9.4T, four of 44 to test on) and are "
    "means of per-image values at peak 255: they must not be compared with ours."
)


@dataclass(frozen=True)
class PaperValues:
    """A row of the paper.

    Attributes:
        table: Where it stands: "Table 2" (CNNs) or "Table 3" (GANs).
        psnr255: PSNR in dB at peak 255 (eq. 7), higher is better.
        mse: Mean squared error (eq. 6), in standardised units squared, lower is better.
        ssim_global: SSIM from global moments (eq. 8), higher is better.
        parameters: Trainable, of the generator alone.
    """

    table: str
    psnr255: float
    mse: float
    ssim_global: float
    parameters: int

    def value(self, metric: str) -> float | None:
        """What the paper prints for a key of METRICS; None where it has no such value.

        The paper evaluates whole stitched images, so that only keys of the whole volume have one.
        """
        return {
            "psnr255_whole": self.psnr255,
            "mse_whole": self.mse,
            "ssim_global_whole": self.ssim_global,
        }.get(metric)


# fmt: off
PAPER_VALUES: dict[str, PaperValues] = {
    "fcn-1":            PaperValues("Table 2", 57.01, 0.147,  0.116,   308_545),
    "fcn-2":            PaperValues("Table 2", 56.47, 0.151,  0.0679,  155_681),
    "dcsrn-l1":         PaperValues("Table 2", 65.51, 0.0236, 0.358,    53_977),
    "dcsrn-l2":         PaperValues("Table 2", 62.83, 0.0406, 0.254,    53_977),
    "dcsrn-perceptual": PaperValues("Table 2", 64.1,  0.0316, 0.211,    53_977),

    "dcgan-1":          PaperValues("Table 3", 65.31, 0.022,  0.255,     6_885),
    "dcgan-2":          PaperValues("Table 3", 67.44, 0.0178, 0.578,   458_385),
    "dcgan-3":          PaperValues("Table 3", 67.06, 0.0194, 0.588,   868_369),
    "dcgan-4":          PaperValues("Table 3", 65.67, 0.0225, 0.358,   868_369),
    "unet-5":           PaperValues("Table 3", 65.90, 0.0229, 0.500, 1_829_025),
    "unet-6":           PaperValues("Table 3", 66.17, 0.0213, 0.498, 1_829_025),
    "unet-7":           PaperValues("Table 3", 67.55, 0.0174, 0.593, 1_829_025),
    "unet-8":           PaperValues("Table 3", 66.27, 0.0223, 0.508, 1_829_025),
    "pix2pix-9":        PaperValues("Table 3", 65.87, 0.0249, 0.544, 1_829_025),
    "pix2pix-10":       PaperValues("Table 3", 63.18, 0.0333, 0.237, 1_829_025),
    "pix2pix-11":       PaperValues("Table 3", 61.07, 0.0517, 0.443, 1_829_025),
}
# fmt: on
"""By the name of the preset that has the row's networks and losses."""
