from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsynth.config import TrainConfig
from distsynth.errors import ConfigError
from distsynth.metrics.objective import ADVERSARIAL_TERMS, OBJECTIVES, check_objective, score

METRICS = {
    "val/psnr": 25.0,
    "val/ssim_2d": 0.9,
    "val/ssim_global": 0.8,
    "val/mse": 0.04,
    "val/seam_index": 1.0,
}
VALUES = st.floats(-1e6, 1e6)
PENALTIES = st.floats(0, 100)


def scored(name: str, value: float, penalty: float = 0.0, seam: float = 1.0) -> float:
    metrics = {f"val/{name}": value, "val/seam_index": seam}
    return score(metrics, TrainConfig(objective=name, seam_penalty=penalty))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("psnr", 25.0), ("ssim_2d", 0.9), ("ssim_global", 0.8), ("mse", -0.04)],
)
def test_each_objective_reads_its_own_metric(objective, expected):
    assert score(METRICS, TrainConfig(objective=objective)) == expected


@settings(deadline=None)
@given(st.sampled_from(list(OBJECTIVES)), VALUES, VALUES)
def test_the_better_value_has_the_higher_score(name, one, other):
    better = one > other if name != "mse" else one < other
    assert (scored(name, one) > scored(name, other)) == better


@pytest.mark.parametrize(("seam", "cost"), [(1.0, 0), (1.5, 1), (0.95, 0), (3.0, 4), (0.0, 0)])
def test_seams_cost_what_exceeds_one(seam, cost):
    assert scored("psnr", 25.0, 2.0, seam) == 25.0 - cost
    assert scored("mse", 0.25, 2.0, seam) == -0.25 - cost


@settings(deadline=None)
@given(st.sampled_from(list(OBJECTIVES)), VALUES, PENALTIES, st.floats(0, 10))
def test_seams_never_raise_a_score(name, value, penalty, seam):
    assert scored(name, value, penalty, seam) <= scored(name, value, penalty)
    assert scored(name, value, 0.0, seam) == scored(name, value)


def test_an_infinite_index_costs_all_or_nothing():
    assert scored("psnr", 25.0, 0.0, math.inf) == 25.0
    assert scored("psnr", 25.0, 0.1, math.inf) == -math.inf


def test_a_volume_without_seams_pays_nothing():
    config = TrainConfig(seam_penalty=5.0)
    assert score({"val/psnr": 25.0, "val/seam_index": math.nan}, config) == 25.0
    assert score({"val/psnr": 25.0}, config) == 25.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_epoch_without_validation_has_no_score(objective):
    config = TrainConfig(objective=objective, seam_penalty=1.0)
    assert math.isnan(score({}, config))
    assert math.isnan(score({"val/seam_index": 2.0, "train/recon": 0.1}, config))
    assert math.isnan(score({f"val/{objective}": math.nan}, config))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("prefix", ["", "val/"])
def test_objectives_go_by_their_metric(name, prefix):
    assert check_objective(prefix + name) == name


@pytest.mark.parametrize("name", [*ADVERSARIAL_TERMS, "train/generator", "val/bce"])
def test_adversarial_losses_are_refused_and_the_reason_told(name):
    with pytest.raises(ConfigError, match="must not be an adversarial loss") as caught:
        check_objective(name)
    message = str(caught.value)
    assert f"got {name}:" in message
    assert "a weak discriminator makes it good" in message
    assert message.endswith("Choose one of psnr, ssim_2d, ssim_global, mse")


@pytest.mark.parametrize("name", ["", "recon", "PSNR", "seam_index", "val/psnr_global"])
def test_other_names_are_refused_with_the_possible_ones(name):
    with pytest.raises(ConfigError) as caught:
        check_objective(name)
    expected = f"objective must be one of psnr, ssim_2d, ssim_global, mse, got {name}"
    assert str(caught.value) == expected
