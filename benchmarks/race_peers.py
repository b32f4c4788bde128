"""The peers of the race in a plain loop: two networks of MONAI, the residual encoder of nnU-Net.

They get what our networks get: pairs on the target's grid, on the percentile scale, of the training
specimens alone. The loop is what their tutorials show: random crops, of 32 voxels a side, L1, Adam,
a sliding window to predict with. Nothing of it was tuned on the cohort; nor was ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distsynth.evaluation.baselines import PairLike

SIDE = 32
"""Of a crop, in voxels. Crops of 64, as in their tutorials, leave 11 to 41 steps in 139 s."""
BATCH = 2
LEARNING_RATE = 1e-3
OVERLAP = 0.25
"""Of sliding windows."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """A peer that has been trained: it predicts as a baseline does.

    Attributes:
        name: Of the row.
        seconds: Processor time that its training took.
        steps: Optimizer steps.
        parameters: Weights of the network; None where the peer does not tell.
        predict: Pair to synthetic volume, on the pair's own scale.
    """

    name: str
    seconds: float
    steps: int | None
    parameters: int | None
    predict: Callable[[PairLike], Array]


def basic_unet() -> nn.Module:
    """MONAI's BasicUNet with its default widths, group norm."""
    from monai.networks.nets.basic_unet import BasicUNet  # type: ignore

    return BasicUNet(
        spatial_dims=3, in_channels=1, out_channels=1, norm=("group", {"num_groups": 4})
    )


def seg_res_net() -> nn.Module:
    """MONAI's SegResNet with its default widths."""
    from monai.networks.nets.segresnet import SegResNet  # type: ignore

    return SegResNet(spatial_dims=3, in_channels=1, out_channels=1, init_filters=16)


def residual_encoder() -> nn.Module:
    """nnU-Net's residual encoder, its first widths and depths."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet  # type: ignore

    return ResidualEncoderUNet(
        input_channels=1,
        n_stages=4,
        features_per_stage=(32, 64, 128, 256),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=(1, 2, 2, 2),
        n_blocks_per_stage=(1, 3, 4, 6),
        num_classes=1,
        n_conv_per_stage_decoder=(1, 1, 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "monai-basic-unet": basic_unet,
    "monai-seg-res-net": seg_res_net,
    "nnunet-residual-encoder": residual_encoder,
}
"""Name to network, all trained by the plain loop."""


def plain_loop(name: str, pairs: Sequence[PairLike], seconds: float, seed: int) -> Trained:
    """Train a network of `PLAIN` for so many processor seconds."""
    from monai.inferers.utils import sliding_window_inference  # type: ignore

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = PLAIN[name]()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    start, steps = time.process_time(), 0
    while time.process_time() - start < seconds:
        source, target = _crops(pairs, rng)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.l1_loss(network(source), target).backward()
        optimizer.step()
        steps += 1
    spent = time.process_time() - start
    network.eval()

    def predict(pair: PairLike) -> Array:
        source = torch.from_numpy(np.asarray(pair.source, np.float32))[None, None]
        with torch.inference_mode():
            found: Any = sliding_window_inference(
                source, (SIDE,) * 3, 2, network, overlap=OVERLAP, mode="gaussian"
            )
        return found[0, 0].numpy()

    weights = sum(weight.numel() for weight in network.parameters())
    return Trained(name, spent, steps, weights, predict)


def _crops(pairs: Sequence[PairLike], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch of random crops, each (n, 1, side, side, side)."""
    sources, targets = [], []
    for pair in rng.choice(np.arange(len(pairs)), BATCH):
        one = pairs[int(pair)]
        first = [int(rng.integers(0, size - SIDE + 1)) for size in one.target.shape]
        where = tuple(slice(low, low + SIDE) for low in first)
        sources.append(np.asarray(one.source[where], np.float32))
        targets.append(np.asarray(one.target[where], np.float32))
    return tuple(torch.from_numpy(np.stack(part)[:, None]) for part in (sources, targets))  # type: ignore[return-value]
