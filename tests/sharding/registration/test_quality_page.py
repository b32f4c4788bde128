"""The page: whole, escaped, nothing from outside; pictures that show what they should."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sharding.registration.bias_pictures import _cuts, bias_pictures
from sharding.registration.quality import PairQuality, RegistrationOutcome, SpecimenQuality
from sharding.registration.quality_page import (
    COLUMNS,
    falls_in_words,
    picture_words,
    quality_page,
    registration_table,
)
from sharding.registration.quality_pictures import (
    EDGE_COLOUR,
    _slice_pictures,
    pair_pictures,
    square_pixels,
)
from sharding.simulation.phantom import phantom_volume
from sharding.volumes.volume import Volume

NASTY = "<script>alert('x')</script>"
SHAPE = (40, 36, 32)
SPACING = (0.2, 0.2, 0.2)
BEFORE = PairQuality(0.312, 0.413, 0.814)
AFTER = PairQuality(0.515, 0.616, 0.917)
STEPS = (
    RegistrationOutcome("rigid", True, None, 0.5),
    RegistrationOutcome("affine", False, 0.5, 0.45),
    RegistrationOutcome("deform", False, 0.5, 0.502),
)
ROW = SpecimenQuality("sub-1", BEFORE, AFTER, 0.81, 1.19, 0.987, 0.432, 0.021, 0.011)


@pytest.fixture(scope="module")
def target():
    return phantom_volume(SHAPE, seed=1).data.clip(0, 1000)


@pytest.fixture(scope="module")
def picture(target):
    return pair_pictures(np.roll(target, 3, 0), target, target, SPACING)


@pytest.fixture(scope="module")
def field():
    """A factor that rises along the first axis."""
    return np.broadcast_to(np.linspace(0.7, 1.3, SHAPE[0])[:, None, None], SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def corrected(target, field):
    """Volumes before and after their correction: the source's field rises, the target has none."""
    volume = Volume(target, np.diag([0.2, 0.2, 0.2, 1]))
    return {"source": (volume.with_data(target * field), volume), "target": (volume, volume)}


@pytest.fixture(scope="module")
def correction(corrected):
    return bias_pictures(corrected)


@pytest.fixture
def page(picture, correction):
    other = replace(ROW, name="sub-2")
    return quality_page(
        [replace(ROW, registration=STEPS, kept=("rigid",)), other],
        {"sub-2": [f"noise {NASTY}"]},
        {"sub-3": f"sub-3.nii.gz: {NASTY}"},
        {"sub-1": picture, "sub-2": picture},
        {"sub-1": correction},
        {"Steps": f"correct, {NASTY}"},
    )


def below(after, before):
    return f'{after}<span class="interval">before {before}</span>'


def size(png):
    return Image.open(io.BytesIO(png)).size


def test_the_page_tells_failures_first_then_everything(page):
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Failed",
        "What stands out",
        "Measures",
        "Registration, step by step",
        "sub-1",
        "sub-2",
        "What was done",
    ]
    assert "3 specimens: 2 prepared, 1 failed, 1 stand out." in page
    lines = re.findall("<tr>(.*?)</tr>", page)
    assert all(title in lines[0] for title, _ in COLUMNS)
    cells = re.findall("<td[^>]*>(.*?)</td>", lines[1])
    assert cells == [
        "-", below("0.515", "0.312"), below("0.616", "0.413"), below("0.917", "0.814"),
        "rigid", "0.81 to 1.19", "98.7%", "43.2%", "2.10%", "1.10%",
    ]  # fmt: skip
    assert "stands out" in lines[2], "a flag is a word, not a colour"
    assert len(cells) == len(COLUMNS) + 1


