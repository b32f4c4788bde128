"""The child's side of `killing.py`: a process that stops itself at a named moment.

It is loaded by every Python process of the program, before anything else: it imports little.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

VARIABLE = "DISTSYNTH_TESTS_MOMENT"
"""The environment variable with the moment, as JSON, and the folder of `killing.py`'s notes."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "remove"}
"""Python's audit events that change the file system; "open" for writing is another one."""

RENEWAL = "lease-renewal"
"""The thread that renews a lease, as often as time passes: its changes do not count, for then the
load of the machine would decide which change is the N-th. What it leaves, `test_lease.py` tests."""

Event = Literal["any", "write", "rename", "remove", "mkdir"]


@dataclass(frozen=True)
class FileMoment:
    """Just before the process changes something in the file system.

    Attributes:
        path: Pattern of the absolute path, as of `fnmatch`: `*` stands for slashes too. A renaming
            has the path of the new name.
        event: "write" when a file is opened to be written, "rename", "remove", "mkdir", or "any".
            Files that a library opens in C++ (`torch.save`) show when they are renamed.
        count: Which of these changes, from 1; each process counts its own.
        torn: Whether the file that is to be renamed is first cut to half its length, as if the
            process had been killed while it wrote.
    """

    path: str = "*"
    event: Event = "any"
    count: int = 1
    torn: bool = False


@dataclass(frozen=True)
class CallMoment:
    """Before or after a call of a function.

    Attributes:
        function: "module:function" or "module:Class.method". It is replaced as soon as its module
            is imported; modules that are imported later see the replacement.
        argument: Pattern, as of `fnmatch`, that a text or path among the positional arguments has;
            other calls are not counted.
        count: Which call, from 1; each process counts its own.
        after: Whether the function is done first.
    """

    function: str
    argument: str = ""
    count: int = 1
    after: bool = False


Moment = FileMoment | CallMoment


def to_environment(moment: Moment | None, notes: str) -> dict[str, str]:
    """What a process needs to know; without a moment it records all changes of files."""
    asked = None if moment is None else asdict(moment)
    return {VARIABLE: json.dumps({"moment": asked, "notes": notes})}


def controlled_by(file: str) -> dict[str, str]:
    """What a process needs to know that shall look at a file for its moment, at every change."""
    return {VARIABLE: json.dumps({"control": file})}


def watch_as_asked() -> None:
    """Watch for the moment in the environment, if there is one."""
    if VARIABLE not in os.environ:
        return
    asked = json.loads(os.environ[VARIABLE])
    if "control" in asked:
        _watch_for_what_is_written_to(asked["control"])
        return
    notes, moment = asked["notes"], asked["moment"]
    if moment is None:
        _watch_files(lambda event, path, _: _record(notes, event, path))
    elif "function" in moment:
        _watch_calls(CallMoment(**moment), notes)
    else:
        _watch_for(FileMoment(**moment), notes)


def stop(notes: str) -> None:
    """Stop this process; only the first process that comes here does so."""
    try:
        note = os.open(f"{notes}/stopped", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(note, str(os.getpid()).encode())
    os.close(note)
    os.kill(os.getpid(), signal.SIGSTOP)


def _record(notes: str, event: str, path: str) -> None:
    note = os.open(f"{notes}/trace-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(note, f"{event}\t{path}\n".encode())
    os.close(note)


def _watch_for(moment: FileMoment, notes: str) -> None:
    count = _Counter(moment, notes)
    _watch_files(count)


def _watch_for_what_is_written_to(control: str) -> None:
    """Watch for a moment that may change while the process lives: a node of a cluster, say."""
    counters: dict[str, _Counter] = {}

    def look(event: str, path: str, source: str) -> None:
        try:
            with open(control, encoding="utf-8") as file:  # noqa: PTH123
                text = file.read()
        except FileNotFoundError:
            return
        if text not in counters:
            asked = json.loads(text)
            counters[text] = _Counter(FileMoment(**asked["moment"]), asked["notes"])
        counters[text](event, path, source)

    _watch_files(look)


class _Counter:
    """Counts the changes that are a moment, and stops the process at the last."""

    def __init__(self, moment: FileMoment, notes: str) -> None:
        self._moment, self._notes, self._left = moment, notes, moment.count

    def __call__(self, event: str, path: str, source: str) -> None:
        moment = self._moment
        if moment.event in ("any", event) and fnmatch.fnmatchcase(path, moment.path):
            self._left -= 1
            if self._left == 0:
                if moment.torn and os.path.isfile(source):  # noqa: PTH113
                    os.truncate(source, os.path.getsize(source) // 2)  # noqa: PTH202
                stop(self._notes)


def _watch_files(look: Callable[[str, str, str], None]) -> None:
    """Call a function with every change of this process: event, path, path before a renaming."""
    inside = threading.local()

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in CHANGES and (name != "open" or not _writes(arguments)):
            return
        if getattr(inside, "hook", False) or threading.current_thread().name == RENEWAL:
            return
        inside.hook = True
        try:
            event = CHANGES.get(name, "write")
            path, folder = arguments[0], arguments[1] if event == "remove" else -1
            if event == "rename":
                path, folder = arguments[1], arguments[3]
            look(event, _absolute(path, folder), _absolute(arguments[0], -1))
        finally:
            inside.hook = False

    sys.addaudithook(hook)


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, _, flags = arguments
    return not isinstance(path, int) and bool(flags & WRITING)


def _absolute(path: Any, folder: Any) -> str:
    """The absolute path of a name, which may be one in an open folder."""
    name = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)  # noqa: PTH115, PTH118
    return os.path.abspath(name)  # noqa: PTH100


def _watch_calls(moment: CallMoment, notes: str) -> None:
    module, _, name = moment.function.partition(":")
    left = moment.count

    def replace() -> None:
        *outer, last = name.split(".")
        place = functools.reduce(getattr, outer, sys.modules[module])
        function = getattr(place, last)

        @functools.wraps(function)
        def counted(*args: Any, **more: Any) -> Any:
            nonlocal left
            if not _has(moment.argument, args):
                return function(*args, **more)
            left -= 1
            here = left == 0
            if here and not moment.after:
                stop(notes)
            result = function(*args, **more)
            if here and moment.after:
                stop(notes)
            return result

        setattr(place, last, counted)

    if module in sys.modules:
        replace()
    else:
        sys.meta_path.insert(0, _AfterImport(module, replace))


def _has(pattern: str, arguments: tuple[Any, ...]) -> bool:
    texts = [str(one) for one in arguments if isinstance(one, str | os.PathLike)]
    return not pattern or any(fnmatch.fnmatchcase(text, pattern) for text in texts)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Does something when a module has been imported."""

    def __init__(self, module: str, action: Callable[[], None]) -> None:
        self._module, self._action = module, action

    def find_spec(self, name: str, _path: Any, _target: Any = None) -> Any:
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def executed(module: Any) -> None:
            execute(module)
            self._action()

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec
