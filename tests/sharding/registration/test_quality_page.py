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

from sharding.registration.quality import PairQuality, SpecimenQuality
from sharding.registration.quality_page import COLUMNS, picture_words, quality_page
from sharding.registration.quality_pictures import EDGE_COLOUR, _slice_pictures, pair_pictures
from sharding.simulation.phantom import phantom_volume

NASTY = "<script>alert('x')</script>"
SHAPE = (40, 36, 32)
SPACING = (0.2, 0.2, 0.2)
BEFORE = PairQuality(0.312, 0.413, 0.814)
AFTER = PairQuality(0.515, 0.616, 0.917)
ROW = SpecimenQuality("sub-1", BEFORE, AFTER, 0.81, 1.19, 0.987, 0.432, 0.021, 0.011)


@pytest.fixture(scope="module")
def target():
    return phantom_volume(SHAPE, seed=1).data.clip(0, 1000)


@pytest.fixture(scope="module")
def picture(target):
    return pair_pictures(np.roll(target, 3, 0), target, target, SPACING)


@pytest.fixture
def page(picture):
    other = replace(ROW, name="sub-2")
    return quality_page(
        [ROW, other],
        {"sub-2": [f"noise {NASTY}"]},
        {"sub-3": f"sub-3.nii.gz: {NASTY}"},
        {"sub-1": picture, "sub-2": picture},
        {"Steps": f"correct, {NASTY}"},
    )


def size(png):
    return Image.open(io.BytesIO(png)).size


def test_the_page_tells_failures_first_then_everything(page):
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Failed",
        "What stands out",
        "Measures",
        "sub-1",
        "sub-2",
        "What was done",
    ]
    assert "3 specimens: 2 prepared, 1 failed, 1 stand out." in page
    # A wide table continues in a second one, below the first.
    parts = re.findall("<tr>(.*?)</tr>", page)
    assert len(parts) == 6
    lines = [first + second for first, second in zip(parts[:3], parts[3:], strict=True)]
    assert all(title in lines[0] for title, _ in COLUMNS)
    cells = re.findall("<td[^>]*>(.*?)</td>", lines[1])
    assert cells == [
        "-", "0.312", "0.515", "0.413", "0.616", "0.814", "0.917",
        "headers", "0.81 to 1.19", "98.7%", "43.2%", "2.10%", "1.10%",
    ]  # fmt: skip
    assert "stands out" in lines[2], "a flag is a word, not a colour"
    assert len(cells) == len(COLUMNS) + 1


def test_the_page_needs_nothing_from_outside_and_all_text_is_escaped(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert not re.search(r"https?:|@import|url\(|<link|<iframe", page)
    assert page.count('src="data:image/png;base64,') == page.count("<img ") == 2


def test_pictures_have_words(page):
    told = re.findall('alt="(.*?)"', page)
    assert "Mutual information 0.312 before, 0.515 after" in told[0]
    assert "Nothing stands out" in told[0]
    assert "Stands out: noise" in told[1]
    assert "Stands out: a; b." in picture_words(ROW, ["a", "b"])


def test_a_cohort_in_which_all_failed_has_a_page():
    page = quality_page([], {}, {"a": "no source"}, {}, {})
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
