"""Rows of a comparison with made-up values, and the text and pages made of them."""

from __future__ import annotations

from distsynth.reproduction.comparison import (
    BASELINE,
    CNN,
    CONTROL,
    GAN,
    ComparedRow,
)
from distsynth.reproduction.comparison_tables import (
    comparison_tables,
)
from sharding.io.page import render

BUDGET = "12 of 30 epochs, 100 patches a specimen"

NASTY = "<b>50% & \"a_b\" {c} $d #e ~f ^g \\h 'i' [j] *k|"

REASON = "no weights of the perceptual loss"


def values(psnr: float, ssim: float, **more: float) -> dict[str, float]:
    return {
        "psnr_mask": float(psnr),
        "ssim_mask": ssim,
        "psnr255_whole": psnr + 46.0,
        "mse_whole": 10 ** (-psnr / 10),
        "ssim_global_whole": ssim + 0.1,
        **more,
    }


def by_specimen(*pairs: tuple[float, float], **more: float) -> dict[str, dict[str, float]]:
    return {f"s{number}": values(*pair, **more) for number, pair in enumerate(pairs)}


CUBIC = ComparedRow(
    "cubic", BASELINE, None, "no training", results=by_specimen((18, 0.40), (19, 0.42))
)

UNET = ComparedRow(
    "unet-7",
    GAN,
    1_829_025,
    BUDGET,
    600.4,
    results=by_specimen((20, 0.50), (22, 0.54), seam_index=1.1),
)

ALONE = ComparedRow(
    "unet-7-alone",
    CONTROL,
    1_829_025,
    BUDGET,
    400.0,
    results=by_specimen((20.5, 0.46), (21.0, 0.50), seam_index=1.05),
)

PIX2PIX = ComparedRow("pix2pix-11", GAN, 1_829_025, "3 of 30 epochs", reason=REASON)

FCN = ComparedRow("fcn-1", CNN, 308_545, BUDGET, 90, results=by_specimen((17, 0.3), (17, 0.3)))

CONTROLS = [
    ("unet-7", "unet-7-alone", "psnr_mask"),
    ("unet-7", "unet-7-alone", "seam_index"),
    ("unet-7", "pix2pix-11", "psnr_mask"),
    ("unet-7", "cubic", "seam_index"),
]


def comparison_html(comparison):
    """The section that a page has of a comparison."""
    page = render(
        "distsynth.reproduction/reproduction.html",
        title="Title",
        comparison=comparison_tables(comparison),
        seams=[],
        pictures=[],
        viewer=None,
        note="",
        checks=[],
        curves=[],
        results=None,
        asked={},
        data={},
        config={},
        versions={},
    )
    return page[page.index("<h2>Comparison</h2>") : page.index("</section>")]
