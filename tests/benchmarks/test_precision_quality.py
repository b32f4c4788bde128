"""The arithmetic of the comparison of precisions."""

from __future__ import annotations

import pytest

from benchmarks.precision_quality import epochs_for, row, steps_to, trainable


def test_steps_to_a_score_lie_on_the_line_between_validations():
    curve = [(10, 20.0), (20, 24.0), (30, 23.0)]
    assert steps_to(21.0, curve) == pytest.approx(12.5)
    assert steps_to(24.0, curve) == 20
    # What happens before the first validation is unknown.
    assert steps_to(5.0, curve) == 10
    with pytest.raises(ValueError, match="never reaches"):
        steps_to(24.1, curve)


def test_epochs_are_a_multiple_of_the_validations():
    assert epochs_for(10, 100, 8) == 12
    assert epochs_for(1, 1000, 8) == 4


def test_a_row_compares_times_to_the_lower_of_the_best_scores():
    scores = {"psnr_mask": 25.0, "ssim_mask": 0.9}
    found = {
        "preset": "small",
        "milliseconds": [100.0, 50.0],
        "precisions": {
            "no": {"curve": [(10, 20.0), (20, 24.0)], "test": {"a": scores}},
            "bf16": {"curve": [(10, 18.0), (20, 22.0)], "test": {"a": scores}},
        },
    }
    # float32 reaches 22 dB at step 15 of 0.1 s, bf16 at step 20 of 0.05 s.
    assert "| 1.5, 1.0 | 1.50 |" in row(found)


def test_presets_that_need_a_file_that_is_not_shipped_are_left_out():
    names = trainable()
    assert "quick" in names and "unet-7" in names
    assert "pix2pix-11" not in names and "dcsrn-perceptual" not in names
