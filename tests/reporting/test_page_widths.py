"""No cell of a page lies outside it: on a laptop, on a desktop, and on paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distsynth.config import to_json
from distsynth.metrics.conventions import conventional_values
from distsynth.metrics.definitions import METRICS
from distsynth.metrics.results import ResultsTable, results_json, results_table
from distsynth.metrics.verdict import verdicts
from distsynth.presets import PRESETS, preset
from distsynth.reporting.conventions import conventions_files
from distsynth.reporting.evaluation_page import evaluation_page
from distsynth.reporting.run_page import Extras, run_page
from distsynth.reproduction.comparison import GAN, ComparedRow, compare
from distsynth.reproduction.comparison_tables import comparison_tables
from distsynth.reproduction.rows import NETWORKS
from distsynth.runs.folder import CONFIG_FILE
from distsynth.sweep.folder import EpochRecord, SweepFolder, TrialRecord
from distsynth.sweep.page import sweep_page
from distsynth.sweep.plan import SweepConfig, SweepPlan
from sharding.io.page import render
from sharding.io.storage import Folder
from sharding.io.tables import Cell, Column, Table
from sharding.registration.quality import PairQuality, RegistrationOutcome, SpecimenQuality
from sharding.registration.quality_page import quality_page
from sharding.volumes.intensities import IntensityTransform

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from browser import NO_BROWSER, start
from selenium.webdriver.common.by import By

pytestmark = [pytest.mark.slow, NO_BROWSER]

LONG = "sub-01234567_ses-followup_acq-highres_run-02"
"""A name of a specimen as BIDS makes them."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = start(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


def wide_results() -> ResultsTable:
    """Nine models beside six baselines, every metric, on a dozen specimens of long names."""
    draw = np.random.default_rng(0)
    models = [*list(PRESETS)[:9], "identity", "cubic", "regression", "histogram-matching"]
    values = {
        model: {
            f"{LONG}{k}": dict(zip(METRICS, -draw.normal(20, 2, len(METRICS)), strict=True))
            for k in range(12)
        }
        for model in models
    }
    return results_table(values, dict.fromkeys(models[:9], 12_345_678))


def evaluation(_: Path) -> str:
    """An evaluation of many models."""
    table = wide_results()
    return evaluation_page(
        "Evaluation of many",
        {"split": f"test: {', '.join(table.specimens)}", "lent of the target": "its clip " * 30},
        table,
        config={"long": "x" * 400},
        verdicts=verdicts(table.values, list(table.steps)),
    )


def run(folder: Path) -> str:
    """A run that was not evaluated."""
    (folder / CONFIG_FILE).write_text(to_json(preset("pix2pix-11")))
    return run_page(Folder(folder), Extras())


def study(folder: Path) -> str:
    """A run with its evaluation, as distsynth run writes it at the end."""
    (folder / CONFIG_FILE).write_text(to_json(preset("best")))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text(results_json(wide_results()))
    return run_page(Folder(folder), Extras(evaluation=str(folder / "evaluation")))


def sweep(folder: Path) -> str:
    """A search over many fields, a third of it failed."""
    base = preset("small")
    space = {f"loss.{name}": {"uniform": [0, 1]} for name in vars(base.loss) if "lambda" in name}
    space |= {f"augment.{name}": {"uniform": [0, 1]} for name in ("gamma", "bias", "blur", "noise")}
    space |= {f"optim.{name}": {"uniform": [0, 1]} for name in ("lr_generator", "weight_decay")}
    space["generator.channels"] = {"choice": [[32, 64, 128, 128, 256, 256], [8, 8]]}
    found = SweepFolder(folder / "lambdas-of-everything")
    found.write_plan(SweepPlan(found.name, "0a1b2c3d", base, space, SweepConfig(trials=12)))
    for number in range(12):
        report = EpochRecord(20, 12_345, {"val/psnr": 20.0 + number}, 20.0 + number, 20.0 + number)
        values = dict.fromkeys(space, 0.12345678) | {"generator.channels": (32, 64, 128, 128, 256)}
        record = TrialRecord(f"{number:05d}", values, "finished", (report,))
        if number % 3 == 0:
            cause = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. " * 3
            record = TrialRecord(f"{number:05d}", values, "failed", cause=cause)
        found.write_record(record)
    return sweep_page(found, Extras())


