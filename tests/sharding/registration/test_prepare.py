"""Preparing a cohort: aligned, recorded, resumable; bad specimens stand apart, nothing leaks."""

from __future__ import annotations

import getpass
import gzip
import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cheap_preparation import CHEAP, prepare_two
from killing import FileMoment, Stop
from nibabel.affines import apply_affine
from prepared_folders import contents, inodes, mask_of, prepared, redone
from scipy.spatial.transform import Rotation
from tiny_runs import start

from sharding.registration.carry_back import carry_back
from sharding.registration.config import STEPS
from sharding.registration.prepare import prepare_cohort
from sharding.registration.step_cache import read_record
from sharding.volumes.cohort import Specimen, read_cohort, write_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.pair import prepare_pair
from sharding.volumes.resample import resample
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """Two of the phantoms prepared by all steps: (folder, preparation). Do not write into it."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, prepare_cohort(read_cohort(raw)[:2], out, CHEAP, workers=1)


# What comes out


def test_every_pair_lies_on_the_targets_grid_in_the_common_scale(raw, whole):
    out, preparation = whole
    assert preparation.failures == {}
    cohort = read_cohort(out)
    assert [specimen.name for specimen in cohort] == ["phantom-00", "phantom-01"]
    for specimen, given in zip(cohort, read_cohort(raw), strict=False):
        original = read_volume(given.target)
        mask = read_volume(specimen.mask, constant=True).data
        assert set(np.unique(mask)) == {0, 1}
        for path in (specimen.source, specimen.target):
            volume = read_volume(path)
            assert volume.shape == original.shape
            np.testing.assert_allclose(volume.affine, original.affine, atol=1e-6)
            assert (volume.data.min(), volume.data.max()) == (0, 1000)
        pair = prepare_pair(specimen, PreprocessConfig())
        np.testing.assert_array_equal(pair.mask, mask > 0)


def test_registration_aligns_what_the_headers_do_not(whole):
    for row in whole[1].rows:
        assert row.after.mutual_information > 1.2 * row.before.mutual_information
        assert row.after.overlap > row.before.overlap
        assert 0.2 < row.jacobian_min <= row.jacobian_max < 3
        assert row.coverage > 0.9
        assert 0.1 < row.foreground < 0.6
        assert 0 < row.noise_source < 0.1


def test_each_step_records_what_it_did(raw, whole):
    out, _ = whole
    folder = out / "phantom-00"
    keys = {}
    for count, name in enumerate(STEPS, start=1):
        record = read_record(folder / name)
        assert record is not None
        assert record.order == STEPS[:count]
        assert record.tools
        assert all(record.tools.values())
        assert set(record.files) == {path.name for path in (folder / name).iterdir()} - {
            "step.json"
        }
        keys[name] = record.key
    records = {name: read_record(folder / name) for name in STEPS}
    assert set(records["correct"].inputs) == {"source", "target"}
    assert records["scale"].inputs == {"correct": keys["correct"]}
    assert records["rigid"].inputs == {"scale": keys["scale"]}
    assert records["affine"].inputs == {"scale": keys["scale"], "rigid": keys["rigid"]}
    assert records["deform"].inputs == {"scale": keys["scale"], "affine": keys["affine"]}
    assert records["resample"].inputs["deform"] == keys["deform"]
    assert records["scale"].parameters["clip_percentiles"] == [0.1, 99.9]
    low, high = (records["scale"].measured["target"][name] for name in ("low", "high"))
    corrected = read_volume(folder / "correct" / "target.nii.gz").data
    assert (low, high) == pytest.approx(tuple(np.percentile(corrected, (0.1, 99.9))))
    given = read_volume(read_cohort(raw)[0].source)
    assert records["resample"].measured["source_grid"]["shape"] == list(given.shape)


def test_the_cohorts_files_tell_the_same(whole):
    out, preparation = whole
    told = json.loads((out / "quality.json").read_text())
    assert [row["name"] for row in told["specimens"]] == [row.name for row in preparation.rows]
    first = preparation.rows[0]
    assert told["specimens"][0]["after"]["overlap"] == first.after.overlap
    assert told["specimens"][0]["steps"].keys() == set(STEPS)
    assert told["config"]["steps"] == list(STEPS)
    assert told["versions"]["SimpleITK"] and told["versions"]["picsl_greedy"]
    assert (told["flags"], told["failures"]) == (preparation.flags, {})
    page = (out / "quality.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    for name in ("picture.png", "bias.png"):
        assert (out / "phantom-01" / name).read_bytes().startswith(b"\x89PNG")


def test_splits_are_handed_on(one, tmp_path):
    result = prepared([replace(one, split="val")], tmp_path / "out")
    assert result.specimens[0].split == "val"
    assert read_cohort(tmp_path / "out")[0].split == "val"


def test_nothing_of_the_headers_text_or_this_machine_is_written(copy, tmp_path):
    secret = b"SECRET"
    for path in copy.glob("*.nii.gz"):
        image = nib.load(path)
        for name in ("descrip", "aux_file", "db_name", "intent_name"):
            image.header[name] = secret
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", secret))
        nib.save(image, path)
    bad = copy / "phantom-01_target.nii.gz"
    bad.write_bytes(bad.read_bytes()[:-200])
    assert secret in gzip.decompress((copy / "phantom-00_target.nii.gz").read_bytes())
    out = tmp_path / "out"
    result = prepared(read_cohort(copy)[:2], out, CHEAP)
    assert list(result.failures) == ["phantom-01"]
    machine = [platform.node().encode(), str(tmp_path).encode(), getpass.getuser().encode() + b"/"]
    for name, content in contents(out).items():
        plain = gzip.decompress(content) if name.endswith(".gz") else content
        assert secret not in plain, name
        assert not any(word in plain for word in machine if len(word) > 3), name


# Doing only what is not done


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"affine_iterations": 20}, {"rigid", "affine", "deform", "resample"}),
        ({"seed": 1}, {"rigid", "affine", "deform", "resample"}),
        ({"deform_iterations": (5,)}, {"deform", "resample"}),
        ({"field_smoothing": 0.6}, {"deform", "resample"}),
    ],
)
def test_each_registration_has_its_own_parameters(raw, whole, tmp_path, change, steps):
    out = Path(shutil.copytree(whole[0], tmp_path / "out"))
    before = inodes(out)
    changed = replace(CHEAP, register=replace(CHEAP.register, **change))
    prepared(read_cohort(raw)[:1], out, changed)
    assert redone(before, inodes(out)) == {f"phantom-00/{step}" for step in steps}


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(raw, whole, tmp_path):
    out = tmp_path / "out"
    for number, moment in enumerate(
        (
            FileMoment("*/.scale.partial-*/new/source.nii.gz", "rename", torn=True),
            FileMoment("*/phantom-00/.resample.partial-*", "mkdir"),
            FileMoment("*/phantom-01/resample", "rename"),
        )
    ):
        notes = tmp_path / f"notes-{number}"
        notes.mkdir()
        stop = Stop(moment, notes)
        log = tmp_path / "log"
        process = start(prepare_two, raw, out, environment=stop.environment, log=log)
        stop.wait(process)
        process.kill()
        process.join()
        assert not (out / "cohort.csv").exists()
        assert not (out / "quality.json").exists()
    done = {name: inode for name, inode in inodes(out).items() if "/." not in name}
    assert {"phantom-00/scale", "phantom-00/deform", "phantom-01/deform"} <= set(done)
    assert prepared(read_cohort(raw)[:2], out, CHEAP).failures == {}
    assert not redone(done, {name: inodes(out)[name] for name in done})
    assert contents(out) == contents(whole[0])
    hidden = {path.name for path in out.rglob(".*")}
    assert hidden == set()


def test_processes_make_no_difference(raw, tmp_path):
    prepared(read_cohort(raw), tmp_path / "one")
    prepared(read_cohort(raw), tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


# One writer, one folder


# Bad input


# Geometry


def test_left_handed_and_oblique_sources_are_prepared_alike(one, tmp_path):
    expected = read_volume(prepared([one], tmp_path / "plain").specimens[0].source)
    source = read_volume(one.source)
    mask = read_volume(tmp_path / "plain" / one.name / "resample" / "mask.nii.gz").data > 0

    turned = source.reoriented("LAS")
    assert np.linalg.det(turned.affine) * np.linalg.det(source.affine) < 0
    write_volume(one.source, turned)
    found = read_volume(prepared([one], tmp_path / "turned").specimens[0].source)
    np.testing.assert_allclose(found.data, expected.data, atol=0.5)

    # The same scan, as if taken obliquely: on a turned grid about the same centre.
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -15, 10), degrees=True).as_matrix() * 0.25
    centre = source.affine @ [*((np.array(source.shape) - 1) / 2), 1]
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ [31.5, 31.5, 31.5]
    write_volume(one.source, Volume(resample(source, (64, 64, 64), affine, 3), affine))
    found = read_volume(prepared([one], tmp_path / "oblique").specimens[0].source)
    inside = mask & (found.data > 0)
    assert np.corrcoef(found.data[inside], expected.data[inside])[0, 1] > 0.98


def test_a_left_handed_target_is_registered_to_as_well(copy, tmp_path):
    one = read_cohort(copy)[0]
    config = replace(CHEAP, steps=("scale", "affine", "resample"))
    plain = prepared([one], tmp_path / "plain", config).rows[0]
    write_volume(one.target, read_volume(one.target).reoriented("LAS"))
    turned = prepared([one], tmp_path / "turned", config)
    assert turned.rows[0].after.overlap == pytest.approx(plain.after.overlap, abs=0.02)
    assert read_volume(turned.specimens[0].source).orientation == "LAS"


def test_the_mask_given_is_used_and_cut_to_the_field_of_view(one, tmp_path):
    grid = read_volume(one.target)
    data = np.zeros(grid.shape)
    data[10:, 8:28, 8:24] = 7
    masked = replace(one, mask=mask_of(grid, one.target.parent, data))
    result = prepared([masked], tmp_path / "out")
    mask = read_volume(result.specimens[0].mask).data
    assert set(np.unique(mask)) == {0, 1}
    # The last fine voxel lies beyond the last coarse one.
    np.testing.assert_array_equal(mask[:39, :35, :31], (data > 0)[:39, :35, :31])
    assert result.rows[0].foreground == pytest.approx((data > 0).mean())
    # Another mask makes another result, of the steps that look at it.
    before = inodes(tmp_path / "out")
    mask_of(grid, one.target.parent, data * (np.indices(grid.shape)[0] < 30))
    prepared([masked], tmp_path / "out")
    assert redone(before, inodes(tmp_path / "out")) == {f"{one.name}/resample"}


# Steps


def test_without_resampling_the_source_keeps_its_grid(one, tmp_path):
    result = prepared([one], tmp_path / "out", replace(CHEAP, steps=("scale",)))
    source, original = read_volume(result.specimens[0].source), read_volume(one.source)
    assert source.shape == original.shape
    assert source.data.max() == 1000
    assert result.specimens[0].mask is None
    assert result.rows[0].before == result.rows[0].after
    assert (result.rows[0].jacobian_min, result.rows[0].jacobian_max) == (1, 1)


def test_without_scaling_intensities_stay_in_the_files_units(one, tmp_path):
    result = prepared([one], tmp_path / "out", replace(CHEAP, steps=("resample",)))
    original = read_volume(one.source).data
    found = read_volume(result.specimens[0].source).data
    assert (found.min(), found.max()) == pytest.approx((original.min(), original.max()))
    assert result.specimens[0].target == one.target.resolve()
    rows = [prepared([one], tmp_path / "scaled").rows[0], result.rows[0]]
    assert rows[0].after.correlation == pytest.approx(rows[1].after.correlation, abs=0.01)


def test_a_deformation_may_start_from_the_headers(one, tmp_path):
    config = replace(CHEAP, steps=("scale", "deform", "resample"))
    row = prepared([one], tmp_path / "out", config).rows[0]
    assert row.after.mutual_information > row.before.mutual_information
    transform = Transform.load(tmp_path / "out" / one.name / "deform")
    np.testing.assert_array_equal(transform.affine, np.eye(4))
    assert transform.field is not None


# Back to the scanner


def spot(points):
    """A smooth blob in the source's world, somewhat off the specimen's centre."""
    distance = ((points - np.array([4.2, 3.0, 3.4])) ** 2).sum(-1)
    return (1000 * np.exp(-distance / (2 * 1.2**2))).astype(np.float32)


def world(volume):
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    return apply_affine(volume.affine, index)


def test_a_volume_is_carried_back_to_the_sources_space(raw, whole, tmp_path):
    out, _ = whole
    folder, raw_source = out / "phantom-00", read_cohort(raw)[0].source
    transform, grid = Transform.load(folder / "deform"), read_volume(folder / "scale/target.nii.gz")
    moved = spot(transform.points(world(grid).reshape(-1, 3))).reshape(grid.shape)
    write_volume(tmp_path / "prediction.nii.gz", grid.with_data(moved))

    carry_back(folder, tmp_path / "prediction.nii.gz", tmp_path / "back.nii.gz", like=raw_source)
    found, source = read_volume(tmp_path / "back.nii.gz"), read_volume(raw_source)
    assert found.shape == source.shape
    np.testing.assert_allclose(found.affine, source.affine, atol=1e-6)
    expected = spot(world(source))
    inner = (slice(3, -3),) * 3
    error = np.abs(found.data - expected)[inner].max()
    # What blurs it is that the scanner's grid is coarser. By the headers alone it does not fit.
    assert error < 80
    unmoved = resample(grid.with_data(moved), source.shape, source.affine, 3)
    assert np.abs(unmoved - expected)[inner].max() > 2 * error


def test_it_is_carried_back_at_the_targets_spacing(raw, whole, tmp_path, refused):
    out, _ = whole
    folder = out / "phantom-00"
    back = tmp_path / "back.nii.gz"
    carry_back(folder, folder / "scale" / "target.nii.gz", back)
    found, source = read_volume(back), read_volume(read_cohort(raw)[0].source)
    assert found.spacing_mm == pytest.approx((0.2, 0.2, 0.2))
    assert found.shape == tuple(2 * size for size in source.shape)
    first = found.affine @ [0.5, 0.5, 0.5, 1]
    np.testing.assert_allclose(first, source.affine @ [0, 0, 0, 1], atol=1e-6)
    with refused("back.nii.gz", "exists already", "--overwrite"):
        carry_back(folder, folder / "scale" / "target.nii.gz", back)
    carry_back(folder, folder / "scale" / "target.nii.gz", back, overwrite=True)


def test_nothing_is_carried_back_by_another_transform(whole, tmp_path, refused):
    out = Path(shutil.copytree(whole[0], tmp_path / "out"))
    volume = out / "phantom-00" / "scale" / "target.nii.gz"
    with refused(out, "no finished step resample", "specimen's folder"):
        carry_back(out, volume, tmp_path / "back.nii.gz")
    record = out / "phantom-00" / "deform" / "step.json"
    record.write_text(record.read_text().replace(read_record(record.parent).key, "0" * 64))
    with refused("phantom-00", "deform is not the one", "again"):
        carry_back(out / "phantom-00", volume, tmp_path / "back.nii.gz")


def test_prepared_cohorts_are_read_where_they_are_moved(one, tmp_path):
    out = tmp_path / "out"
    prepared([one], out)
    moved = out.rename(tmp_path / "moved")
    found = read_cohort(moved)[0]
    assert found.target.is_file()
    write_cohort(moved / "again.csv", [Specimen("a", found.target, found.source)])
