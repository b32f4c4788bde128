"""Learning rates are searched around those of what a sweep starts from."""

from __future__ import annotations

import math

import pytest

from distsynth.presets import preset
from distsynth.sweep.plan import SweepConfig
from distsynth.sweep.run import centre_of
from tune_spaces.learning_rates import SPAN, learning_rates
from tune_spaces.named import named_space
from tune_spaces.plain import space_to_plain


def middle(domain):
    return math.sqrt(domain.lower * domain.upper)


@pytest.mark.parametrize(
    "names", [["learning-rates"], ["everything"], ["loss-weights", "learning-rates"]]
)
def test_learning_rates_are_searched_around_those_that_are_given(names):
    own = {"optim.lr_generator": 2e-3, "optim.lr_discriminator": 3e-4}
    space = named_space(names, own)
    for field, rate in own.items():
        assert middle(space[field]) == pytest.approx(rate)
        assert space[field].upper / space[field].lower == pytest.approx(SPAN**2)
    # Without them the ranges are the paper's.
    assert space_to_plain(named_space(names)) == space_to_plain(
        {**named_space(names), **learning_rates()}
    )


def test_a_file_that_names_the_learning_rates_is_centred_and_its_own_ranges_are_not(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "spaces: [learning-rates]\noptim.lr_discriminator: {loguniform: [0.001, 0.01]}\n"
    )
    space = named_space([str(path)], {"optim.lr_generator": 5e-5, "optim.lr_discriminator": 1.0})
    assert middle(space["optim.lr_generator"]) == pytest.approx(5e-5)
    assert (space["optim.lr_discriminator"].lower, space["optim.lr_discriminator"].upper) == (
        0.001,
        0.01,
    )


def test_the_centre_is_the_preset_unless_the_paper_is_tried_first():
    found = centre_of(preset("pix2pix-9"), SweepConfig())
    assert found == {"optim.lr_generator": 5e-5, "optim.lr_discriminator": 2e-5}
    assert centre_of(preset("pix2pix-9"), SweepConfig(presets_first=True)) is None
