"""In which precision a device computes best: bfloat16 where it multiplies natively in it."""

from __future__ import annotations

from typing import Literal

import torch

from distsynth.sections import Precision

PredictedIn = Literal["auto", "no", "bf16"]
"""How a model predicts: in bfloat16, in float32 (`no`), or as it was trained (`auto`)."""
NATIVE = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions of processors that multiply in bfloat16; the last are those of ARM."""


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16, so that none are emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in NATIVE)


def predicts_in_bf16(asked: PredictedIn, trained: Precision, device: torch.device) -> bool:
    """Whether a model predicts in bfloat16.

    Args:
        asked: What the user wants; `auto` takes bfloat16 for a model that was trained in it, on a
            device that multiplies in it.
        trained: The precision of its training.
        device: Where it predicts.
    """
    if asked == "auto":
        return trained == "bf16" and multiplies_bf16(device)
    return asked == "bf16"
