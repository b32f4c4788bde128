from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sharding.io.interruption import (
    ENDING_SIGNALS,
    Interrupted,
    deferred_signals,
    kept_handlers,
    signals_as_exceptions,
)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_each_signal_is_raised_and_handlers_return(number, status):
    before = [signal.getsignal(each) for each in ENDING_SIGNALS]
    with pytest.raises(Interrupted) as caught, signals_as_exceptions():
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert caught.value.signal == number
    assert caught.value.status == status
    assert isinstance(caught.value, KeyboardInterrupt)
    assert [signal.getsignal(each) for each in ENDING_SIGNALS] == before


def test_another_sigterm_does_not_disturb_the_ending_but_ctrl_c_does():
    events = []
    with pytest.raises(Interrupted) as caught, signals_as_exceptions():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            events.append("cleaned up")
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
    assert events == ["cleaned up"]
    assert caught.value.signal == signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_deferred_signal_waits_for_the_end_of_the_block(number):
    events = []
    with pytest.raises(Interrupted) as caught, signals_as_exceptions():
        with deferred_signals() as deferred:
            assert deferred.signal is None
            os.kill(os.getpid(), number)
            events.append(deferred.signal)
        events.append("not reached")
    assert events == [number]
    assert caught.value.signal == number


def test_a_block_may_be_asked_to_stop():
    asked = []

    def stop():
        asked.append(True)
        return True

    with pytest.raises(Interrupted) as caught, signals_as_exceptions(), deferred_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert (asked, caught.value.signal) == ([True], signal.SIGTERM)


def test_a_block_that_cannot_be_asked_to_stop_is_left_at_once():
    with (
        pytest.raises(Interrupted) as caught,
        signals_as_exceptions(),
        deferred_signals(lambda: False),
    ):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(10)
        pytest.fail("the signal was deferred")
    assert caught.value.signal == signal.SIGHUP


def test_handlers_are_kept_against_a_library():
    with signals_as_exceptions():
        with kept_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)


class Finaliser:
    """Sends the process a signal at a moment in which Python drops every exception."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_within_a_finaliser_is_not_lost(number):
    hook = sys.unraisablehook
    with pytest.raises(Interrupted) as caught, signals_as_exceptions():
        Finaliser(number)
        time.sleep(10)
    assert caught.value.signal == number
    assert sys.unraisablehook is hook


def test_a_signal_that_a_library_drops_is_not_lost():
    with pytest.raises(Interrupted) as caught, signals_as_exceptions(), kept_handlers():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        Finaliser(signal.SIGTERM)
        time.sleep(10)
    assert caught.value.signal == signal.SIGTERM


def test_an_impatient_user_is_not_kept():
    with pytest.raises(Interrupted), deferred_signals() as deferred:
        os.kill(os.getpid(), signal.SIGINT)
        assert deferred.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one was deferred too")


def test_an_error_of_the_block_comes_first():
    with pytest.raises(KeyError), deferred_signals():
        os.kill(os.getpid(), signal.SIGINT)
        raise KeyError("first")


def test_only_signals_that_would_raise_are_deferred():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with deferred_signals() as deferred:
            os.kill(os.getpid(), signal.SIGTERM)
        assert deferred.signal is None
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ignored_signal_stays_ignored():
    """As nohup asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_exceptions():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_changes_nothing():
    before = [signal.getsignal(each) for each in ENDING_SIGNALS]
    seen = []

    def look():
        with signals_as_exceptions(), deferred_signals():
            seen.extend(signal.getsignal(each) for each in ENDING_SIGNALS)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == before


WORKERS = """
import sys, time
from sharding.io.interruption import Interrupted, signals_as_exceptions
from sharding.io.parallel import run_each

if __name__ == "__main__":
    try:
        with signals_as_exceptions():
            for _, outcome in run_each(print, range(2), workers=2):
                pass
            print("waiting", flush=True)
            for _ in run_each(time.sleep, [600] * 4, workers=2):
                pass
    except Interrupted as error:
        sys.exit(error.status)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_an_interrupted_parent(number, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    process = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert {process.stdout.readline().strip() for _ in range(3)} == {"0", "1", "waiting"}
    time.sleep(1)
    # To the whole group, as a terminal does.
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
