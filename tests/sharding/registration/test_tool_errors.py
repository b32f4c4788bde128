from __future__ import annotations

import pytest

from sharding.registration.tool_errors import tool_errors


def test_a_tool_that_gives_up_is_told_without_places_of_its_source(refused):
    rule = r"^the bias field cannot be fitted \(no voxel is left\)$"
    with (
        refused("sub-01", rule, "give a mask"),
        tool_errors("sub-01", "the bias field cannot be fitted", "give a mask"),
    ):
        raise RuntimeError("in /home/somebody/code/itk.cxx:3:\nITK ERROR: no voxel\n  is left")


def test_a_bug_goes_through():
    with pytest.raises(ZeroDivisionError), tool_errors("sub-01", "cannot be fitted", "give a mask"):
        raise ZeroDivisionError
