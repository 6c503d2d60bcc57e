"""Writes lines to files and standard streams, beside the calls: none of them ever waits for it."""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
from typing import Any, Final

from meshsdk import fork
from meshsdk.accesslog.record import Record

_log = logging.getLogger("meshsdk.accesslog")

_MOST: Final = 10_000
"""Lines that may wait to be written; of more than that the newest are left out."""
_AT_EXIT: Final = 1.0
_STREAMS: Final = {"/dev/stdout": 1, "/dev/stderr": 2}
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def finish(record: Record, now: float, *how: Any, **more: Any) -> None:
    """Write what a call that is over leaves in the access logs.

    Never raises: a log that cannot be written is said once.

    Args:
        now, how, more: those of `Record.end`.
    """
    try:
        for path, line in record.end(now, *how, **more):
            _sink(path).put(line)
    except Exception:
        if "" not in _said:
            _said.add("")
            _log.exception("a call is missing in the access log")


_said: set[str] = set()
_sinks: dict[str, Sink] = {}


def _sink(path: str) -> Sink:
    found = _sinks.get(path)
    # Without a lock: of two that are made, one stays, and the other one has done nothing.
    return _sinks.setdefault(path, Sink(path)) if found is None else found


class Sink:
    """One file, appended to line by line by a thread of its own, which the first line starts.

    A line is one write: lines of several processes do not run into each other.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = _STREAMS.get(path)
        self._complained = False
        self.forget()
        fork.follow(self)

    def forget(self) -> None:
        """In a forked child: the lines that wait are its parent's."""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # Reentrant: the garbage collector may end a call while this thread holds it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Have a line written; waits for nothing."""
        if self._lines.qsize() >= _MOST:
            self._complain("is slower than the calls: lines are left out")
            return
        self._lines.put(line)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="meshsdk-accesslog", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # the interpreter exits: no thread starts any more
            self._lines.put(None)
            self._run()

    def at_exit(self) -> None:
        thread = self._thread
        if thread is not None and thread.is_alive():
            self._lines.put(None)
            thread.join(_AT_EXIT)
            self._thread = None  # a line that comes even later is written at once

    def _run(self) -> None:
        lines = self._lines
        while (line := lines.get()) is not None:
            try:
                self._write(line.encode("utf-8", "surrogateescape"))
            except OSError as error:
                self._complain(f"cannot be written: {error}")

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = os.open(self._path, _FLAGS, 0o644)
        while data:
            try:
                data = data[os.write(self._file, data) :]
            except BlockingIOError:  # someone made the stream non-blocking
                select.select([], [self._file], [])

    def _complain(self, problem: str) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("access log %s %s", self._path, problem)
