"""Tables: a golden text, the mark of the best, and formats that read back."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from distsynth.metrics.definitions import METRICS
from distsynth.metrics.results import (
    format_value,
    read_results,
    results_csv,
    results_json,
    results_table,
    results_text,
)
from distsynth.metrics.statistics import best_method, bootstrap_interval
from sharding.io.errors import DataError

RESULTS = {
    "cubic": {
        "s1": {"mse_mask": 0.03, "psnr_mask": 18.5, "ssim_mask": 0.4},
        "s2": {"mse_mask": 0.05, "psnr_mask": 17.5, "ssim_mask": 0.5},
    },
    "unet-7": {
        "s1": {"mse_mask": 0.02, "psnr_mask": 19.25, "ssim_mask": 0.45, "seam_index": 1.1},
        "s2": {"mse_mask": 0.01, "psnr_mask": 21.5, "ssim_mask": 0.35, "seam_index": 1.05},
    },
}

GOLDEN = """\
Mean over 2 specimens, 95% bootstrap interval of the mean below it. With so few specimens the \
interval is too narrow.

In the mask
* best mean of its column.

  method                 MSE   PSNR, peak range
  ----------------------------------------------
  cubic              0.04000              18.00
          0.03000 to 0.05000     17.50 to 18.50
  unet-7             0.01500*             20.38*
          0.01000 to 0.02000     19.25 to 21.50

  MSE: MSE, mask (standardised units squared); lower is better
  PSNR, peak range: PSNR, mask (dB, peak = range of the target); higher is better

In the mask, per specimen
  method  specimen      MSE   PSNR, peak range
  --------------------------------------------
  cubic   s1        0.03000              18.50
  cubic   s2        0.05000              17.50
  unet-7  s1        0.02000              19.25
  unet-7  s2        0.01000              21.50
