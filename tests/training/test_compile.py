from __future__ import annotations

import copy

import pytest
import torch

from distsynth.models import ConvStackConfig, build_generator
from distsynth.training.compile import compile_networks, why_not

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SOURCE = (4, 1, 8, 8)


def gradients(network, source):
    network.zero_grad()
    network(source).square().mean().backward()
    return [value.grad for value in network.parameters()]


# Compiling starts processes of its own.
@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_a_compiled_network_computes_as_the_plain_one():
    reason = why_not(CPU)
    if reason:
        pytest.skip(reason)
    torch.manual_seed(0)
    plain = build_generator(ConvStackConfig((4,), (3,)), (8, 8))
    compiled = copy.deepcopy(plain)
    compile_networks([compiled], CPU)
    source = torch.randn(SOURCE)
    for one, other in zip(gradients(compiled, source), gradients(plain, source), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(compiled(source), plain(source), rtol=1e-4, atol=1e-6)
    state = compiled.state_dict()
    assert state.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


def test_a_missing_compiler_is_named_and_leaves_the_networks_alone(monkeypatch, caplog):
    def missing(_function):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", missing)
    network = build_generator(ConvStackConfig((4,), (3,)), (8, 8))
    compile_networks([network], CPU)
    assert caplog.messages == ["train.compile is ignored: no C++ compiler"]
    assert network._compiled_call_impl is None
    monkeypatch.setattr(torch, "compile", lambda _function: 1 / 0)
    assert why_not(CPU) == "division by zero"