def quality(_: Path) -> str:
    """A prepared cohort of long names, with everything that can stand out."""
    before, after = PairQuality(0.312, 0.413, 0.814), PairQuality(0.515, 0.616, 0.917)
    steps = tuple(
        RegistrationOutcome(step, step == "rigid", 0.5, 0.45)
        for step in ("rigid", "affine", "deform")
    )
    rows = [
        SpecimenQuality(
            *(f"{LONG}{k}", before, after, 0.81, 1.19, 0.987, 0.432, 0.021, 0.011),
            kept=("rigid", "affine", "deform"),
            registration=steps,
        )
        for k in range(4)
    ]
    flags = {row.name: ["mutual information 0.515 is unusual: the median is 0.9"] for row in rows}
    failures = {f"{LONG}9": f"{LONG}9_source.nii.gz: must overlap " + "x" * 200}
    return quality_page(rows, flags, failures, {}, {}, {"Steps": "correct, scale " * 20})


def conventions(folder: Path) -> str:
    """One prediction under every convention."""
    target = np.random.default_rng(0).uniform(size=(24, 24, 24)).astype(np.float32)
    transform = IntensityTransform.fit(target, (0.1, 99.9))
    values = conventional_values(target + 0.1, target, transform, np.ones(target.shape, bool))
    conventions_files(folder, {"pix2pix-11": {LONG: values}}, "Conventions", {})
    return (folder / "conventions.html").read_text(encoding="utf-8")


def reproduction() -> str:
    """The paper's comparison of every row, and a leaderboard of twenty searched fields."""
    numbers = np.random.default_rng(0).normal(20, 2, size=(len(NETWORKS), 6))
    rows = []
    for name, drawn in zip(NETWORKS, numbers, strict=True):
        results = {f"sub-{k}": dict.fromkeys(METRICS, -value) for k, value in enumerate(drawn)}
        trained = "12 of 30 epochs, 100 of 300 patches a specimen, stride 48"
        rows.append(ComparedRow(name, GAN, 1_829_025, trained, 1234.5, results=results))
    controls = [(first, second, "psnr_mask") for first in NETWORKS for second in list(NETWORKS)[:1]]
    fields = [Column(f"lambda_number_{number}") for number in range(20)]
    lines = [[Cell("1.23e-05") for _ in fields] for _ in range(3)]
    board = Table(fields, [("", lines)], "Leaderboard")
    comparison = [*comparison_tables(compare(rows, controls)), board]
    return render(
        "distsynth.reproduction/reproduction.html",
        title="Wide",
        comparison=comparison,
        seams=[],
        pictures=[],
        viewer="",
        note="",
        checks=[],
        curves=[],
        results=None,
        asked={"name": "value " * 60},
        data={},
        config={"long": "x" * 400},
        versions={},
    )


KINDS: tuple[Callable[[Path], str], ...] = (
    evaluation,
    run,
    study,
    sweep,
    quality,
    conventions,
    lambda _: reproduction(),
)
NAMES = ["evaluation", "run", "study", "sweep", "quality", "conventions", "reproduction"]

MEASURE = """
const page = document.documentElement.clientWidth;
const cells = [...document.querySelectorAll("th, td, dd, pre, li, p")];
return [document.querySelectorAll("td").length, cells.map((cell) => {
  const [box, inner] = [cell.getBoundingClientRect(), document.createRange()];
  inner.selectNodeContents(cell);
  const text = inner.getBoundingClientRect();
  return [cell.textContent, Math.max(box.right, text.right) - page, box.left, box.width];
}).filter(([, right, left, width]) => right > 0.5 || left < -0.5 || width === 0)];
"""
"""How many cells there are, and those that lie outside of the page or are not shown."""


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_no_cell_of_a_page_lies_outside(kind, chromium, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(kind(tmp_path), encoding="utf-8")
    try:
        for width, media in ((1280, ""), (1600, ""), (A4, "print")):
            metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
            chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
            chromium.get(path.as_uri())
            cells, wrong = chromium.execute_script(MEASURE)
            assert cells > 10 or kind is run
            # What is folded on a screen has no width there; on paper it is open.
            assert [cell for cell in wrong if cell[3] or media] == [], (width, media)
            for folded in chromium.find_elements(By.CSS_SELECTOR, "details > :not(summary)"):
                seen = chromium.execute_script("return arguments[0].checkVisibility()", folded)
                assert seen == (media == "print")
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


A4 = 703
"""CSS pixels between margins of 12 mm."""
