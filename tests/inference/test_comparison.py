"""What is said of scans that are unlike training, and which are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scans import cropped, enlarged, exchanged, noisy, padded, scan, thick_slices

from distsynth.inference.comparison import (
    COARSER,
    CONTRAST,
    EXCHANGED,
    EXTENT,
    FINER,
    NOISE,
    SHARE,
    SKEWNESS,
    Comparison,
    compare,
)
from sharding.io.errors import DataError
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.profile import TrainingProfile, profile_scan

MODES = ("standardise", "percentile", "foreground", "landmarks")


@pytest.fixture(scope="module")
def training():
    return TrainingProfile.of([profile_scan(scan(seed)) for seed in (11, 12, 13, 14)])


@pytest.fixture(scope="module")
def other():
    """A scan of the same kind that was not among them."""
    return scan(21)


def compared(volume, training, mode="standardise"):
    return compare(profile_scan(volume), training, mode)


def found(volume, training, mode="standardise"):
    """What differs -> whether it is refused."""
    return {each.what: each.refused for each in compared(volume, training, mode).differences}


def test_a_scan_of_the_same_kind_is_like_training(training, other):
    outcome = compared(other, training)
    assert outcome.differences == ()
    assert outcome.line == (
        "like the 4 training scans in voxel size, extent of tissue, contrast and noise"
    )
    outcome.check("scan")


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "IPL"])
def test_another_orientation_of_the_array_is_no_difference(orientation, training, other):
    assert found(other.reoriented(orientation), training) == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("factor", "offset"), [(4095, 0), (1e-4, 0), (100, 1000)])
def test_other_units_of_intensity_are_no_difference(mode, factor, offset, training, other):
    changed = other.with_data(other.data * factor + offset)
    assert found(changed, training, mode) == {}


def test_slices_somewhat_thicker_are_named_with_their_numbers(training, other):
    outcome = compared(thick_slices(other, 2), training)
    (difference,) = (each for each in outcome.differences if each.what == "voxel size")
    assert difference.words == (
        "slices of 0.8 mm (inferior-superior) where training had 0.4 mm: detail across slices "
        "cannot be restored"
    )
    assert not difference.refused
    outcome.check("scan")


def test_slices_much_thicker_are_refused(training, other, refused):
    outcome = compared(thick_slices(other, 4), training)
    with refused(
        "scan.nii", r"unlike the 4 training scans: slices of 1\.6 mm .* 0\.4 mm", "--force"
    ):
        outcome.check("scan.nii")


@pytest.mark.parametrize(
    ("times", "outcome"),
    [
        (0.99 * COARSER[0], {}),
        (1.01 * COARSER[0], {"voxel size": False}),
        (1.01 * COARSER[1], {"voxel size": True, "extent": False}),
        (1.3 * EXTENT[1], {"voxel size": True, "extent": True}),
    ],
)
def test_the_thresholds_of_larger_voxels(times, outcome, training, other):
    assert found(enlarged(other, times), training) == outcome


def test_voxels_along_all_axes_are_named_once(training, other):
    line = compared(enlarged(other, 1.5), training).line
    assert line.count("voxels of 0.6 mm where training had 0.4 mm: detail cannot be restored") == 1
    assert "left-right) where training had 0.4" not in line


def test_finer_voxels_are_named_and_not_refused(training, other):
    line = compared(enlarged(other, 0.5), training).line
    assert "voxels of 0.2 mm where training had 0.4 mm: the network never saw" in line
    assert not any(found(enlarged(other, 0.5), training).values())


def test_a_cropped_field_of_view(training, other):
    assert found(cropped(other, 0.5), training)["extent"] is False
    words = compared(cropped(other, 0.5), training).line
    assert "(inferior-superior) where training had" in words
    assert found(cropped(other, 0.18), training)["extent"] is True


def test_more_background_matters_only_where_all_voxels_count(training, other):
    wide = padded(other, 16)
    assert found(wide, training) == {"share of tissue": True}
    assert "are tissue where training had" in compared(wide, training).line
    for mode in MODES[1:]:
        assert found(wide, training, mode) == {}


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_exchanged_bright_and_dark_are_refused(seed, training):
    outcome = compared(exchanged(scan(seed)), training)
    (contrast,) = (each for each in outcome.differences if each.what == "contrast")
    assert contrast.refused
    assert contrast.words.startswith("bright and dark tissue are exchanged: ")


def test_a_volume_whose_intensities_are_all_exchanged_is_refused(training, other):
    with pytest.raises(DataError, match="unlike the 4 training scans"):
        compared(other.with_data(other.data.max() - other.data), training).check("scan")


def test_a_scan_without_tissue_is_refused(training, other):
    """A few bright voxels are no specimen, though not all voxels are equal."""
    data = np.full_like(other.data, 5)
    data[4, 4, 4] = 9
    outcome = compared(other.with_data(data), training, "percentile")
    assert "no tissue stands out from the background" in outcome.line
    with pytest.raises(DataError, match="no tissue stands out"):
        outcome.check("scan")


def test_another_contrast_is_named(training, other):
    curved = other.with_data(np.square(np.clip(other.data, 0, None)))
    outcome = found(curved, training)
    assert outcome["contrast"] is False


def test_noise(training, other):
    assert "noise" not in found(noisy(other, 0.02), training)
    assert found(noisy(other, 0.1), training)["noise"] is False
    assert found(noisy(other, 0.4), training).get("noise") is True


def test_what_is_known_of_the_preparation_is_compared(training, other):
    corrected = profile_scan(other, ("correct",))
    assert [each.what for each in compare(corrected, training).differences] == ["preparation"]
    prepared = TrainingProfile.of([profile_scan(scan(11), ("correct", "scale"))])
    outcome = compare(profile_scan(scan(11)), prepared)
    assert [each.words[:36] for each in outcome.differences] == [
        "training scans were bias corrected, "
    ]
    outcome.check("scan")
    assert compare(profile_scan(scan(11), ("correct",)), prepared).differences == ()


def test_a_model_that_does_not_tell_cannot_be_compared_with(other):
    outcome = compare(profile_scan(other), None)
    assert not outcome.known
    assert outcome == Comparison(0)
    assert "cannot be compared" in outcome.line
    outcome.check("scan")


def test_every_mode_of_intensities_is_tried_here():
    for mode in MODES:
        PreprocessConfig(intensities=mode)
    assert len(MODES) == 4


def test_the_documentation_states_the_thresholds():
    text = (Path(__file__).parents[2] / "docs" / "predicting.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]
    stated = {row[1].partition(":")[0].partition(",")[0]: row[2:4] for row in rows if len(row) == 5}
    times = {"extent of the foreground along an axis": EXTENT, "noise": NOISE}
    times["share of the voxels that are foreground"] = SHARE
    for what, (said, refused) in times.items():
        assert stated[what] == [f"{said:g} times", f"{refused:g} times"]
    over = next(row for row in rows if row[1:2] == ["voxel size: over the largest of training"])
    assert over[2:4] == [f"{COARSER[0]:g} times", f"{COARSER[1]:g} times"]
    under = next(row for row in rows if row[1:2] == ["voxel size: under the smallest of training"])
    assert under[2:4] == [f"{FINER:g} times", "never"]
    contrast, exchanged_from = stated["contrast"]
    assert contrast.startswith(f"{CONTRAST:g} ")
    assert f"below {EXCHANGED:g}:" in exchanged_from
    skewness = next(row for row in rows if row[1:2] and row[1].startswith("skewness"))
    assert skewness[2].startswith(f"{SKEWNESS:g} ")