"""


def test_golden_text():
    results = {
        method: {
            specimen: {key: values[key] for key in ("mse_mask", "psnr_mask")}
            for specimen, values in by_specimen.items()
        }
        for method, by_specimen in RESULTS.items()
    }
    assert results_text(results_table(results)) == GOLDEN


def test_methods_keep_their_order_and_columns_that_of_metrics():
    table = results_table(RESULTS)
    assert list(table.summary) == ["cubic", "unet-7"]
    assert table.columns == ("mse_mask", "psnr_mask", "ssim_mask", "seam_index")
    assert table.specimens == ("s1", "s2")
    assert [heading for heading, _ in table.regions()] == [
        "In the mask",
        "Patch seams and checkerboards",
    ]


def test_all_metrics_are_in_one_group_each_under_names_of_their_own():
    table = results_table({"net": {"s": dict.fromkeys(METRICS, 0.5)}})
    groups = [keys for _, keys in table.regions()]
    assert [key for keys in groups for key in keys] == list(METRICS)
    assert [len(keys) for keys in groups] == [7, 6, 8, 1, 4]


def test_mean_and_interval():
    interval = results_table(RESULTS).summary["cubic"]["mse_mask"]
    assert interval.mean == pytest.approx(0.04)
    assert (interval.low, interval.high) == bootstrap_interval([0.03, 0.05])


def test_best_respects_the_direction_and_needs_a_rival():
    table = results_table(RESULTS)
    assert table.best == {
        "mse_mask": ("unet-7",),
        "psnr_mask": ("unet-7",),
        "ssim_mask": ("cubic",),
        "seam_index": (),
    }


def test_a_ratio_is_best_nearest_to_one_and_a_mere_comparison_has_no_best():
    found = {"a": 1.04, "b": 0.95, "c": 0.8}
    results = {name: {"s": {"seam_index": x, "ssim_literal_mask": x}} for name, x in found.items()}
    table = results_table(results)
    assert table.best == {"ssim_literal_mask": (), "seam_index": ("a",)}
    assert best_method(results, "seam_index") == "a"
    assert best_method(results, "ssim_literal_mask") is None
    excess = {"a": {"s": {"seam_excess": -0.02}}, "b": {"s": {"seam_excess": 0.01}}}
    assert results_table(excess).best["seam_excess"] == ("b",)


def test_ties_are_all_best():
    by_specimen = {"s": {"mse_mask": 0.1}}
    assert results_table({"a": by_specimen, "b": by_specimen}).best["mse_mask"] == ("a", "b")


def test_a_missing_value_makes_the_mean_nan():
    results = {"a": {"s1": {"seam_index": 1.0}, "s2": {}}}
    table = results_table(results)
    assert math.isnan(table.summary["a"]["seam_index"].mean)
    assert math.isnan(table.values["a"]["s2"]["seam_index"])


def test_infinite_psnr_is_the_best():
    table = results_table({"a": {"s": {"psnr_mask": math.inf}}, "b": {"s": {"psnr_mask": 9.0}}})
    assert table.best["psnr_mask"] == ("a",)
    assert "inf*" in results_text(table)
    assert json.loads(results_json(table))["methods"]["a"]["specimens"]["s"]["psnr_mask"] is None


def test_opposite_infinities_have_no_mean():
    values = {"s1": {"psnr_mask": math.inf}, "s2": {"psnr_mask": -math.inf}}
    assert math.isnan(results_table({"a": values}).summary["a"]["psnr_mask"].mean)


def test_one_specimen_has_no_interval():
    text = results_text(results_table({"a": {"s": {"mse_mask": 0.1}}}))
    assert text.startswith("One specimen: no interval")
    assert "nan" not in text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("mse_mask", 0.0174, "0.01740"),
        ("mse_mask", 1234.0, "1234"),
        ("psnr255_whole", 67.546, "67.55"),
        ("ssim_global_mask", 0.5932, "0.5932"),
        ("seam_index", 1.0649, "1.065"),
        ("consistency_error", math.nan, "-"),
        ("psnr_mask", -math.inf, "-inf"),
    ],
)
def test_format_value(metric, value, text):
    assert format_value(metric, value) == text


def test_text_states_range_region_and_dimensions():
    text = results_text(results_table({"net": {"s": dict.fromkeys(METRICS, 0.5)}}))
    for metric in METRICS.values():
        assert f"{metric.title}; {metric.direction}" in text
    for direction in ("higher is better", "nearest 1 is best", "nearest 0 is best"):
        assert direction in text


def test_csv_reads_back():
    table = results_table({'a,"b"': RESULTS["cubic"], "unet-7": RESULTS["unet-7"]})
    rows = list(csv.DictReader(io.StringIO(results_csv(table))))
    assert len(rows) == 2 * 4 * (2 + 3)
    found = {
        (row["method"], row["specimen"], row["metric"], row["statistic"]): row["value"]
        for row in rows
    }
    assert float(found['a,"b"', "s2", "psnr_mask", "value"]) == 17.5
    assert float(found["unet-7", "", "mse_mask", "mean"]) == pytest.approx(0.015)
    assert float(found["unet-7", "", "mse_mask", "high"]) == 0.02
    assert found['a,"b"', "s1", "seam_index", "value"] == ""


def test_results_read_back_to_the_same_table():
    table = results_table(RESULTS)
    again = read_results(results_json(table), "results.json")
    assert results_csv(again) == results_csv(table)
    assert results_text(again) == results_text(table)


def test_json_reads_back_without_nan():
    text = results_json(results_table(RESULTS))

    def refuse(constant: str):
        raise AssertionError(constant)

    content = json.loads(text, parse_constant=refuse)
    assert list(content["methods"]) == ["cubic", "unet-7"]
    unet = content["methods"]["unet-7"]
    assert unet["summary"]["mse_mask"]["best"] is True
    assert unet["specimens"]["s2"]["seam_index"] == 1.05
    assert content["methods"]["cubic"]["summary"]["seam_index"]["mean"] is None
    assert content["metrics"]["psnr_mask"]["best"] == "higher"
    assert content["metrics"]["seam_index"]["best"] == 1


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "one or more methods"),
        ({"a": {}}, "one or more specimens"),
        ({"a": {"s1": {}}, "b": {"s2": {}}}, "same specimens: a on .*s1.*, b on .*s2"),
        ({"a": {"s1": {"psrn": 1.0}}}, "keys of METRICS, got .*psrn"),
    ],
)
def test_refuses(results, message):
    with pytest.raises(ValueError, match=message):
        results_table(results)


def values(content):
    return json.dumps({"methods": {"a": {"specimens": {"s": content}}}})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "object"),
        ("{}", "methods: Field required"),
        ("{", "EOF"),
        ("[" * 100_000, "recursion limit"),
        ('{"methods": null}', "methods: Input should be"),
        ('{"methods": {}}', "one or more methods"),
        ('{"methods": {"a": 1}}', r"methods\.a: Input should be"),
        ('{"methods": {"a": {}}}', r"methods\.a\.specimens: Field required"),
        ('{"methods": {"a": {"specimens": {}}}}', "one or more specimens"),
        (values([]), r"methods\.a\.specimens\.s: Input should be"),
        (values({"psnr_mask": "20"}), r"psnr_mask: Input should be a valid number"),
        (values({"psnr_mask": True}), r"psnr_mask: Input should be a valid number"),
        (values({"psrn": 1.0}), "keys of METRICS, got .*psrn"),
        (b"\xff\xfe", "expected value"),
    ],
)
def test_what_is_no_results_file_is_refused_by_name(text, complaint):
    with pytest.raises(DataError, match=f"^out/results.json: these are no results .*{complaint}"):
        read_results(text, "out/results.json")


def test_a_metric_that_cannot_be_had_is_said_with_its_reason():
    values = {"psnr_mask": 20.0, "ssim_mask": math.nan, "seam_index": math.nan}
    whole = {"psnr_mask": 21.0, "ssim_mask": 0.5, "seam_index": 1.0}
    table = results_table({"net": {"thin": values, "whole": whole}})
    text = results_text(table)
    assert (
        "SSIM 3D has no value for thin, and so no mean: it needs 11 voxels along each axis." in text
    )
    assert "Seam has no value" not in text, "a seam index has no meaning for many methods"
    assert "nan" not in text
    assert table.summary["net"]["psnr_mask"].mean == 20.5
    assert "has no value" not in results_text(results_table({"net": {"whole": whole}}))
