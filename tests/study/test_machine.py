"""The time of a step does not depend on what else a machine does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from distsynth.study.machine import Spent, threads_at_once

STOPPED = """
import sys
from distsynth.study.machine import Spent
before = Spent.now()
print("ready", flush=True)
input()
sum(range(10**6))
spent = Spent.now() - before
print(spent.wall, spent.processor, spent.alone(False, 1), spent.alone(True, 1))
"""


@pytest.mark.parametrize(
    ("gpu", "threads", "seconds"), [(False, 1, 6.0), (False, 4, 1.5), (True, 4, 10.0)]
)
def test_processors_are_counted_by_their_time_and_gpus_by_the_clock(gpu, threads, seconds):
    spent = Spent(110.0, 26.0) - Spent(100.0, 20.0)
    assert spent.alone(gpu, threads) == pytest.approx(seconds)


def test_threads_of_others_do_not_make_it_more_than_the_clock():
    assert Spent(10.0, 25.0).alone(False, 2) == 10.0


def test_no_more_threads_than_processors_are_counted():
    before = torch.get_num_threads()
    allowed = len(os.sched_getaffinity(0))
    try:
        for wanted in (1, allowed, 2 * allowed):
            torch.set_num_threads(wanted)
            assert threads_at_once() == min(wanted, allowed)
    finally:
        torch.set_num_threads(before)


def test_time_in_which_a_process_does_not_run_does_not_count():
    """As a process that others crowd out; a stopped one certainly gets no processor."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("go\n", timeout=60)
    wall, processor, on_processors, on_gpu = map(float, out.split())
    assert wall > 1.0
    assert on_processors == processor < wall - 0.9
    assert on_gpu == wall
