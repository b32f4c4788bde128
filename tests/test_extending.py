"""The examples of docs/extending.md work as they are printed."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import torch
from pydantic import Field, TypeAdapter

from distsynth.config import RunConfig, from_json, to_json, validate
from distsynth.losses.registry import LossConfig
from distsynth.losses.term import Outputs
from distsynth.models import ConvStackConfig, build_generator
from distsynth.presets import PRESETS
from distsynth.rules import check_rules
from distsynth.sweep.space import check_space

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(request, monkeypatch):
    """The module that a block of the page makes."""
    module = types.ModuleType("an_example")
    monkeypatch.setitem(sys.modules, "an_example", module)
    exec(BLOCKS[request.param], module.__dict__)
    return module


@pytest.mark.parametrize("example", [0], indirect=True)
@pytest.mark.parametrize("patch_size", [(16, 16), (8, 8, 8)], ids=str)
def test_the_family(example, patch_size):
    config = example.DilatedConfig(width=4, depth=3)
    check_rules("generator", config.rules())
    generator = build_generator(config, patch_size, in_channels=3)
    for parameter in generator.parameters():
        # So that every ReLU passes its input on.
        torch.nn.init.constant_(parameter, 0.1)
    source = torch.zeros(1, 3, *(32,) * len(patch_size))
    source.requires_grad_()
    middle = (0, 0, *(16,) * len(patch_size))
    generator.eval()(source)[middle].backward()
    assert source.grad is not None
    seen = source.grad.abs().sum(dim=(0, 1)).nonzero()
    assert generator.reach == 7
    assert (seen - 16).abs().max() == 7


@pytest.mark.parametrize("example", [0], indirect=True)
def test_the_registry_reads_the_family(example):
    union = Annotated[ConvStackConfig | example.DilatedConfig, Field(discriminator="family")]
    found = TypeAdapter(union).validate_python({"family": "dilated", "depth": 2})
    assert found == example.DilatedConfig(depth=2)


@pytest.mark.parametrize("example", [1], indirect=True)
def test_the_term(example):
    config = example.CharbonnierConfig(lambda_charbonnier=1.0, charbonnier_epsilon=3.0)
    check_rules("loss", config.rules())
    term = example.Charbonnier(config)
    value = term(Outputs(torch.full((2, 1, 4, 4), 4.0), torch.zeros(2, 1, 4, 4)))
    assert value.item() == pytest.approx(5.0)
    bases = (example.CharbonnierConfig, LossConfig)
    made = dataclass(frozen=True)(types.new_class("Extended", bases))
    assert made(1.0, lambda_charbonnier=0.5).weight("charbonnier") == 0.5


@pytest.mark.parametrize("example", [2], indirect=True)
def test_the_preset(example):
    assert isinstance(example.mine, RunConfig)
    assert from_json(to_json(validate(example.mine))) == example.mine


@pytest.mark.parametrize("example", [3], indirect=True)
@pytest.mark.parametrize("name", ["unet-7", "dcsrn-l1", "small"])
def test_the_space(example, name):
    check_space(example.edges(), PRESETS[name])
