"""The paper's values against a second copy of its tables, and against our presets."""

from __future__ import annotations

import pytest

from distsynth.metrics.definitions import METRICS
from distsynth.presets import OURS, PRESETS, describe
from distsynth.reproduction.paper_values import PAPER_VALUES, WARNING

TABLE_2 = """
fcn-1             57.01  0.147   0.116   308545
fcn-2             56.47  0.151   0.0679  155681
dcsrn-l1          65.51  0.0236  0.358   53977
dcsrn-l2          62.83  0.0406  0.254   53977
dcsrn-perceptual  64.1   0.0316  0.211   53977
"""
TABLE_3 = """
dcgan-1           65.31  0.022   0.255   6885
dcgan-2           67.44  0.0178  0.578   458385
dcgan-3           67.06  0.0194  0.588   868369
dcgan-4           65.67  0.0225  0.358   868369
unet-5            65.90  0.0229  0.500   1829025
unet-6            66.17  0.0213  0.498   1829025
unet-7            67.55  0.0174  0.593   1829025
unet-8            66.27  0.0223  0.508   1829025
pix2pix-9         65.87  0.0249  0.544   1829025
pix2pix-10        63.18  0.0333  0.237   1829025
pix2pix-11        61.07  0.0517  0.443   1829025
"""


def test_values_are_the_papers():
    expected = {}
    for table, text in (("Table 2", TABLE_2), ("Table 3", TABLE_3)):
        for line in text.strip().splitlines():
            name, *numbers = line.split()
            expected[name] = (table, *map(float, numbers))
    assert expected == {
        name: (row.table, row.psnr255, row.mse, row.ssim_global, row.parameters)
        for name, row in PAPER_VALUES.items()
    }


def test_every_row_of_the_paper_is_a_preset_and_all_but_our_own_are_rows():
    assert set(PRESETS) - set(PAPER_VALUES) == set(OURS)
    assert not set(PAPER_VALUES) - set(PRESETS)


@pytest.mark.parametrize("name", PAPER_VALUES)
def test_parameters_are_those_of_the_preset(name):
    assert describe(name)["generator_parameters"] == PAPER_VALUES[name].parameters


def test_values_by_metric_are_of_the_whole_volume_at_the_papers_peak():
    row = PAPER_VALUES["unet-7"]
    known = {key: row.value(key) for key in METRICS if row.value(key) is not None}
    assert known == {"mse_whole": 0.0174, "psnr255_whole": 67.55, "ssim_global_whole": 0.593}


def test_the_warning_says_why():
    assert "other specimens" in WARNING
    assert "peak 255" in WARNING
    assert "must not be compared" in WARNING
