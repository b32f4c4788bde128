from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from tiny_runs import BATCH_NORM, tiny_config

from distsynth.errors import ConfigError
from distsynth.inference.predictor import load_predictor
from distsynth.inference.scan import ScanOptions, prediction_grid
from distsynth.prediction.file import FileOptions, predict_file
from distsynth.runs.checkpoint import Checkpoint, Position, load_checkpoint, save_checkpoint
from distsynth.runs.data_record import DataRecord
from distsynth.runs.folder import BEST
from distsynth.training.loop import train
from sharding.io.errors import DataError
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.cohort import read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.header import codes_of
from sharding.volumes.volume import Volume, read_volume, write_volume

SPACING = 0.2


@pytest.fixture(scope="module")
def checkpoint(shard_folder, tmp_path_factory):
    """The best checkpoint of a short run."""
    config = tiny_config(shard_folder, BATCH_NORM)
    return train(config, tmp_path_factory.mktemp("runs") / "run").best


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return load_predictor(checkpoint, "cpu")


@pytest.fixture(scope="module")
def specimen(phantom_cohort):
    return read_cohort(phantom_cohort)[-1]


def simulated(folder, shape, name="a"):
    """A target and its source of twice the voxel size, as files."""
    target = phantom_volume(shape, seed=9, spacing_mm=SPACING)
    source, _ = simulate_source(target, SimulationConfig(), name)
    paths = folder / f"{name}_source.nii.gz", folder / f"{name}_target.nii.gz"
    for path, volume in zip(paths, (source, target), strict=True):
        write_volume(path, volume)
    return paths


def predicted(predictor, path, tmp_path, **options):
    out = tmp_path / "out.nii.gz"
    assert predict_file(predictor, path, out, FileOptions(**options)) == out
    return read_volume(out)


def identity_predictor(tmp_path, shards, orientation="RAS"):
    """A predictor whose network returns its source."""
    config = tiny_config(shards)
    data = DataRecord(
        "sha", PreprocessConfig(), (SPACING,) * 3, orientation, {"a": "train"}, ("seen",)
    )
    network = {
        "network.layers.0.weight": torch.zeros(4, 1, 3, 3),
        "network.layers.0.bias": torch.zeros(4),
        "network.layers.3.weight": torch.zeros(1, 4, 3, 3),
        "network.layers.3.bias": torch.zeros(1),
    }
    # Both signs pass the ReLU in channels of their own.
    for channel, sign in ((0, 1.0), (1, -1.0)):
        network["network.layers.0.weight"][channel, 0, 1, 1] = sign
        network["network.layers.3.weight"][0, channel, 1, 1] = sign
    learners = {"generator": {"network": network}}
    path = tmp_path / "identity.pt"
    save_checkpoint(path, Checkpoint(config, data, Position(), learners, [], {}))
    return load_predictor(path, "cpu")


def test_a_source_of_the_targets_spacing_keeps_its_grid(predictor, specimen, tmp_path):
    source = read_volume(specimen.target)
    found = predicted(predictor, specimen.target, tmp_path)
    assert found.shape == source.shape
    np.testing.assert_allclose(found.affine, source.affine)


@pytest.mark.parametrize("shape", [(40, 36, 32), (48, 40, 44)])
def test_a_coarse_source_lands_on_the_training_grid(shape, predictor, tmp_path):
    source, target = simulated(tmp_path, shape)
    found, expected = predicted(predictor, source, tmp_path), read_volume(target)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)


def test_an_odd_target_gets_one_plane_more(predictor, tmp_path):
    """Every second voxel of 41 and of 42 is 21: the source cannot tell. The voxels coincide."""
    source, target = simulated(tmp_path, (41, 37, 33))
    found, expected = predicted(predictor, source, tmp_path), read_volume(target)
    assert found.shape == (42, 38, 34)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    (tmp_path / "out.nii.gz").unlink()
    like = predicted(predictor, source, tmp_path, like=target)
    assert like.shape == expected.shape
    # Away from the far faces, where the patches end elsewhere.
    near = (slice(0, 20),) * 3
    np.testing.assert_allclose(found.data[near], like.data[near], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 1.5, 3.0])
def test_the_grid_covers_the_field_of_view_of_any_spacing(factor):
    size = 24
    affine = np.diag([SPACING * factor] * 3 + [1.0])
    affine[:3, 3] = 5, -3, 8
    source = Volume(np.zeros((size,) * 3, np.float32), affine)
    grid = prediction_grid(source, (SPACING,) * 3, "RAS")
    np.testing.assert_allclose(grid.spacing_mm, SPACING)
    np.testing.assert_allclose(grid.affine[:3, 3], affine[:3, 3])
    border = (size - 0.5) * factor
    assert grid.shape[0] - 1 <= border + 1e-6
    assert grid.shape[0] > border - 1e-6


