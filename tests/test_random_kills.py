"""Killed at moments that a seed draws, every command goes on and ends as if nothing had happened.

`benchmarks/random_kills.py` does the same a hundred times.
"""

from __future__ import annotations

import pytest
from killed_commands import SETUP, Command

SEED = 20261128
KILLS = {"sweep": 1, "reproduce": 1}

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("name", SETUP)
def test_a_command_that_is_killed_goes_on_to_the_same_end(name, tmp_path):
    command = Command(name, tmp_path)
    assert len(command.changes) > 20
    for kill in command.moments(SEED, KILLS.get(name, 2)):
        command.check(kill)
