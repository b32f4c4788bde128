"""Simulated sources: each effect alone is what the model says, everything is seeded."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_cohort, simulate_source
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.volume import Volume, read_volume, write_volume

NONE = {"gamma": 1.0, "bias": 0.0, "blur_voxels": 0.0, "factor": 1, "noise": 0.0}
AFFINE = np.array([[0, 0.4, 0, -4], [-0.2, 0, 0, 5], [0, 0, 0.5, 6], [0, 0, 0, 1.0]])
TARGET = Volume(np.random.default_rng(0).gamma(2, 100, (20, 18, 16)).astype(np.float32), AFFINE)
SCALED = IntensityTransform.fit(TARGET.data, (0.1, 99.9)).scale(TARGET.data)


def simulate(target=TARGET, name="a", **effects):
    return simulate_source(target, SimulationConfig(**{**NONE, **effects}), name)


def blob(centre, shape=(31, 29, 27), affine=None):
    """A smooth spot on a dark background."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    data = 1000 * np.exp(-((grid - centre) ** 2).sum(-1) / (2 * 1.5**2))
    return Volume(data.astype(np.float32), np.eye(4) if affine is None else affine)


def centre_of_mass(data):
    grid = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), -1)
    weight = np.where(data > 0.02, data, 0)[..., None]
    return (grid * weight).sum((0, 1, 2)) / weight.sum()


def test_without_any_effect_only_the_scale_changes():
    source, _ = simulate()
    np.testing.assert_array_equal(source.data, SCALED)
    np.testing.assert_array_equal(source.affine, AFFINE)
    assert source.data.dtype == np.float32


def test_each_specimen_has_its_own_contrast_and_blur_where_they_are_spread():
    changes = {"gamma": 1.4, "gamma_spread": 0.4, "blur_voxels": 0.8, "blur_spread": 0.3}
    config = SimulationConfig(**NONE | changes)
    drawn = []
    for name in ("a", "b", "c", "d"):
        source, applied = simulate_source(TARGET, config, name)
        blurred = ndimage.gaussian_filter(
            SCALED ** applied["gamma"], applied["blur_voxels"], mode="nearest"
        )
        np.testing.assert_allclose(source.data, blurred, atol=1e-5)
        drawn.append((applied["gamma"], applied["blur_voxels"]))
    assert len(set(drawn)) == 4
    assert all(1.0 <= gamma <= 1.8 and 0.5 <= blur <= 1.1 for gamma, blur in drawn)


def test_a_spread_changes_no_other_draw():
    same = {"bias": 0.3, "rotation_degrees": 2.0, "shift_mm": 1.0}
    plain = simulate(**same)[1]
    spread = simulate(**same, gamma_spread=0.3, blur_spread=0.0)[1]
    for name in ("bias_slopes", "rotation_degrees", "shift_mm"):
        assert spread[name] == plain[name]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"gamma": 0.5, "gamma_spread": 0.5}, "leave gamma at least 0.01"),
        ({"blur_voxels": 0.5, "blur_spread": 0.6}, "leave blur_voxels at least 0"),
    ],
)
def test_a_spread_that_leaves_the_limits_is_refused(changes, rule):
    with pytest.raises(ValueError, match=rule):
        SimulationConfig(**changes)


def test_gamma_alone():
    np.testing.assert_allclose(simulate(gamma=1.7)[0].data, SCALED**1.7, atol=1e-6)


def test_bias_alone_is_a_linear_field_with_the_slopes_told():
    source, applied = simulate(bias=0.3)
    slopes = np.array(applied["bias_slopes"])
    assert (np.abs(slopes) <= 0.3).all()
    assert (slopes != 0).all()
    x, y, z = (np.linspace(-1, 1, size) for size in TARGET.shape)
    field = 1 + slopes[0] * x[:, None, None] + slopes[1] * y[None, :, None] + slopes[2] * z
    np.testing.assert_allclose(source.data, SCALED * field, atol=1e-5)


def test_blur_alone_keeps_the_sum_and_has_the_width_asked_for():
    sharp = np.zeros((25, 25, 25), np.float32)
    sharp[11:14, 11:14, 11:14] = 1000
    source, _ = simulate(Volume(sharp, np.eye(4)), blur_voxels=2.0)
    line = source.data.sum((1, 2))
    position = np.arange(25) - 12
    assert line.sum() == pytest.approx(27, rel=1e-3)
    variance = (line * position**2).sum() / line.sum()
    assert variance == pytest.approx(2.0**2 + 2 / 3, rel=0.02)