def test_intensities_are_on_the_scale_of_the_source(shard_folder, specimen, tmp_path):
    """A network that returns its source returns the file, but for what was clipped."""
    predictor = identity_predictor(tmp_path, shard_folder)
    source = read_volume(specimen.target)
    found = predicted(predictor, specimen.target, tmp_path)
    low, high = np.percentile(source.data, (0.1, 99.9))
    assert high > 500
    np.testing.assert_allclose(found.data, np.clip(source.data, low, high), atol=0.01)


@pytest.mark.parametrize("orientation", ["LPS", "PSR", "IAL"])
def test_a_source_of_another_orientation_gives_the_same_in_world_space(
    orientation, predictor, tmp_path
):
    source, _ = simulated(tmp_path, (40, 36, 32))
    expected = predicted(predictor, source, tmp_path)
    volume = read_volume(source)
    change = ornt_transform(io_orientation(volume.affine), axcodes2ornt(orientation))
    turned = volume.reoriented(orientation)
    assert turned.orientation == orientation
    np.testing.assert_allclose(
        turned.affine, volume.affine @ inv_ornt_aff(change, volume.shape), atol=1e-6
    )
    path = tmp_path / "turned.nii.gz"
    write_volume(path, turned)
    found = predicted(predictor, path, tmp_path, overwrite=True)
    assert found.orientation == expected.orientation == "RAS"
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(found.data, expected.data, atol=0.01 * np.ptp(expected.data))


def test_an_existing_output_is_refused(predictor, specimen, tmp_path, refused):
    out = tmp_path / "out.nii.gz"
    out.write_bytes(b"precious")
    with refused(out, "exists already", "--overwrite"):
        predict_file(predictor, specimen.source, out)
    assert out.read_bytes() == b"precious"
    predict_file(predictor, specimen.source, out, FileOptions(overwrite=True))
    assert read_volume(out).shape == (40, 36, 32)


