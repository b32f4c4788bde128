"""Trains the encoder of the perceptual loss on the cohort's own targets, at the start of a run."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from itertools import pairwise

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from distsynth.data.dataset import PatchDataset
from distsynth.data.standardiser import Standardiser
from distsynth.models.encoder import WIDTHS, Encoder
from distsynth.models.layers import conv
from sharding.io.errors import DataError
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet

logger = logging.getLogger(__name__)
SEED = 0
"""Fixed, not the run's: all runs on the same shards use the same encoder."""
BATCH, VOXELS, LEARNING_RATE = 16, 65_536, 1e-3
"""Patches a step; fewer of blocks, so that no step sees more than so many voxels."""
NOISE = 0.5
"""Standard deviation of the noise that is added to a patch, in standardised units."""
POOL = 2**24
"""Most voxels of the patches that are kept in memory: 4096 patches of 64 x 64."""
MEASURED = 4
"""Batches, evenly spread, on which the scale is measured."""


class Decoder(nn.Module):
    """Maps the deepest features back to the patch; used only while the encoder is trained."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        widths = (*reversed(WIDTHS), 1)
        self.layers = nn.ModuleList(
            conv(dims, before, after, 3) for before, after in pairwise(widths)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features of each level -> (batch, 1, *spatial)."""
        image = features[-1]
        for layer, wanted in zip(self.layers, [*reversed(features[:-1]), None], strict=True):
            image = layer(image)
            if wanted is not None:
                image = F.interpolate(F.relu(image), size=wanted.shape[2:])
        return image


def new_encoder(dims: int) -> Encoder:
    """An untrained encoder, always the same; it does not draw from the run's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return Encoder(dims)


def train_encoder(
    encoder: Encoder,
    shards: ShardSet,
    standardise: Standardiser,
    steps: int,
    accelerator: Accelerator,
    kept: Folder | None = None,
) -> None:
    """Train the encoder to remove noise from target patches, and set its scale.

    Only targets of the training split are used. The result depends on the shards, `steps` and the
    processor's rounding alone; the first rank trains, and the others take over its weights. It does
    not draw from the run's random numbers, so that a run is the same with one that was kept.

    Args:
        encoder: From new_encoder, on the accelerator's device.
        shards: The shards of the run.
        standardise: The standardiser of the run.
        steps: Optimizer steps.
        accelerator: The accelerator of this process.
        kept: Where encoders of other runs are kept: one of the same shards and steps is taken from
            there instead, and a new one is added.

    Raises:
        DataError: If the one that is kept cannot be read.
    """
    name = kept_name(shards.manifest.sha256, steps)
    if accelerator.is_main_process and kept is not None and kept.exists(name):
        _take(encoder, kept, name)
        logger.info(
            "encoder of the cohort's targets: %s; fingerprint %s",
            kept / name,
            fingerprint(encoder)[:16],
        )
    elif accelerator.is_main_process:
        first, last = _fit(encoder, _targets(shards, standardise), steps)
        logger.info(
            "encoder of the cohort's targets: error %.3f after %d steps, %.3f in the first; "
            "fingerprint %s",
            last,
            steps,
            first,
            fingerprint(encoder)[:16],
        )
        if kept is not None:
            state = {name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}
            kept.write(name, safetensors.torch.save(state))
    if accelerator.num_processes > 1:
        for value in encoder.state_dict().values():
            torch.distributed.broadcast(value, 0)


def kept_name(manifest_sha256: str, steps: int) -> str:
    """Name of the file of an encoder: a digest of all that decides how it is trained."""
    settings = (SEED, BATCH, VOXELS, LEARNING_RATE, NOISE, POOL, MEASURED, WIDTHS)
    stated = json.dumps([manifest_sha256, steps, settings])
    return f"{hashlib.sha256(stated.encode()).hexdigest()[:32]}.safetensors"


def _take(encoder: Encoder, kept: Folder, name: str) -> None:
    """Give an encoder the weights in a file.

    Raises:
        DataError: If they cannot be read, or do not fit.
    """
    try:
        encoder.load_state_dict(safetensors.torch.load(kept.read(name)))
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        rule = f"not an encoder that can be read ({reason})"
        raise DataError(kept / name, rule, "Remove it: the next run trains it again") from error


def fingerprint(encoder: Encoder) -> str:
    """SHA-256 of the encoder's numbers."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _targets(shards: ShardSet, standardise: Standardiser) -> Tensor:
    """Standardised targets of training patches, evenly spread, (patches, 1, *spatial)."""
    dataset = PatchDataset(shards, "train")
    count = min(len(dataset), max(1, POOL // math.prod(shards.manifest.config.patch_size)))
    chosen = np.linspace(0, len(dataset) - 1, count).astype(np.int64)
    parts = np.array_split(chosen, math.ceil(len(chosen) / 256))
    return torch.cat([standardise(dataset[part])[1] for part in parts])


def _fit(encoder: Encoder, targets: Tensor, steps: int) -> tuple[float, float]:
    """Train; the mean absolute error of the first step and of the last ten."""
    draw = np.random.default_rng(SEED)
    decoder = _decoder(encoder, targets)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    errors: list[Tensor] = []
    batch = max(1, min(BATCH, VOXELS // targets[0].numel()))
    for _ in range(steps):
        chosen = draw.integers(0, len(targets), batch)
        patches = targets[torch.from_numpy(chosen).to(targets.device)]
        noise = torch.from_numpy(draw.standard_normal(patches.shape, np.float32))
        noisy = patches + NOISE * noise.to(targets.device)
        error = F.l1_loss(decoder(encoder.features(noisy)), patches)
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
        errors.append(error.detach())
    with torch.no_grad():
        features = encoder.features(targets[:: max(1, len(targets) // (MEASURED * batch))])
        encoder.scale.copy_(torch.stack([level.abs().mean() for level in features]) + 1e-6)
    return float(errors[0]), float(torch.stack(errors[-10:]).mean())


def _decoder(encoder: Encoder, targets: Tensor) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)
        return Decoder(targets.ndim - 2).to(encoder.scale.device)
