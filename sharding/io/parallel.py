"""One function over many items: in this process, in several, or as tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sharding.io.errors import DataError, one_line
from sharding.io.interruption import ENDING_SIGNALS, blocked_signals, kept_handlers
from sharding.io.progress import progress
from sharding.io.steps import StepProgress, set_listener

Item = TypeVar("Item")
Result = TypeVar("Result")
Failure = DataError | OSError | MemoryError
"""What an item or its machine can be to blame for; any other exception is a bug."""
FAILURES = (DataError, OSError, MemoryError)
Outcome = tuple[Item, Result | Failure]

CONNECT_SECONDS = 5
"""How long a cluster's head may take to accept a connection."""
AHEAD = 2
"""Items for each worker that are submitted to the pool at a time."""


def available_cores() -> int:
    """Cores that this process may use, which a batch system may limit; where the system does not
    say (macOS, Windows), all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int = 0,
    title: str = "",
    address: str | None = None,
    steps: Mapping[str, float] | None = None,
) -> Iterator[tuple[Item, Result | Failure]]:
    """Run a function on every item; one that fails does not stop the others, a bug does.

    Args:
        function: Picklable, and safe to run again: a task of a lost node is.
        items: Picklable and small.
        workers: Processes of this machine; 0 takes one a core, 1 runs in this process. On a
            cluster the most tasks at a time; 0 leaves that to Ray.
        title: Title of the progress bar.
        address: A Ray cluster ("auto" for the one that this machine belongs to); None stays here.
        steps: Where the function tells of its steps (`begin_step`), each with its weight: they are
            shown too. Items have a `name` then. Tasks of a cluster show when they are done.

    Yields:
        Each item with its result, or the Failure that it raised, in the order they finish.

    Raises:
        DataError: If a process is killed from outside; the results of finished items are kept.
        Exception: Whatever else the function raises.
        ValueError: If `workers` is negative.
    """
    if workers < 0:
        raise ValueError(f"workers must be >= 0, got {workers}")

    def outcomes(shown: StepProgress | None) -> Iterator[Outcome]:
        if address:
            return _on_ray(function, items, workers, address)
        processes = min(workers or available_cores(), len(items))
        if processes <= 1:
            return _here(function, items, shown)
        return _in_pool(function, items, processes, shown)

    if steps is None:
        yield from progress(outcomes(None), title, len(items))
        return
    with StepProgress(title, len(items), steps) as shown:
        for item, outcome in outcomes(shown):
            shown.finish(item.name)  # type: ignore[attr-defined]
            yield item, outcome


def _here(
    function: Callable[[Item], Result], items: Sequence[Item], shown: StepProgress | None
) -> Iterator[Outcome]:
    set_listener(shown.begin if shown else None)
    try:
        for item in items:
            try:
                yield item, function(item)
            except FAILURES as error:
                yield item, error
    finally:
        set_listener(None)


def _in_pool(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    shown: StepProgress | None,
) -> Iterator[Outcome]:
    # Spawned, so that the threads of the calling process cannot be caught mid-lock.
    context = multiprocessing.get_context("spawn")
    events = context.Queue() if shown else None
    with (
        shown.listening_to(events) if shown else contextlib.nullcontext(),
        ProcessPoolExecutor(
            workers, context, initializer=_start_worker, initargs=(events,)
        ) as pool,
    ):
        waiting = list(reversed(items))
        running: dict[Future[Result], Item] = {}
        try:
            while waiting or running:
                while waiting and len(running) < AHEAD * workers:
                    item = waiting.pop()
                    # The first one starts the workers.
                    with blocked_signals():
                        running[pool.submit(function, item)] = item
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), _outcome(future.exception(), future)
        except BrokenProcessPool as error:
            raise DataError(
                "worker processes",
                "one was killed, perhaps by the system because memory ran out",
                "Use fewer --workers and start again: finished work is kept",
            ) from error
        finally:
            interrupted = isinstance(sys.exception(), KeyboardInterrupt | GeneratorExit)
            if interrupted:
                # An item may take minutes, and files appear complete or not at all.
                for process in list(pool._processes.values()):
                    process.kill()
            pool.shutdown(cancel_futures=True)


def _start_worker(events: Any) -> None:
    """Tell of steps through a queue, if there is one, and end with the parent."""
    if events is not None:
        # What was not read before the end matters to nobody.
        events.cancel_join_thread()
        set_listener(events.put)
    _end_with_parent()


def _end_with_parent() -> None:
    """End this process as soon as its parent dies; otherwise it would wait for items for ever.

    Signals that ask to end are left to the parent, which gets them from a terminal or a batch
    system as well, and kills this process.
    """
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _outcome(error: BaseException | None, future: Future[Result]) -> Result | Failure:
    return error if isinstance(error, Failure) else future.result()


def _check_answers(address: str) -> None:
    """Refuse an address at which nothing listens; Ray itself would try for minutes.

    Raises:
        DataError: If so.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if port is None:
        return  # auto, or something that Ray refuses at once.
    try:
        socket.create_connection((host or "localhost", port), CONNECT_SECONDS).close()
    except OSError as error:
        rule = f"no Ray cluster answers there ({one_line(error)})"
        raise DataError(address, rule, "Start it, or leave --address away") from error


def _on_ray(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, address: str
) -> Iterator[Outcome]:
    # Imported here: it takes seconds, and only a cluster needs it.
    import ray
    from ray.exceptions import RayError, RayTaskError

    if not ray.is_initialized():
        _check_answers(address)
        try:
            with kept_handlers():
                ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, SystemExit) as error:
            rule = f"no Ray cluster answers there ({error})"
            raise DataError(address, rule, "Start it, or leave --address away") from error

    def call(item: Item) -> Result:
        return function(item)

    # One core each; a task is run again when its node is lost.
    remote: Any = ray.remote(num_cpus=1, max_retries=3)(call)
    waiting = list(reversed(items))
    running: dict[Any, Item] = {}
    try:
        while waiting or running:
            while waiting and (not workers or len(running) < workers):
                item = waiting.pop()
                running[remote.remote(item)] = item
            done, _ = ray.wait(list(running), num_returns=1)
            for task in done:
                item = running.pop(task)
                try:
                    outcome = ray.get(task)
                except RayTaskError as error:
                    if not isinstance(error.cause, Failure):
                        raise
                    outcome = error.cause
                except RayError as error:
                    rule = f"its process or node was lost again and again ({one_line(error)})"
                    remedy = "Start again: what is finished is kept"
                    outcome = DataError("the cluster", rule, remedy)
                yield item, outcome
    finally:
        for task in running:
            ray.cancel(task, force=True)
