"""The page in a browser: sliders show what they say, nothing is fetched, paper has its pictures."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from report_pages import report_page
from scipy import ndimage

from distsynth.reporting.run_page import curves_pictures
from distsynth.reporting.viewer import viewer_html
from distsynth.reporting.viewer_slices import Volumes, cut_slices, difference_palette

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from browser import NO_BROWSER, start
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

pytestmark = [pytest.mark.slow, NO_BROWSER]
SHAPE = (34, 40, 46)
SPACING = (1.0, 1.0, 1.5)


def smooth(random):
    return ndimage.gaussian_filter(random.normal(size=SHAPE), 2.5) * 10


@pytest.fixture(scope="module")
def slices():
    """Two specimens by two methods, every volume another."""
    random = np.random.default_rng(0)
    mask = np.zeros(SHAPE, bool)
    mask[6:-6, 6:-6, 6:-6] = True
    found = []
    for number in range(2):
        made = {name: smooth(random) for name in ("one", "other")}
        source, target = smooth(random), smooth(random)
        found.append(
            cut_slices(Volumes(f"sub-{number}", source, target, made, mask, SPACING, "RAS"))
        )
    return found


@pytest.fixture(scope="module")
def page(slices, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    rows = [{"step": 1, "train/recon": 1.0}, {"step": 2, "train/recon": 0.5}]
    text = report_page("Report", viewer_html(slices), curves_pictures({"run": rows}))
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = start(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium, page):
    chromium.get(page.as_uri())
    return chromium


def part(browser, name):
    return browser.find_element(By.CSS_SELECTOR, f'[data-part="{name}"]')


def move(browser, name, value):
    """Set a slider as a drag does."""
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'));",
        part(browser, name),
        value,
    )


def choose_axis(browser, axis):
    browser.find_element(By.CSS_SELECTOR, f'input[type=radio][value="{axis}"]').click()


def seen(browser, layers, shape):
    """What a frame shows, as RGB of a slice's size."""
    frame = browser.find_element(By.CSS_SELECTOR, f'[data-layers="{layers}"]')
    image = Image.open(io.BytesIO(frame.screenshot_as_png)).convert("RGB")
    size = (shape[1], shape[0])
    return np.asarray(image.resize(size, Image.Resampling.BOX), np.float32)


def assert_shows(browser, layers, picture):
    """The frame shows this picture, RGB or grey, but for the smoothing of scaling."""
    expected = np.asarray(picture, np.float32)
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], 3, axis=2)
    found = seen(browser, layers, expected.shape)
    # Pixels at the rim are mixed with what lies beyond.
    assert np.abs(found - expected)[1:-1, 1:-1].mean() < 4


def test_every_slice_of_every_axis_and_specimen_is_shown_when_chosen(browser, slices):
    palette = difference_palette()
    for specimen, cut in enumerate(slices):
        Select(part(browser, "specimen")).select_by_visible_text(f"sub-{specimen}")
        for axis, shown in enumerate(cut.axes):
            choose_axis(browser, axis)
            if specimen == 0:
                assert part(browser, "slice").get_property("valueAsNumber") == shown.central
            for at in (0, len(shown.indices) - 1):
                move(browser, "slice", at)
                text = part(browser, "slice-text").text
                assert text == f"{shown.indices[at]} ({at + 1} of {len(shown.indices)})"
                assert_shows(browser, "source", shown.source[at])
                assert_shows(browser, "target", shown.target[at])
                for method in ("one", "other"):
                    Select(part(browser, "method")).select_by_visible_text(method)
                    assert_shows(browser, "synthetic", shown.synthetic[method][at])
                    assert_shows(browser, "difference", palette[shown.difference[method][at]])


def test_the_blend_goes_from_source_over_synthetic_to_target(browser, slices):
    shown = slices[0].axes[2]
    k = shown.central
    source, synthetic, target = (
        pictures[k].astype(float)
        for pictures in (shown.source, shown.synthetic["one"], shown.target)
    )
    layers = "source synthetic target"
    for value, picture, told in (
        (0, source, "source"),
        (0.5, (source + synthetic) / 2, "50 % source, 50 % synthetic"),
        (1, synthetic, "synthetic"),
        (1.7, 0.3 * synthetic + 0.7 * target, "30 % synthetic, 70 % target"),
        (2, target, "target"),
    ):
        move(browser, "blend", value)
        assert_shows(browser, layers, picture)
        assert part(browser, "blend-text").text == told
        assert part(browser, "blend").get_attribute("aria-valuetext") == told


