"""Forms of the gradient difference term, by hand and at the borders of a patch."""

from __future__ import annotations

import pytest
import torch
from losses_by_hand import gradient_by_hand

from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.gradient import gradient_difference_loss
from distsynth.losses.registry import LossConfig
from distsynth.losses.term import Outputs


def test_gradient_difference_by_hand(pair):
    loss = gradient_difference_loss(*map(torch.from_numpy, pair))
    assert loss.item() == pytest.approx(gradient_by_hand(*pair), rel=1e-5)


def test_gradient_difference_sees_edges_not_levels(pair):
    _, target = map(torch.from_numpy, pair)
    assert gradient_difference_loss(target + 5, target).item() == pytest.approx(0, abs=1e-10)
    # The sign of an edge counts: a mirrored image has the same magnitudes.
    assert gradient_difference_loss(-target, target) > 0


def test_a_unit_edge():
    synthetic = torch.zeros(1, 1, 2, 2)
    target = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert gradient_difference_loss(synthetic, target) == 1


def test_gradient_difference_needs_two_voxels():
    with pytest.raises(ValueError, match="at least 2 voxels"):
        gradient_difference_loss(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1))


def test_absolute_differences_end_in_zeros_where_the_patch_ends():
    synthetic = torch.tensor([[[[1.0, -2.0], [3.0, 5.0]]]])
    target = torch.tensor([[[[0.0, 4.0], [1.0, 1.0]]]])
    # Along rows: |1-3|, |-2-5| against |0-1|, |4-1|; then the last row itself, 3, 5 against 1, 1.
    rows = [(2 - 1) ** 2, (7 - 3) ** 2, (3 - 1) ** 2, (5 - 1) ** 2]
    columns = [(3 - 4) ** 2, (2 - 4) ** 2, (2 - 0) ** 2, (5 - 1) ** 2]
    loss = gradient_difference_loss(synthetic, target, "absolute")
    assert loss.item() == pytest.approx((sum(rows) + sum(columns)) / 4)


def test_absolute_differences_ignore_the_sign_of_an_edge_but_not_the_border(pair):
    _, target = map(torch.from_numpy, pair)
    mirrored = gradient_difference_loss(-target, target, "absolute")
    assert mirrored.item() == pytest.approx(0, abs=1e-10)
    # A level is seen at the border of the patch, and nowhere else.
    assert gradient_difference_loss(target + 5, target, "absolute") > 1
    inside = gradient_difference_loss(target + 5, target, "absolute", margin=1)
    assert inside.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("form", ["signed", "absolute"])
def test_what_lies_in_the_margin_does_not_count(form, pair):
    synthetic, target = (torch.from_numpy(image.copy()) for image in pair)
    spoilt = synthetic.clone()
    for axis in range(2, spoilt.ndim):
        spoilt.narrow(axis, 0, 1).fill_(99)
        spoilt.narrow(axis, spoilt.shape[axis] - 1, 1).fill_(-99)
    found = gradient_difference_loss(spoilt, target, form, margin=1)
    assert found == gradient_difference_loss(synthetic, target, form, margin=1)
    assert found != gradient_difference_loss(synthetic, target, form)


def test_a_margin_leaves_two_voxels():
    image = torch.zeros(1, 1, 5, 3)
    with pytest.raises(ValueError, match=r"within loss\.gradient_margin 1, got \(5, 3\)"):
        gradient_difference_loss(image, image, margin=1)


def test_the_configuration_chooses_form_and_margin(pair):
    config = LossConfig(lambda_gradient=1.0, gradient_form="absolute")
    synthetic, target = map(torch.from_numpy, pair)
    (term,) = [term for name, term in GeneratorLoss(config).terms.items() if name == "gradient"]
    expected = gradient_difference_loss(synthetic, target, "absolute")
    assert term(Outputs(synthetic, target)) == expected
    with pytest.raises(ConfigError, match=r"loss\.gradient_margin must leave at least 2 voxels"):
        LossConfig(lambda_gradient=1.0, gradient_margin=4).check_patch((8, 9))
    assert "absolute" in config.description
