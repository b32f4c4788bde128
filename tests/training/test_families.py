"""Families of generators learn, on slices, neighbouring slices and blocks."""

from __future__ import annotations

import pytest
from tiny_runs import losses, tiny_config

from distsynth.models import GENERATOR_FAMILIES
from distsynth.training.loop import train
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort

SIZES = {
    "conv": {"channels": (6, 6), "kernels": (3,)},
    "encoder-decoder": {"channels": (8, 8), "kernels": (3,)},
    "dense": {"channels": (6, 4, 4), "kernels": (3,)},
    "unet": {"channels": (8, 12)},
    "residual": {"features": 6, "blocks": 2},
    "residual-dense": {"features": 6, "blocks": 2, "layers": 2, "growth": 4},
    "recursive": {"features": 6, "recursions": 3},
    "feedback": {"features": 6, "groups": 2, "steps": 2},
    # Without the source, which they would start with, so that there is more to learn.
    "half-resolution": {"features": 8, "blocks": 2, "residual": False},
    "residual-unet": {"channels": (8, 12), "encoder_blocks": 1, "residual": False},
    "gated-unet": {"channels": (8, 12), "encoder_blocks": 1, "residual": False},
}
SHARDS = {
    "2d": ShardConfig(patch_size=(16, 16), patches_per_specimen=40, stride=8, val_slices=2),
    "2.5d": ShardConfig(
        patch_size=(16, 16), patches_per_specimen=40, stride=8, val_slices=2, neighbours=1
    ),
    "3d": ShardConfig(patch_size=(8, 8, 8), patches_per_specimen=40, stride=8),
}


@pytest.fixture(scope="module")
def shards(phantom_cohort, tmp_path_factory):
    """Kind -> folder of a shard set, each cut once."""
    folder, made = tmp_path_factory.mktemp("families"), {}

    def cut(kind):
        if kind not in made:
            made[kind] = folder / kind
            write_shards(read_cohort(phantom_cohort), made[kind], SHARDS[kind], workers=1)
        return made[kind]

    return cut


def test_every_family_is_tried():
    assert set(SIZES) == set(GENERATOR_FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, "2d") for family in SIZES]
    + [(family, kind) for family in list(SIZES)[4:] for kind in ("2.5d", "3d")],
)
def test_it_learns(family, kind, shards, tmp_path):
    config = tiny_config(
        shards(kind),
        {"generator.family": family, "generator.norm": "none"},
        {f"generator.{name}": value for name, value in SIZES[family].items()},
        {
            "data.patch_size": SHARDS[kind].patch_size,
            "data.neighbours": SHARDS[kind].neighbours,
            "data.alignment": 1,
            "train.epochs": 20,
            "train.validate_every": 20,
            "train.log_every": 5,
        },
    )
    train(config, tmp_path)
    rows = losses(tmp_path)
    recon = [row["train/recon"] for row in rows if "train/recon" in row]
    assert recon[-1] < 0.8 * recon[0]
    (found,) = (row["val/psnr"] for row in rows if "val/psnr" in row)
    assert found > 9
