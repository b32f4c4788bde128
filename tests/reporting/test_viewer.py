"""Slices of a page: right pixels, one window, small enough, all text escaped."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from html_check import NASTY, checked
from PIL import Image
from report_pages import report_page

from distsynth.reporting.figures import comparison_figure
from distsynth.reporting.viewer import viewer_html
from distsynth.reporting.viewer_slices import (
    MARGIN,
    MOST_SLICES,
    STEP,
    STEPS,
    ZERO,
    Volumes,
    cut_slices,
    difference_palette,
    reduced,
)

SHAPE = (30, 40, 50)


def volumes(seed=0, shape=SHAPE, methods=("net",), name="sub-1", **changes):
    random = np.random.default_rng(seed)
    source, target, *made = random.normal(size=(2 + len(methods), *shape))
    mask = np.zeros(shape, bool)
    mask[5:-5, 5:-5, 5:-5] = True
    given = Volumes(name, source, target, dict(zip(methods, made, strict=True)), mask)
    return replace(given, **changes)


def pictures(html, pattern='src="data:image/png;base64,([^"]+)"'):
    found = re.findall(pattern, html)
    return [Image.open(io.BytesIO(base64.b64decode(data, validate=True))) for data in found]


def text_of(html):
    """Text of HTML that closes what it opens; an input closes itself."""
    return checked(re.sub("<input[^>]*>", "", html)).text


def sheet(html, kind):
    return pictures(html, f'data-kind="{kind}"[^>]*src="data:image/png;base64,([^"]+)"')


def test_slices_are_those_of_the_volume_seen_from_the_usual_side():
    given = volumes()
    cut = cut_slices(given)
    low, high = np.percentile(given.target[given.mask], [0.5, 99.5])
    assert cut.window == pytest.approx((low, high))
    inside = slice(5 - MARGIN, -5 + MARGIN)
    for axis, shown in enumerate(cut.axes):
        assert shown.name == "xyz"[axis]
        assert list(shown.indices) == sorted(set(shown.indices))
        assert shown.indices[0] >= 5
        assert shown.indices[-1] < SHAPE[axis] - 5
        assert len(shown.indices) == min(MOST_SLICES, SHAPE[axis] - 10)
        for name, volume in {"source": given.source, "target": given.target}.items():
            slices = np.moveaxis(volume, axis, 0)[list(shown.indices)][:, inside, inside]
            grey = np.rint(np.clip((slices - low) / (high - low), 0, 1) * 255)
            np.testing.assert_array_equal(getattr(shown, name), grey.transpose(0, 2, 1)[:, ::-1])


def test_differences_are_blue_above_the_target_and_red_below():
    given = volumes()
    target = given.target
    cut = cut_slices(replace(given, synthetic={"high": target + 1, "low": target - 1}))
    palette = difference_palette().astype(int)
    assert cut.limit == pytest.approx(1)
    red, _, blue = palette[np.unique(cut.axes[0].difference["high"])[0]]
    assert blue > red + 50
    red, _, blue = palette[np.unique(cut.axes[0].difference["low"])[0]]
    assert red > blue + 50
    same = cut_slices(replace(given, synthetic={"same": target}))
    assert (same.axes[2].difference["same"] == ZERO).all()
    assert palette[ZERO].min() > 240
    assert abs(palette[ZERO] - palette[ZERO - STEP * STEPS]).max() > 100


def test_voxels_that_are_not_square_keep_their_shape():
    cut = cut_slices(volumes(spacing_mm=(1.0, 2.0, 5.0)))
    width, height, depth = (
        (size - 10 + 2 * MARGIN) * mm for size, mm in zip(SHAPE, (1, 2, 5), strict=True)
    )
    assert cut.axes[2].ratio == pytest.approx(width / height)
    assert cut.axes[1].ratio == pytest.approx(width / depth)
    assert cut.axes[0].ratio == pytest.approx(height / depth)
    # Coarse voxels are not blown up, fine ones are averaged.
    small = reduced(cut.axes[1], 24, 64)
    assert small.target.shape[1:] == (48, round(64 * width / depth))
    assert small.ratio == cut.axes[1].ratio


def test_the_central_slice_stays_however_few_there_are():
    given = volumes()
    mask = given.mask
    assert mask is not None
    mask[:, :, :17] = mask[:, :, 18:] = False
    mask[12:15, 12:15, 6:40] = True
    axis = cut_slices(given).axes[2]
    for most in (24, 5, 1):
        few = reduced(axis, most, 256)
        assert len(few.indices) <= most
        assert few.indices[few.central] == 17


def test_axes_have_names_where_the_orientation_is_known():
    names = [axis.name for axis in cut_slices(volumes(orientation="RAS")).axes]
    assert names == ["x (sagittal)", "y (coronal)", "z (axial)"]
    both = [cut_slices(volumes(orientation=each)) for each in ("RAS", "LSA")]
    assert re.findall("[xyz](?: [(].*?[)])?(?=</label>)", viewer_html(both)) == [
        "x (sagittal)",
        "y",
        "z",
    ]
    names = [axis.name for axis in cut_slices(volumes(orientation="SPL")).axes]
    assert names == ["x (axial)", "y (coronal)", "z (sagittal)"]


def test_values_that_are_not_finite_are_black_and_no_difference():
    given = volumes()
    given.synthetic["net"][15, 20] = np.nan
    cut = cut_slices(given).axes[2]
    row, column = SHAPE[1] - 5 + MARGIN - 1 - 20, 15 - (5 - MARGIN)
    assert (cut.synthetic["net"][:, row, column] == 0).all()
    assert (cut.difference["net"][:, row, column] == ZERO).all()
    assert (cut.difference["net"][:, row, column + 1] != ZERO).any()


def test_what_does_not_fit_is_refused():
    for changes, rule in (
        ({"synthetic": {}}, "no synthetic volume"),
        ({"source": np.zeros((2, 2, 2))}, "source must have the target's shape"),
        ({"mask": np.zeros(SHAPE, bool)}, "mask is empty"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm"),
    ):
        with pytest.raises(ValueError, match=rule):
            cut_slices(volumes(**changes))
    with pytest.raises(ValueError, match="no specimen"):
        viewer_html([])
    with pytest.raises(ValueError, match="sub-2 has"):
        other = cut_slices(volumes(methods=("other",), name="sub-2"))
        viewer_html([cut_slices(volumes()), other])


def test_the_window_is_that_of_the_figures():
    given = volumes()
    figure = comparison_figure(given.synthetic, given.source, given.target, given.mask)
    shown = figure.axes[0].images[0].get_clim()
    assert cut_slices(given).window == pytest.approx(shown, rel=0.15)


def test_sheets_hold_every_slice_once():
    given = [cut_slices(volumes(n, methods=("a", "b"), name=f"sub-{n}")) for n in range(2)]
    html = viewer_html(given)
    text_of(html)
    assert html.count('class="sheets"') == 2 * 3
    assert len(sheet(html, "source")) == len(sheet(html, "target")) == 6
    assert len(sheet(html, "synthetic")) == len(sheet(html, "difference")) == 12
    shown = sheet(html, "source")[2]
    assert shown.mode == "L"
    np.testing.assert_array_equal(np.asarray(shown), np.concatenate(given[0].axes[2].source))
    coded = sheet(html, "difference")[1]
    assert coded.mode == "P"
    np.testing.assert_array_equal(
        np.asarray(coded), np.concatenate(given[0].axes[0].difference["b"])
    )


def test_central_slices_stand_without_script():
    html = viewer_html([cut_slices(volumes(methods=("a", "b")))])
    still = html[html.index('class="still"') : html.index('class="sheets"')]
    # Three axes of the first method, one of the other; a scale.
    assert len(pictures(still)) == 4 * 4 + 1
    assert still.count("Synthetic: a") == still.count("Synthetic: b") == 1


@pytest.mark.slow
@pytest.mark.parametrize("most_bytes", [4_000_000, 1_500_000])
def test_a_viewer_is_as_small_as_asked(most_bytes):
    # Noise, which no compression makes smaller.
    given = [cut_slices(volumes(n, (120, 110, 100), name=f"sub-{n}")) for n in range(3)]
    html = viewer_html(given, most_bytes)
    assert 0.2 * most_bytes < len(html) < most_bytes + 10_000
    for number in range(3):
        shown = f'<option value="{number}">sub-{number}' in html
        assert shown != (f"sub-{number}" in (re.search("Left out.*", html) or [""])[0])


def test_all_text_is_escaped():
    given = volumes(methods=(NASTY,), name=NASTY)
    page = report_page("Title", viewer_html([cut_slices(given)]))
    assert page.count("<script") == 1
    assert page.count("&lt;script&gt;") >= 6
    assert not re.search(r"https?:|@import|url\(", page)
    assert NASTY in text_of(page)
