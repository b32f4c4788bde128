from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lab import SMALL, make_lab, rows

from distsynth.data.dataset import PatchDataset
from distsynth.data.foreground import Foreground
from sharding.shards.patches import cut, extend_volume
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.volumes.volume import Volume, write_volume

CPU = torch.device("cpu")
KINDS = {
    "slices": {},
    "oblong": {"patch_size": (8, 6), "stride": 6, "axes": (0, 1, 2), "dense_axes": (2, 0)},
    "blocks": {"patch_size": (8, 6, 4), "stride": 4, "axes": (2,)},
    "aligned": {"patch_size": (8, 8, 8), "stride": 4, "alignment": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_of_a_patch_is_cut_where_the_patch_is(tmp_path, kind):
    cohort = rows(make_lab(tmp_path))
    for number, specimen in enumerate(cohort):
        # An odd number of voxels, so that no specimen's bits end with a byte.
        data = np.random.default_rng(number).random((15, 13, 11)) < 0.5
        for role, file in enumerate((specimen.source, specimen.target)):
            voxels = np.random.default_rng([number, role]).random(data.shape)
            write_volume(file, Volume(voxels.astype(np.float32), np.eye(4)))
        mask = tmp_path / f"{specimen.name}_m.nii.gz"
        write_volume(mask, Volume(data.astype(np.float32), np.eye(4)))
        cohort[number] = replace(specimen, mask=mask)
    write_shards(cohort, tmp_path / "out", replace(SMALL, **KINDS[kind]), workers=1)
    shards = ShardSet(tmp_path / "out")
    config = shards.manifest.config
    foreground = Foreground(shards, ("train", "val"), CPU)
    for split in ("train", "val"):
        dataset = PatchDataset(shards, split)
        # In another order than they lie in, as in training.
        where = dataset[np.random.default_rng(1).permutation(len(dataset))].where
        found = foreground(where).numpy()
        assert found.shape == (len(dataset), 1, *config.patch_size)
        for patch, (number, *place) in zip(found, where.tolist(), strict=True):
            mask = shards.mask(shards.manifest.specimens[number])
            whole = extend_volume(mask, config.alignment)
            location = np.array([place], np.int32)
            np.testing.assert_array_equal(patch, cut(whole, config.patch_size, location))