@pytest.mark.parametrize("factor", [2, 3])
def test_downsampling_takes_voxels_and_multiplies_the_affine(factor):
    source, _ = simulate(factor=factor)
    np.testing.assert_array_equal(source.data, SCALED[::factor, ::factor, ::factor])
    assert source.spacing_mm == pytest.approx([factor * side for side in TARGET.spacing_mm])
    for index in ((0, 0, 0), (2, 1, 3)):
        old = AFFINE @ [*np.multiply(index, factor), 1]
        np.testing.assert_allclose(source.affine @ [*index, 1], old)


def test_noise_is_rician():
    data = np.zeros((60, 50, 40), np.float32)
    data[30:] = 100
    sigma = 0.05
    source, _ = simulate(Volume(data, np.eye(4)), noise=sigma)
    background, signal = source.data[:30], source.data[30:]
    assert background.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert background.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.01)
    assert background.min() >= 0
    assert signal.mean() == pytest.approx(1 + sigma**2 / 2, abs=1e-3)
    assert signal.std() == pytest.approx(sigma, rel=0.02)


def test_a_shift_moves_the_image_but_not_the_affine():
    affine = np.diag([0.5, 0.8, 1.0, 1])
    target = blob((15, 14, 13), affine=affine)
    source, applied = simulate(target, shift_mm=2.0)
    shift = np.array(applied["shift_mm"])
    assert (np.abs(shift) <= 2).all()
    assert applied["rotation_degrees"] == [0, 0, 0]
    np.testing.assert_array_equal(source.affine, affine)
    moved = (centre_of_mass(source.data) - centre_of_mass(target.data / 1000)) * [0.5, 0.8, 1.0]
    np.testing.assert_allclose(np.abs(moved), np.abs(shift), atol=0.05)
    assert np.linalg.norm(shift) > 0.3


def test_a_rotation_about_the_centre_keeps_distances_in_millimetres():
    spacing = np.array([0.5, 0.8, 1.0])
    affine = np.diag([*spacing, 1])
    centre = np.array([15, 14, 13])
    place = centre + np.array([6, 4, -3])
    source, applied = simulate(blob(place, affine=affine), rotation_degrees=25.0)
    found = centre_of_mass(source.data)
    distance = np.linalg.norm((found - centre) * spacing)
    assert distance == pytest.approx(np.linalg.norm((place - centre) * spacing), abs=0.1)
    assert np.linalg.norm(found - place) > 0.5
    assert (np.abs(applied["rotation_degrees"]) <= 25).all()
    assert applied["shift_mm"] == [0, 0, 0]


def test_the_seed_and_the_name_fix_every_draw():
    strong = {"bias": 0.2, "noise": 0.05, "rotation_degrees": 3.0, "shift_mm": 0.3}
    first, told = simulate(**strong)
    again, told_again = simulate(**strong)
    np.testing.assert_array_equal(first.data, again.data)
    assert told == told_again
    for other in ({"name": "b"}, {"seed": 1}):
        source, applied = simulate(**{**strong, **other})
        assert not np.array_equal(source.data, first.data)
        assert applied["bias_slopes"] != told["bias_slopes"]


@pytest.mark.parametrize("field", ["bias", "blur_voxels", "noise", "rotation_degrees", "shift_mm"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_negative_strengths_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be from 0 to \\d+, got {value}"):
        SimulationConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "rule"), [("gamma", "from 0.01 to 100"), ("factor", "from 1 to 100")]
)
def test_a_gamma_or_factor_of_zero_is_refused(field, rule):
    with pytest.raises(ValueError, match=f"{field} must be {rule}, got 0"):
        SimulationConfig(**{field: 0})


# Cohorts


def targets(folder, names=("b", "a", "c")):
    rows = []
    for index, name in enumerate(names):
        header = nib.Nifti1Header()
        header["descrip"] = b"Jane Doe"
        path = folder / f"{name}.nii"
        data = np.random.default_rng(index).gamma(2, 100, (10, 12, 8)).astype(np.float32)
        nib.save(nib.Nifti1Image(data, AFFINE, header), path)
        rows.append(Specimen(name, path, split="train"))
    return rows


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def cohort(tmp_path):
    (tmp_path / "in").mkdir()
    return targets(tmp_path / "in")


def test_a_cohort_gets_sources_sidecars_and_a_table(tmp_path, cohort):
    config = SimulationConfig(bias=0.1, seed=5)
    path = simulate_cohort(cohort, tmp_path / "out", config)
    assert path == tmp_path / "out" / "cohort.csv"
    names = [f"{name}_source.{kind}" for name in "abc" for kind in ("json", "nii.gz")]
    assert sorted(content(tmp_path / "out")) == [*names, "cohort.csv"]
    rows = read_cohort(path)
    assert [(row.name, row.split) for row in rows] == [(name, "train") for name in "abc"]
    for row in rows:
        target = read_volume(row.target)
        expected, applied = simulate_source(target, config, row.name)
        source = read_volume(row.source)
        np.testing.assert_array_equal(source.data, expected.data)
        np.testing.assert_allclose(source.affine, target.affine @ np.diag([2, 2, 2, 1]), atol=1e-6)
        told = json.loads(row.source.with_name(f"{row.name}_source.json").read_text())
        assert told == applied
        assert told["specimen"] == row.name
        assert SimulationConfig(**told["model"]) == config
        assert (np.abs(told["bias_slopes"]) <= 0.1).all()
    assert all(b"Jane" not in data for data in content(tmp_path / "out").values())


