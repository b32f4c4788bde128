"""Records of rows: what is damaged is refused by name."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from distsynth.reproduction.row_evaluation import read_evaluation, read_slices
from sharding.io.errors import DataError
from sharding.io.storage import Folder

GOOD = {"name": "a", "results": {"a": {"s": {"psnr_mask": 20.0, "seam_index": None}}}, "seconds": 1}


def write(folder, content):
    folder.write(
        "evaluations/a.json", content if isinstance(content, bytes) else json.dumps(content)
    )


def test_a_record_reads_back(tmp_path):
    folder = Folder(tmp_path)
    assert read_evaluation(folder, "a") is None
    write(folder, GOOD)
    found = read_evaluation(folder, "a")
    assert found is not None
    assert found.values("a")["s"]["psnr_mask"] == 20
    assert np.isnan(found.values("a")["s"]["seam_index"])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "EOF"),
        (b"\xff", "expected value"),
        (b"[" * 100_000, "recursion limit"),
        (None, "Input should be an object"),
        ({}, "name: Field required"),
        (GOOD | {"seconds": None}, "seconds: Input should be a valid number"),
        (GOOD | {"more": 1}, "more: Unexpected keyword argument"),
        (GOOD | {"results": {}}, "results: a is missing"),
        (GOOD | {"results": {"b": {"s": {}}}}, "results: a is missing"),
        (GOOD | {"results": {"a": {}}}, "one or more specimens"),
        (GOOD | {"results": {"a": {"s": {"psnr": 1.0}}}}, "keys of METRICS"),
        (GOOD | {"results": {"a": {"s": []}}}, r"results\.a\.s: Input should be"),
    ],
)
def test_a_damaged_record_is_refused_by_name(tmp_path, content, complaint):
    write(Folder(tmp_path), content)
    with pytest.raises(DataError, match=f"no evaluation of a row .*{complaint}") as caught:
        read_evaluation(Folder(tmp_path), "a")
    assert caught.value.where == str(tmp_path / "evaluations" / "a.json")


def packed(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("harm", ["empty", "text", "cut", "changed", "objects"])
def test_damaged_slices_are_refused_by_name(tmp_path, harm):
    whole = packed(first=np.arange(1000.0))
    middle = len(whole) // 2
    content = {
        "empty": b"",
        "text": b"these are no arrays",
        "cut": whole[:middle],
        "changed": whole[:middle] + b"XXXXXXXX" + whole[middle + 8 :],
        "objects": packed(first=np.array([{}], object)),
    }[harm]
    folder = Folder(tmp_path)
    folder.write("evaluations/a.npz", content)
    with pytest.raises(DataError, match="no evaluation of a row") as caught:
        read_slices(folder, "a")
    assert caught.value.where == str(tmp_path / "evaluations" / "a.npz")
