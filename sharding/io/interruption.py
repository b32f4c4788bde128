"""Ending cleanly when a user, a terminal or a batch system asks for it by a signal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

ENDING_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""What Ctrl-C, a batch system and a closed terminal send; Windows has no SIGHUP."""
SECONDS_TO_END = 30.0
"""A second SIGTERM or SIGHUP within this time after the first is ignored."""
SECONDS_TO_RESEND = 0.05
"""How long after an exception of a signal was lost the signal is sent once more."""


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Attributes:
        signal: The signal that asked for it.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"interrupted by {self.signal.name}")

    @property
    def status(self) -> int:
        """The exit status that shells give to a process that this signal ended."""
        return 128 + self.signal


class DeferredSignals:
    """The signals that arrived within a block of deferred_signals.

    Attributes:
        signal: The first of them; None if there was none.
    """

    def __init__(self, stop: Callable[[], bool] | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._stop = stop

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        # A user who presses Ctrl-C again does not want to wait.
        if self.signal is not None and number == signal.SIGINT:
            raise Interrupted(number)
        if self.signal is None:
            self.signal = signal.Signals(number)
            if self._stop is not None and not self._stop():
                raise Interrupted(number)


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted in the main thread while the block runs.

    A signal that the process ignores stays ignored, as nohup wants it. In another thread than the
    main one, and on return, nothing is changed. Python drops an exception that is raised while it
    runs a finaliser or a callback of a fork: such a signal is sent once more, a moment later.
    """
    started_to_end: float | None = None

    def resend(number: int) -> None:
        nonlocal started_to_end
        started_to_end = None
        again = threading.Timer(SECONDS_TO_RESEND, _signal_main_thread, (number,))
        again.daemon = True
        again.start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal started_to_end
        del frame
        now = time.monotonic()
        ending = started_to_end is not None and now - started_to_end < SECONDS_TO_END
        if ending and number != signal.SIGINT:
            return
        started_to_end = now
        raise Interrupted(number)

    interrupt.__dict__["raises_interrupted"] = True
    with (
        _handlers(interrupt, lambda handler: handler is not signal.SIG_IGN),
        _dropped_interruptions(resend),
    ):
        yield


@contextlib.contextmanager
def deferred_signals(stop: Callable[[], bool] | None = None) -> Iterator[DeferredSignals]:
    """Remember a signal instead of raising it, so that the block can reach a consistent state.

    The block checks the attribute `signal` of the object that it is given, and the signal is raised
    as Interrupted when the block ends. Only signals that would raise an exception are deferred: the
    handlers of Ray or another host stay.

    Args:
        stop: Asks the block to end, at the first signal; returns whether that is possible now. If
            not, the signal is raised at once.

    Raises:
        Interrupted: At the end of the block, or at a second SIGINT.
    """
    deferred = DeferredSignals(stop)
    with _handlers(deferred._remember, _raises):
        yield deferred
    if deferred.signal is not None:
        raise Interrupted(deferred.signal)


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """Restore the handlers of signals_as_exceptions if the block installs others.

    Ray has handlers of its own, in Python and in C++, which end the process with a stack trace.
    """
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    try:
        yield
    except SystemExit as error:
        if _signal_of(error) is not None:
            raise Interrupted(signal.SIGTERM) from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if getattr(handler, "raises_interrupted", False):
                    signal.signal(number, handler)


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Deliver signals only after the block; processes that start in it never receive them.

    A worker that is still loading its modules would otherwise end with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_of(error: BaseException | None) -> int | None:
    """The number of the signal that raised an exception, in our handler or in Ray's."""
    if isinstance(error, Interrupted):
        return error.signal
    # What Ray's own handler makes of a SIGTERM, until kept_handlers restores ours.
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
        return signal.SIGTERM
    return None


def _signal_main_thread(number: int) -> None:
    """Send the main thread a signal, which also wakes it from a wait where the system can."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


@contextlib.contextmanager
def _dropped_interruptions(resend: Callable[[int], None]) -> Iterator[None]:
    """Call `resend` with the number of each signal whose exception Python dropped in the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        number = _signal_of(unraisable.exc_value)
        if number is None:
            before(unraisable)
        else:
            resend(number)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _raises(handler: object) -> bool:
    ours = getattr(handler, "raises_interrupted", False)
    return ours or handler is signal.default_int_handler


@contextlib.contextmanager
def _handlers(
    handler: Callable[[int, FrameType | None], None], replaces: Callable[[object], bool]
) -> Iterator[None]:
    """Install a handler in place of those that `replaces` accepts; restore them afterwards."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING_SIGNALS:
            found = signal.getsignal(number)
            # None: installed by C code, which Python could not restore.
            if found is not None and replaces(found):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