def test_the_order_of_specimens_does_not_matter(tmp_path, cohort):
    for out, rows in (("one", cohort), ("two", cohort[::-1])):
        simulate_cohort(rows, tmp_path / out, SimulationConfig())
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    for files in (one, two):
        files["cohort.csv"] = sorted(files["cohort.csv"].split(b"\n"))
    assert one == two


@pytest.mark.parametrize("existing", ["cohort.csv", "b_source.nii.gz"])
def test_nothing_is_overwritten_unless_told_to(tmp_path, cohort, refused, existing):
    out = tmp_path / "out"
    out.mkdir()
    (out / existing).write_text("mine")
    with refused(out / existing, "exists already", "Give --overwrite or another name"):
        simulate_cohort(cohort, out, SimulationConfig())
    assert content(out) == {existing: b"mine"}
    simulate_cohort(cohort, out, SimulationConfig(), overwrite=True)
    assert len(content(out)) == 7
    assert content(out)[existing] != b"mine"


def test_a_target_is_never_replaced_by_a_source(tmp_path, refused):
    path = tmp_path / "a_source.nii.gz"
    write_volume(path, TARGET)
    before = content(tmp_path)
    with refused(path, "would replace a target", "another folder"):
        simulate_cohort([Specimen("a", path)], tmp_path, SimulationConfig(), overwrite=True)
    assert content(tmp_path) == before


def test_a_bad_target_leaves_everything_as_it_was(tmp_path, cohort, refused):
    out = tmp_path / "out"
    simulate_cohort(cohort, out, SimulationConfig())
    before = content(out)
    cohort[1].target.unlink()
    for folder, expected in ((out, before), (tmp_path / "new", {})):
        with refused(cohort[1].target, "does not exist", "Check the path"):
            simulate_cohort(cohort, folder, SimulationConfig(seed=1), overwrite=True)
        assert content(folder) == expected
        assert len(list(folder.iterdir())) == len(expected)


def test_a_target_too_small_to_downsample_is_refused(tmp_path, cohort, refused):
    with refused("b.nii", r"too few voxels to downsample by 5: shape \(10, 12, 8\)", "Leave"):
        simulate_cohort(cohort, tmp_path / "out", SimulationConfig(factor=5))


def test_contrasts_have_a_gamma_a_name_and_noise_of_their_own(tmp_path):
    write_volume(tmp_path / "t.nii.gz", phantom_volume((24, 24, 24)))
    config = SimulationConfig(contrasts=("t1=1.4", "t2=0.6"), noise=0.02)
    path = simulate_cohort([Specimen("a", tmp_path / "t.nii.gz")], tmp_path / "out", config)
    (found,) = read_cohort(path)
    assert found.contrasts == ("t1", "t2")
    t1, t2 = (read_volume(file).data for file in found.sources)
    assert [file.name for file in found.sources] == [
        "a_source_t1.nii.gz",
        "a_source_t2.nii.gz",
    ]
    assert t2.mean() > 1.2 * t1.mean()
    alone, _ = simulate_source(
        read_volume(found.target), SimulationConfig(gamma=1.4, noise=0.02), "a t1"
    )
    np.testing.assert_allclose(t1, alone.data, atol=1e-6)
    record = json.loads((tmp_path / "out" / "a_source_t2.json").read_text(encoding="utf-8"))
    assert record["gamma"] == 0.6
    again = simulate_cohort([found], tmp_path / "one", SimulationConfig())
    assert read_cohort(again)[0].contrasts == ()


@pytest.mark.parametrize(
    ("contrasts", "rule"),
    [
        (("t1=1.4",), "two or more of different names"),
        (("t1=1.4", "t1=0.6"), "different names"),
        (("T1=1.4", "T2=0.6"), "small letters"),
        (("t1=1.4", "t2"), "must be NAME=GAMMA; t2"),
        (("t1=1.4", "t2=0"), "t2: gamma must be from 0.01"),
    ],
)
def test_contrasts_that_make_no_sense_are_refused(contrasts, rule):
    with pytest.raises(ValueError, match=rule):
        SimulationConfig(contrasts=contrasts)
