"""Specimens that cannot be prepared: each is named, and nothing is made of it."""

from __future__ import annotations

import gzip
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from cheap_preparation import CHEAP
from prepared_folders import PLAIN, mask_of, prepared

from sharding.registration import step_work
from sharding.registration.config import PrepareConfig
from sharding.registration.quality import jacobian_range
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.slow


def swapped(one):
    return replace(one, source=one.target, target=one.source)


def apart(one):
    volume = read_volume(one.source)
    affine = volume.affine.copy()
    affine[0, 3] += 100
    write_volume(one.source, Volume(volume.data, affine))
    return one


def mostly_apart(one):
    volume = read_volume(one.source)
    affine = volume.affine.copy()
    affine[0, 3] += 6
    write_volume(one.source, Volume(volume.data, affine))
    return one


def four_dimensional(one):
    image = nib.load(one.source)
    data = np.repeat(image.get_fdata(dtype=np.float32)[..., None], 3, axis=-1)
    nib.save(nib.Nifti1Image(data, image.affine), one.source)
    return one


def overflowing(one):
    """Integers whose scale factor takes them beyond what a float can hold."""
    data = np.arange(20 * 18 * 16, dtype=np.int16).reshape(20, 18, 16)
    image = nib.Nifti1Image(data, read_volume(one.source).affine)
    image.header.set_slope_inter(1e38, 0)
    nib.save(image, one.source)
    raw = gzip.decompress(one.source.read_bytes())
    header = nib.Nifti1Header(raw[:348])
    header["scl_slope"] = 1e38
    one.source.write_bytes(gzip.compress(header.binaryblock + raw[348:]))
    return one


def misfit_mask(one):
    grid = read_volume(one.target)
    return replace(one, mask=mask_of(grid, one.target.parent, np.ones((40, 36, 31))))


def shifted_mask(one):
    grid = read_volume(one.target)
    affine = grid.affine.copy()
    affine[2, 3] += 1
    return replace(one, mask=mask_of(grid, one.target.parent, np.ones(grid.shape), affine))


def empty_mask(one):
    grid = read_volume(one.target)
    return replace(one, mask=mask_of(grid, one.target.parent, np.zeros(grid.shape)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swapped, "target.nii.gz: the source is finer than the target: swapped?"),
        (apart, "no voxel of phantom-00_target.nii.gz lies in the source's field of view"),
        (mostly_apart, "of the target's foreground, at least 25% is needed. Check the affines"),
        (four_dimensional, "must be a 3D volume"),
        (overflowing, "voxels must be finite"),
        (misfit_mask, "mask.nii.gz: a mask must have the target's shape"),
        (shifted_mask, "mask.nii.gz: a mask must have the target's affine"),
        (empty_mask, "mask.nii.gz: no voxel lies in the mask"),
    ],
)
def test_bad_input_is_named_and_nothing_is_made_of_it(one, tmp_path, spoil, message):
    out = tmp_path / "out"
    result = prepared([spoil(one)], out)
    assert message in result.failures[one.name]
    assert str(tmp_path) not in result.failures[one.name]
    assert not list((out / one.name).glob("*/source.nii.gz")) or spoil is mostly_apart


def test_a_finer_source_may_be_meant(one, tmp_path):
    allowed = replace(PLAIN, preprocess=PreprocessConfig(allow_finer_source=True))
    out = tmp_path / "out"
    assert prepared([swapped(one)], out, allowed).failures == {}
    # What was let pass once is checked again when it is no longer.
    assert "swapped?" in prepared([swapped(one)], out).failures[one.name]


def test_folding_is_an_error(one, tmp_path, monkeypatch):
    def folding(source, target, start, config, mask):  # noqa: ARG001
        field = np.zeros((*target.shape, 3), np.float32)
        x = np.arange(target.shape[0]) * 0.2
        field[..., 0] = -3 * np.exp(-(((x - 4) / 0.5) ** 2))[:, None, None] * (x - 4)[:, None, None]
        return Transform(start.affine, field, target.affine)

    monkeypatch.setattr(step_work, "register_deformable", folding)
    out = tmp_path / "out"
    result = prepared([one], out, replace(CHEAP, steps=("scale", "deform", "resample")))
    assert "the deformation folds space" in result.failures[one.name]
    assert not (out / one.name / "deform").exists()


def test_folding_far_from_the_specimen_does_not_matter():
    field = np.zeros((10, 10, 10, 3), np.float32)
    field[9, :, :, 0] = -20
    transform = Transform(np.eye(4), field, np.diag([2.0, 2, 2, 1]))
    foreground = np.zeros((20, 20, 20), bool)
    foreground[3:6, 3:6, 3:6] = True
    assert transform.jacobian().min() < 0
    assert jacobian_range(transform, foreground, np.eye(4)) == (1, 1)
    foreground[19] = True
    assert jacobian_range(transform, foreground, np.eye(4))[0] < 0
    doubled = Transform(np.diag([2.0, 1, 1, 1]))
    assert jacobian_range(doubled, foreground, np.eye(4)) == (2, 2)


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        ((), "got none"),
        (("scale", "correct"), "in this order"),
        (("scale", "scale"), "each once"),
        (("scale", "wash"), "some of correct, scale, rigid, affine, deform, resample"),
        (("scale", "affine"), "have no effect without resample"),
        (("deform",), "have no effect without resample"),
    ],
)
def test_impossible_steps_are_refused(steps, rule):
    with pytest.raises(ValueError, match=rule):
        PrepareConfig(steps=steps)