@pytest.mark.parametrize("name", ["out.mha", "out", "out.nii.zip"])
def test_another_format_is_refused(name, predictor, specimen, tmp_path, refused):
    with refused(name, r"the output must end in \.nii\.gz, ", "Rename"):
        predict_file(predictor, specimen.source, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_source_is_named(predictor, tmp_path, refused):
    with refused("none.nii.gz", "does not exist", "path"):
        predict_file(predictor, tmp_path / "none.nii.gz", tmp_path / "out.nii.gz")


def test_a_volume_smaller_than_a_patch_is_refused(predictor, tmp_path, refused):
    path = tmp_path / "thin.nii.gz"
    write_volume(path, phantom_volume((12, 40, 40), spacing_mm=SPACING))
    with refused(path, "patches of 16x16 .* do not fit .* 12x40x40", "larger volume"):
        predict_file(predictor, path, tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()


def test_uncompressed_output_has_no_free_text(predictor, specimen, tmp_path):
    out = predict_file(predictor, specimen.source, tmp_path / "deep" / "out.nii")
    header = read_volume(out).header
    assert header is not None
    assert bytes(header["descrip"]).strip(b"\0") == b""
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.json", "out.nii"]


def test_predictions_do_not_depend_on_patches_a_forward(predictor, monkeypatch):
    source = np.random.default_rng(0).normal(size=(20, 20, 8)).astype(np.float32)
    expected = predictor(source, quiet=True)
    monkeypatch.setattr("distsynth.inference.memory_budget.CACHE", 3 * 16 * 16 * 4 * 4)
    np.testing.assert_allclose(predictor(source, quiet=True), expected, atol=1e-5)


def test_stitching_may_be_changed(predictor):
    source = np.random.default_rng(0).normal(size=(20, 20, 18)).astype(np.float32)
    plain = predictor(source, quiet=True)
    changed = predictor.stitched(trim=2, weights="smooth", stride=None)
    assert changed.checkpoint.config.stitch.stride == 8
    assert not np.array_equal(changed(source, quiet=True), plain)
    three = predictor.stitched(axes=(0, 1, 2))(source, quiet=True)
    single = [predictor.stitched(axes=(axis,))(source, quiet=True) for axis in range(3)]
    # Averages of averages agree where every axis has as many patches: at a corner.
    np.testing.assert_allclose(
        three[0, 0, 0], np.mean([volume[0, 0, 0] for volume in single]), rtol=1e-5
    )
    with pytest.raises(ConfigError, match=r"stitch\.trim must be"):
        predictor.stitched(trim=7)
    assert predictor.checkpoint.config.stitch.trim == 0


def test_the_network_predicts_in_eval_mode(predictor):
    assert not predictor.generator.training
    source = np.random.default_rng(0).normal(size=(16, 16, 4)).astype(np.float32)
    assert np.array_equal(predictor(source, quiet=True), predictor(source, quiet=True))


def test_weights_that_do_not_fit_are_refused(checkpoint, tmp_path, refused):
    good = load_checkpoint(checkpoint)
    for learners in ({}, {"generator": {"network": {}}}):
        path = tmp_path / "bad.pt"
        broken = Checkpoint(good.config, good.data, good.position, learners, [], {})
        save_checkpoint(path, broken)
        with refused(path, "do not fit the configuration", "another"):
            load_predictor(path, "cpu")


def test_a_checkpoint_predicts_without_its_run(checkpoint, tmp_path, specimen, predictor):
    run_dir = checkpoint.parents[1]
    assert checkpoint == run_dir / BEST
    assert load_predictor(run_dir, "cpu").checkpoint.position == predictor.checkpoint.position
    copy = tmp_path / "elsewhere.pt"
    copy.write_bytes(checkpoint.read_bytes())
    alone = predicted(load_predictor(copy, "cpu"), specimen.source, tmp_path)
    again = predicted(predictor, specimen.source, tmp_path, overwrite=True)
    assert np.array_equal(alone.data, again.data)


def test_error_is_a_data_error_for_a_damaged_source(predictor, tmp_path):
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad\.nii\.gz"):
        predict_file(predictor, path, tmp_path / "out.nii.gz")


# Grids and sources that nobody can mean


def test_a_grid_far_from_its_source_is_refused(predictor, tmp_path, refused):
    source, target = simulated(tmp_path, (40, 36, 32))
    grid = read_volume(target)
    far = grid.affine.copy()
    far[0, 3] += 500
    write_volume(tmp_path / "far.nii.gz", Volume(grid.data, far))
    with refused(tmp_path / "far.nii.gz", "must overlap: the source covers 0%", "affines"):
        options = FileOptions(like=tmp_path / "far.nii.gz")
        predict_file(predictor, source, tmp_path / "out.nii.gz", options)
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_grid_that_is_too_large_is_stated_and_refused_before_it_is_made(
    predictor, tmp_path, refused
):
    """A head at 1 mm through a model of 0.2 mm."""
    data = np.random.default_rng(0).uniform(1, 100, (239, 290, 267)).astype(np.float32)
    write_volume(tmp_path / "head.nii", Volume(data, np.eye(4)))
    rule = "the grid would have 1193x1448x1333 voxels of 0.2x0.2x0.2 mm, 2.3e.09 in all"
    with refused(tmp_path / "head.nii", rule, "--max-voxels"):
        predict_file(predictor, tmp_path / "head.nii", tmp_path / "out.nii.gz")
    source, _ = simulated(tmp_path, (40, 36, 32))
    with refused(source, "40x36x32 voxels", "--max-voxels"):
        options = FileOptions(scan=ScanOptions(max_voxels=46_000))
        predict_file(predictor, source, tmp_path / "out.nii.gz", options)


def test_a_source_that_shows_only_its_outline_is_refused(predictor, tmp_path, refused):
    data = np.zeros((24, 22, 20), np.float32)
    data[6:18, 6:16, 5:15] = 400
    data[8, 8, 8] = 400.2
    write_volume(tmp_path / "s.nii.gz", Volume(data, np.diag([0.4, 0.4, 0.4, 1.0])))
    with refused(tmp_path / "s.nii.gz", "nearly constant within its foreground", "export"):
        predict_file(predictor, tmp_path / "s.nii.gz", tmp_path / "out.nii.gz")


@pytest.mark.parametrize("orientation", ["RAS", "LPI"])
def test_a_source_without_orientation_is_refused_or_predicted_in_its_own_array(
    shard_folder, tmp_path, refused, orientation
):
    predictor = identity_predictor(tmp_path, shard_folder, orientation)
    source, _ = simulated(tmp_path, (40, 36, 32))
    image = nib.load(source)
    image.set_qform(image.affine, 0)
    image.set_sform(image.affine, 0)
    nib.save(image, source)
    with refused(source, "no orientation", "orientation array"):
        predict_file(predictor, source, tmp_path / "out.nii.gz")
    predict_file(predictor, source, tmp_path / "out.nii.gz", FileOptions(orientation="array"))
    written = nib.load(tmp_path / "out.nii.gz")
    assert codes_of(written.header) == (0, 0)
    found, given = np.asarray(written.dataobj), np.asarray(image.dataobj)
    assert found.shape == (40, 36, 32)
    step = [slice(1, None, 2) if code in "LPI" else slice(0, None, 2) for code in orientation]
    assert np.corrcoef(found[tuple(step)].ravel(), given.ravel())[0, 1] > 0.95
