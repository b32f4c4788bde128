"""What an error of many specimens says."""

from __future__ import annotations

from sharding.io.errors import CohortError, list_failures


def test_specimens_that_failed_alike_share_a_line():
    failures = {
        f"s{number}": f"/scans/s{number}.nii: is constant. Check it." for number in range(9)
    }
    lines = list_failures(failures, 20).splitlines()
    assert lines[0] == "9 of 20 specimens failed:"
    (line,) = lines[1:]
    assert line.startswith("  s0, s1, s2, ")
    assert line.endswith("(9 alike, s0 stated): /scans/s0.nii: is constant. Check it.")


def test_each_of_a_few_and_every_other_cause_has_its_own_line():
    failures = {"a": "a.nii: is empty. Check it.", "b": "b.nii: is empty. Check it.", "c": "cut"}
    assert list_failures(failures, 3).splitlines()[1:] == [
        "  a: a.nii: is empty. Check it.",
        "  b: b.nii: is empty. Check it.",
        "  c: cut",
    ]
    text = str(CohortError("out", failures, 3, "Correct them"))
    assert text.startswith("out: 3 of 3 specimens failed:")
    assert text.endswith("\nCorrect them.")
