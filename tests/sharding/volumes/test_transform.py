"""Transforms: there and back, in memory and on the disk, as other tools read them."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from benchmarks.motion import Motion, landmarks, random_motion
from sharding.registration.simpleitk import image
from sharding.simulation.phantom import phantom_volume
from sharding.volumes import transform as transform_module
from sharding.volumes.resample import resample
from sharding.volumes.transform import AFFINE_FILE, WARP_FILE, Transform, is_orthogonal
from sharding.volumes.volume import Volume, write_volume

MOTION = Motion(0.8, 0.12, 10, 0.6, 0.05, seed=7)


@pytest.fixture(scope="module")
def volume():
    return phantom_volume((40, 36, 32), seed=5)


@pytest.fixture(scope="module")
def motion(volume):
    return random_motion(volume, MOTION)


def test_points_come_back(volume, motion):
    points, moved = landmarks(volume, volume.data > 0, motion, 200)
    np.testing.assert_allclose(motion.points(moved), points, atol=1e-4)
    assert np.linalg.norm(moved - points, axis=1).mean() > 0.5


def test_identity_moves_nothing(volume):
    data, inside = Transform.identity().apply(volume, volume.shape, volume.affine)
    np.testing.assert_array_equal(data, volume.data)
    assert inside.all()


def test_an_affine_map_samples_as_resample_does(volume):
    shifted = volume.affine.copy()
    shifted[:3, 3] += 0.07
    data, _ = Transform.identity().apply(volume, volume.shape, shifted)
    expected = resample(volume, volume.shape, shifted, order=3)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(data[inner], expected[inner], atol=2)


def test_slabs_do_not_show(volume, motion, monkeypatch):
    whole, inside = motion.apply(volume, volume.shape, volume.affine)
    monkeypatch.setattr(transform_module, "SLAB_POINTS", 3 * 36 * 32)
    slabs, inside_too = motion.apply(volume, volume.shape, volume.affine)
    np.testing.assert_array_equal(whole, slabs)
    np.testing.assert_array_equal(inside, inside_too)


def test_a_volume_is_carried_back(volume, motion):
    smooth = volume.with_data(transform_module.ndimage.gaussian_filter(volume.data, 1.5))
    moved, _ = motion.apply(smooth, volume.shape, volume.affine)
    back, inside = motion.apply_inverse(smooth.with_data(moved), volume.shape, volume.affine)
    inner = np.zeros(volume.shape, bool)
    inner[8:-8, 8:-8, 8:-8] = True
    assert np.abs(back - smooth.data)[inner & inside].mean() < 0.01 * smooth.data.max()


def test_the_jacobian_is_the_change_of_volume():
    affine = np.diag([2.0, 1, 1, 1])
    assert Transform(affine).jacobian() == pytest.approx(2)
    grid = np.indices((6, 6, 6)).transpose(1, 2, 3, 0).astype(np.float32)
    stretched = Transform(np.eye(4), 0.5 * grid, np.eye(4))
    np.testing.assert_allclose(stretched.jacobian(), 1.5**3, rtol=1e-5)
    folded = Transform(np.eye(4), -2 * grid, np.eye(4))
    assert folded.jacobian().max() < 0


def test_files_round_trip(motion, tmp_path):
    motion.save(tmp_path)
    found = Transform.load(tmp_path)
    np.testing.assert_allclose(found.affine, motion.affine, atol=1e-12)
    np.testing.assert_array_equal(found.field, motion.field)
    np.testing.assert_allclose(found.field_affine, motion.field_affine, atol=1e-6)
    Transform(motion.affine).save(tmp_path)
    assert Transform.load(tmp_path).field is None


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PIR"])
def test_simpleitk_reads_the_files_and_does_the_same(volume, motion, orientation, tmp_path):
    """Oblique and of either handedness; composed as ANTs does: the warp first, then the affine."""
    turned = random_motion(volume, Motion(0, 0.12, 20, 0.3, seed=9)).affine
    source = Volume(volume.data, turned @ volume.affine).reoriented(orientation)
    whole = Transform(turned @ motion.affine, motion.field, motion.field_affine)
    whole.save(tmp_path)
    for name, each in (("source", source), ("target", volume)):
        write_volume(tmp_path / f"{name}.nii.gz", each)
    warp = sitk.ReadImage(str(tmp_path / WARP_FILE), sitk.sitkVectorFloat64)
    composed = sitk.CompositeTransform(
        [
            sitk.ReadTransform(str(tmp_path / AFFINE_FILE)),
            sitk.DisplacementFieldTransform(warp),
        ]
    )
    source_image, grid = (
        sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("source", "target")
    )
    theirs = sitk.GetArrayFromImage(sitk.Resample(source_image, grid, composed, sitk.sitkLinear)).T
    ours, inside = whole.apply(source, volume.shape, volume.affine, order=1)
    inner = np.zeros(volume.shape, bool)
    inner[6:-6, 6:-6, 6:-6] = True
    np.testing.assert_allclose(ours[inner & inside], theirs[inner & inside], atol=0.5)


def test_the_field_of_view_is_told(volume):
    shift = np.eye(4)
    shift[0, 3] = 10 * 0.2
    _, inside = Transform(shift).apply(volume, volume.shape, volume.affine)
    assert inside[:30].all()
    assert not inside[31:].any()


def damage(path, kind):
    if kind == "missing":
        path.unlink()
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.write_bytes(b"nonsense")


@pytest.mark.parametrize("name", [AFFINE_FILE, WARP_FILE])
@pytest.mark.parametrize("kind", ["cut short", "nonsense"])
def test_damaged_files_are_refused(motion, tmp_path, refused, name, kind):
    motion.save(tmp_path)
    damage(tmp_path / name, kind)
    if (name, kind) == (AFFINE_FILE, "cut short"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.partition("FixedParameters")[0])
    with refused(tmp_path / name, ".", "Register again"):
        Transform.load(tmp_path)


def test_a_missing_affine_is_refused(tmp_path, refused):
    with refused(tmp_path / AFFINE_FILE, "not a readable", "Register again"):
        Transform.load(tmp_path)


def test_a_flipped_bit_of_the_warp_is_refused(motion, tmp_path, refused):
    motion.save(tmp_path)
    path = tmp_path / WARP_FILE
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # within the checksum
    path.write_bytes(bytes(content))
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(path.read_bytes())
    with refused(path, "not a readable", "Register again"):
        Transform.load(tmp_path)


def test_a_warp_of_gigabytes_in_a_small_file_is_refused(motion, tmp_path, refused):
    motion.save(tmp_path)
    path = tmp_path / WARP_FILE
    header = nib.load(path).header.copy()
    header.set_data_shape((1024, 1024, 512, 1, 3))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + bytes(8_000_000))
    with refused(path, "would unpack to", "unpack it"):
        Transform.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((np.eye(3),), "4 x 4"),
        ((np.zeros((4, 4)),), "4 x 4"),
        ((np.diag([1.0, 1, 0, 1]),), "invertible"),
        ((np.eye(4), np.zeros((2, 2, 2, 3), np.float32)), "both be given"),
        ((np.eye(4), np.zeros((2, 2, 2), np.float32), np.eye(4)), "shape"),
        ((np.eye(4), np.full((2, 2, 2, 3), np.nan, np.float32), np.eye(4)), "finite"),
    ],
)
def test_what_is_no_transform_is_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        Transform(*arguments)


@pytest.mark.parametrize("seed", range(20))
def test_an_oblique_header_rounded_to_four_decimals_is_orthogonal(seed):
    rotation = Rotation.random(random_state=seed).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = (rotation * 0.1).round(4)
    assert is_orthogonal(affine)
    volume = Volume(np.zeros((4, 4, 4), np.float32), affine)
    direction = np.array(image(volume).GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
    affine[0, 1] += 0.01
    assert not is_orthogonal(affine)