def test_the_shape_is_that_of_the_specimen(browser, slices):
    for axis, shown in enumerate(slices[0].axes):
        choose_axis(browser, axis)
        for frame in browser.find_elements(By.CSS_SELECTOR, ".frame"):
            size = frame.size
            assert size["width"] / size["height"] == pytest.approx(shown.ratio, rel=0.02)
            assert size["width"] > 100


def test_keys_move_the_sliders_and_all_inputs_have_names(browser, slices):
    before = part(browser, "slice-text").text
    part(browser, "slice").send_keys(Keys.ARROW_RIGHT)
    shown = slices[0].axes[2]
    assert part(browser, "slice-text").text != before
    assert_shows(browser, "target", shown.target[shown.central + 1])
    part(browser, "blend").send_keys(Keys.END)
    assert part(browser, "blend-text").text == "target"
    browser.find_element(By.CSS_SELECTOR, "input[type=radio]:checked").send_keys(Keys.ARROW_LEFT)
    assert_shows(browser, "target", slices[0].axes[1].target[slices[0].axes[1].central])
    inputs = browser.find_elements(By.CSS_SELECTOR, "input, select")
    assert len(inputs) == 7
    for each in inputs:
        assert each.accessible_name


def test_nothing_is_fetched_and_nothing_goes_wrong(browser, page):
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    choose_axis(browser, 0)
    move(browser, "blend", 1)
    assert browser.get_log("browser") == []
    messages = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"].endswith("WillBeSent")]
    assert page.as_uri() in sent
    assert {url for url in sent if not url.startswith("data:")} == {page.as_uri()}


def test_another_script_does_not_run(browser, page, tmp_path):
    good = page.read_text(encoding="utf-8")
    assert part(browser, "slice").is_displayed()
    for bad in (
        good.replace('"use strict";', '"use strict"; '),
        good.replace("<main>", "<main><script>document.title = 'run'</script>"),
        good.replace("<main>", "<main onclick=\"document.title = 'run'\">"),
    ):
        path = tmp_path / "bad.html"
        path.write_text(bad, encoding="utf-8")
        browser.get_log("browser")
        browser.get(path.as_uri())
        browser.find_element(By.TAG_NAME, "h2").click()
        assert browser.title == "Report"
        assert any(
            "Content Security Policy" in row["message"] for row in browser.get_log("browser")
        )
    browser.get_log("browser")


def assert_still(browser):
    """Static pictures are seen, sliders not."""
    pictures = browser.find_elements(By.CSS_SELECTOR, ".still td img")
    assert len(pictures) == 2 * (3 + 1) * 4
    for picture in pictures:
        assert picture.is_displayed()
        assert picture.size["width"] > 50
    assert not part(browser, "slice").is_displayed()


def test_without_script_the_central_slices_stand(page, slices, tmp_path):
    browser = start(tmp_path / "profile", script=False)
    try:
        browser.get(page.as_uri())
        assert_still(browser)
        shown = slices[0].axes[2]
        words = f"sub-0, target, {shown.name}, {shown.indices[shown.central]}"
        picture = browser.find_element(By.CSS_SELECTOR, f'[alt="{words}"]')
        image = Image.open(io.BytesIO(picture.screenshot_as_png)).convert("L")
        rows, columns = shown.target.shape[1:]
        found = np.asarray(image.resize((columns, rows), Image.Resampling.BOX), float)
        assert np.abs(found - shown.target[shown.central])[1:-1, 1:-1].mean() < 4
    finally:
        browser.quit()


def test_on_paper_the_central_slices_stand(browser):
    assert not browser.find_element(By.CSS_SELECTOR, ".still").is_displayed()
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert_still(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF-")
    # All pictures are in it, equal ones once: 12 of the first method, 2 more of the other.
    assert pdf.count(b"/Subtype /Image") >= 2 * (12 + 2)