def test_the_page_needs_nothing_from_outside_and_all_text_is_escaped(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert not re.search(r"https?:|@import|url\(|<link|<iframe", page)
    assert page.count('src="data:image/png;base64,') == page.count("<img ") == 3


def test_pictures_have_words(page):
    told = re.findall('alt="(.*?)"', page)
    assert "Mutual information 0.312 before, 0.515 after" in told[0]
    assert "Nothing stands out" in told[0]
    assert "source and target before and after, and the field" in told[1]
    assert "Stands out: noise" in told[2]
    assert "Stands out: a; b." in picture_words(ROW, ["a", "b"])


def test_every_fall_is_told_and_which_step_stands(page):
    section = page.partition("<h2>Registration, step by step</h2>")[2].partition("<h2>")[0]
    assert re.findall("<li>(.*?)</li>", section) == [
        "sub-1: affine lowered the mutual information from 0.500 to 0.450 (-10.0%) and was left out"
    ]
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t", row) for row in section.split("<tr>")[2:]]
    assert rows == [
        ["sub-1", "rigid", "-", "0.500", "-",
         "kept: too little was covered before it to compare; this is the alignment that stands"],
        ["sub-1", "affine", "0.500", "0.450", "<strong>-10.0%</strong>",
         "left out: the mutual information fell"],
        ["sub-1", "deform", "0.500", "0.502", "+0.4%",
         "left out: the mutual information rose by too little"],
    ]  # fmt: skip
    none = replace(ROW, registration=STEPS[1:])
    last = registration_table([none]).groups[0][1][-1][-1]
    assert last.text.endswith("; the headers' alignment stands")
    assert falls_in_words([replace(ROW, registration=STEPS[2:])]) == []


def test_the_field_of_the_bias_correction_is_what_was_divided_by(corrected, field):
    before, after, found = _cuts(*corrected["source"], 2)
    assert before.shape == after.shape == found.shape
    tissue = np.isfinite(found)
    assert 0.2 < tissue.mean() < 0.9
    expected = square_pixels(np.take(field, SHAPE[2] // 2, 2), 0.2, 0.2)
    # Both are interpolated to pixels, the one before and the other after the division.
    assert np.median(np.abs(found - expected)[tissue]) < 0.02
    *_, none = _cuts(*corrected["target"], 1)
    assert np.nanmax(np.abs(none - 1)) < 1e-6


def test_the_picture_of_the_bias_correction(correction, corrected):
    assert correction == bias_pictures(corrected)
    width, height = size(correction)
    assert width > 900 and height > 1200
    assert bias_pictures({"target": corrected["target"]}) != correction


def test_a_cohort_in_which_all_failed_has_a_page():
    page = quality_page([], {}, {"a": "no source"}, {}, {}, {})
    assert re.findall("<h2>(.*?)</h2>", page) == ["Failed", "What stands out", "What was done"]


def test_a_picture_is_large_and_the_same_each_time(picture, target):
    assert picture.startswith(b"\x89PNG")
    width, height = size(picture)
    assert width >= 1200
    assert height >= 900
    again = pair_pictures(np.roll(target, 3, 0), target, target, SPACING)
    assert again == picture
    assert pair_pictures(target, target, target, SPACING) != picture


def test_without_registration_there_is_one_state_to_show(picture, target):
    single = pair_pictures(target, None, target, SPACING)
    assert size(single)[0] < size(picture)[0]
    assert single != picture


def test_pictures_keep_the_physical_proportions(target):
    slab = target[:, :, ::4]
    one, *_ = _slice_pictures([slab], slab, (20, 18, 4), 1, (0.2, 0.2, 0.8))
    height, width = one.shape[:2]
    assert height / width == pytest.approx(32 / 40, rel=0.03)
    wide, *_ = _slice_pictures([target], target, (20, 18, 16), 2, (0.4, 0.2, 0.2))
    assert wide.shape[1] / wide.shape[0] == pytest.approx(2 * 40 / 36, rel=0.03)


def test_squares_alternate_and_edges_are_the_targets(target):
    source = np.full_like(target, 500)
    board, overlay = _slice_pictures([source], target, (20, 18, 16), 2, SPACING)
    grey = board[..., 0]
    assert board.shape == (72, 80, 3), "two pixels a voxel"
    assert np.ptp(grey[:9, :9]) == 0, "the first square is the source, which is constant"
    assert np.ptp(grey[32:40, 22:28]) > 0, "beside it the target"
    edges = np.isclose(overlay, EDGE_COLOUR).all(-1)
    assert 0.02 < edges.mean() < 0.2
    # The outline of the specimen is among them: the target is dark without and bright within.
    outside = np.take(target, 16, 2).T < 50
    rows, columns = np.nonzero(edges)
    near = [outside[max(r // 2 - 1, 0) : r // 2 + 2, max(c // 2 - 1, 0) : c // 2 + 2].any()
            for r, c in zip(rows, columns, strict=True)]  # fmt: skip
    assert np.mean(near) > 0.2
    # Drawn on the source, they leave the rest of it as it is.
    assert np.ptp(overlay[~edges]) == 0


def test_first_axis_points_right_and_second_up():
    target = np.zeros((40, 36, 32), np.float32)
    target[5:35, 5:31, 5:27] = 300
    target[30:35, 26:31, :] = 1000
    _, overlay = _slice_pictures([target], target, (20, 18, 16), 2, SPACING)
    grey = overlay.min(-1)
    assert grey[-20:, -20:].max() > 0.9 > grey[:20, :20].max()


def test_an_empty_target_still_has_a_picture():
    empty = np.zeros(SHAPE, np.float32)
    assert size(pair_pictures(empty, empty, empty, SPACING))[0] > 1000


def test_shapes_must_agree(target):
    with pytest.raises(ValueError, match="source after and target differ"):
        pair_pictures(target, target[1:], target, SPACING)


@pytest.mark.slow
def test_pyplot_is_not_imported():
    code = (
        "import sys, sharding.registration.quality_page, sharding.registration.quality_pictures; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'SimpleITK', 'matplotlib.pyplot')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
