"""What an evaluation says in words, for each kind of result."""

from __future__ import annotations

import numpy as np
import pytest

from distsynth.metrics.verdict import verdict, verdicts


def results(**psnr):
    """Method to values of PSNR over specimens, and an SSIM that goes with them."""
    return {
        method: {
            f"s{index}": {"psnr_mask": value, "ssim_mask": value / 40}
            for index, value in enumerate(values)
        }
        for method, values in psnr.items()
    }


GROUND = 20 + np.arange(10) / 7
NOISE = np.array([0.3, -0.2, 0.1, -0.3, 0.2, -0.1, 0.25, -0.25, 0.05, -0.05])


def test_better_than_every_baseline_names_the_nearest():
    found = results(model=GROUND + 1 + NOISE, cubic=GROUND - 2, regression=GROUND)
    sentence = verdict(found, "model", ["cubic", "regression"])
    assert sentence.startswith(
        "model is better than every baseline, regression the nearest "
        "(paired over 10 specimens, +1.00 dB, interval 0."
    )
    assert sentence.endswith("p 0.002).")


def test_the_best_baseline_decides_and_not_the_first():
    found = results(model=GROUND + NOISE, cubic=GROUND - 2, regression=GROUND)
    sentence = verdict(found, "model", ["cubic", "regression"])
    assert sentence.startswith("model is no better than regression (paired over 10 specimens, ")
    assert "0.00 dB, interval -0.1" in sentence


def test_worse_is_said():
    found = results(model=GROUND - 1 + NOISE, cubic=GROUND)
    assert verdict(found, "model", ["cubic"]).startswith(
        "model is worse than cubic (paired over 10 specimens, -1.00 dB"
    )


def test_one_specimen_is_too_few_to_tell():
    sentence = verdict(results(model=[25.0], cubic=[20.0]), "model", ["cubic"])
    assert sentence == (
        "Too few specimens to tell: on a single one model differs from cubic by +5.00 dB."
    )


@pytest.mark.parametrize(("count", "few"), [(4, True), (5, True), (6, False)])
def test_where_no_test_can_be_significant_it_says_so(count, few):
    found = results(model=GROUND[:count] + 1, cubic=GROUND[:count])
    assert (
        "no test can be significant: evaluate more" in verdict(found, "model", ["cubic"])
    ) == few


def test_a_structural_similarity_that_disagrees_is_told():
    found = results(model=GROUND + 1 + NOISE, cubic=GROUND)
    for row in found["model"].values():
        row["ssim_mask"] -= 0.2
    assert " Its SSIM is lower (paired over 10 specimens, -0.17" in verdict(
        found, "model", ["cubic"]
    )


def test_without_baselines_or_numbers_nothing_is_claimed():
    assert "without a baseline" in verdict(results(model=GROUND), "model", [])
    infinite = results(model=GROUND, cubic=GROUND)
    infinite["model"]["s0"]["psnr_mask"] = np.inf
    assert "cannot be compared" in verdict(infinite, "model", ["cubic"])


def test_each_model_has_its_sentence():
    found = results(cubic=GROUND, one=GROUND + 1, two=GROUND - 1)
    first, second = verdicts(found, ["one", "two"])
    assert first.startswith("one is better than cubic") and second.startswith("two is worse")
