"""A real pair whose source has lost its orientation, or lies mirrored: refused or flagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cheap_preparation import CHEAP

from sharding.io.errors import CohortError
from sharding.registration.prepare import prepare_cohort
from sharding.registration.register import RegisterConfig, register_affine
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.volumes.cohort import Specimen
from sharding.volumes.transform import Transform
from sharding.volumes.volume import read_volume

pytestmark = pytest.mark.slow

SUBJECT = "sub-05"
COARSE = {"target": (6, 6, 6), "source": (6, 6, 1)}
"""Every so many voxels are kept: about 6 mm of either scan."""
STRIPPED = "no orientation: its qform and sform codes are both 0"


def coarse(scan: Path, step: tuple[int, int, int], to: Path) -> Path:
    """Keep some voxels of a scan, with their place in the world and its codes."""
    image = nib.load(scan)
    data = np.asarray(image.dataobj)[tuple(slice(None, None, each) for each in step)]
    affine = image.affine @ np.diag([*step, 1])
    small = nib.Nifti1Image(data.astype(np.float32), affine)
    small.set_sform(affine, int(image.header["sform_code"]) or 1)
    small.set_qform(affine, int(image.header["qform_code"]))
    nib.save(small, to)
    return to


@pytest.fixture(scope="module")
def pair(real_pairs, tmp_path_factory) -> Specimen:
    folder = tmp_path_factory.mktemp("coarse")
    target = coarse(real_pairs / f"{SUBJECT}_T1w.nii.gz", COARSE["target"], folder / "t.nii.gz")
    scan = real_pairs / f"{SUBJECT}_inplaneT2.nii.gz"
    return Specimen(SUBJECT, target, coarse(scan, COARSE["source"], folder / "s.nii.gz"), "train")


def rewritten(pair: Specimen, folder: Path, strip: bool = False, mirror: bool = False) -> Specimen:
    """The pair with a source that has lost its codes, or whose array is flipped."""
    image = nib.load(pair.source)
    data = np.asarray(image.dataobj)
    across = int(np.argmax(np.abs(image.affine[0, :3])))
    changed = nib.Nifti1Image(np.flip(data, across) if mirror else data, image.affine)
    changed.set_sform(image.affine, 0 if strip else 1)
    changed.set_qform(image.affine, 0 if strip else 1)
    nib.save(changed, folder / "s.nii.gz")
    return replace(pair, source=folder / "s.nii.gz")


def test_a_source_without_codes_is_refused_by_shard_and_prepare(pair, tmp_path):
    stripped = rewritten(pair, tmp_path, strip=True)
    cohort = [stripped, replace(stripped, name="other", split="val")]
    with pytest.raises(CohortError, match=f"sub-05: .*{STRIPPED}.*orientation array"):
        write_shards(cohort, tmp_path / "shards", ShardConfig(), workers=1)
    assert not (tmp_path / "shards" / "manifest.json").exists()
    done = prepare_cohort([stripped], tmp_path / "out", CHEAP, workers=1)
    assert STRIPPED in done.failures[SUBJECT]
    assert not done.specimens


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_mirrored_source_is_flagged_and_a_right_one_is_not(pair, tmp_path, mirrored):
    config = replace(CHEAP, steps=("scale", "rigid", "resample"))
    specimen = rewritten(pair, tmp_path, mirror=mirrored)
    done = prepare_cohort([specimen], tmp_path / "out", config, workers=1)
    assert not done.failures
    reasons = "; ".join(done.flags.get(SUBJECT, []))
    assert ("fits better when it is mirrored left to right" in reasons) == mirrored


def test_a_map_that_mirrors_is_refused(pair, tmp_path, refused):
    """From a map that mirrors, registration of the mirrored scan would stay there."""
    specimen = rewritten(pair, tmp_path, mirror=True)
    source, target = read_volume(specimen.source), read_volume(specimen.target)
    mirror = Transform(np.diag([-1.0, 1.0, 1.0, 1.0]))
    config = RegisterConfig(affine_shrink=(2,), affine_iterations=10)
    with refused("registration", "would mirror the source: its determinant is -", "orientation"):
        register_affine(source, target, config, start=mirror)
