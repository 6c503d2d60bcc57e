"""What happens to a mesh when its process forks or exits.

Forked children only forget. A channel that is freed in a forked child writes a farewell into the
socket that it shares with the parent, and may wait for a lock that a thread of the parent held at
the fork. So a child keeps what it inherited, untouched, for as long as it lives.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import resource
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Followed(Protocol):
    """Something that has to know."""

    def forget(self) -> None:
        """In a forked child: let go of everything, close nothing, wait for nothing."""

    def at_exit(self) -> None:
        """The interpreter exits: end threads; wait for nothing that may take long."""


_followed: weakref.WeakSet[Followed] = weakref.WeakSet()
_inherited: list[object] = []


def follow(thing: Followed) -> None:
    """Tell `thing` of forks and of the exit, as long as it lives."""
    _followed.add(thing)


def followed() -> list[Followed]:
    """All that are followed now."""
    return list(_followed)


def unforked() -> threading.Lock:
    """A lock to hold while a fork would do harm; a fork in another thread waits for it.

    For imports in a thread of ours: a module that another thread was importing when the process
    forked can never be imported in the child. Hold it for such short work only.
    """
    return _unforked


_unforked = threading.Lock()
_FORK_PATIENCE = 10.0
_STACK_OF_UNLIMITED = 8 * 1024 * 1024
_STACK_MORE = 512 * 1024
_held = False


class HeldForks:
    """Makes forks wait while a connection is being made: gRPC is not to be forked just then.

    Args:
        limit: seconds after which they need not wait any longer.

    Attributes:
        until: monotonic time at which `let_go` is due.
    """

    def __init__(self, limit: float) -> None:
        self._lock = unforked()
        self._limit = limit
        self._held = False
        self.until = float("inf")

    def hold(self, now: float) -> None:
        if not self._held:
            self._held = self._lock.acquire(timeout=self._limit)
        self.until = now + self._limit

    def let_go(self) -> None:
        self.until = float("inf")
        if self._held:
            self._held = False
            self._lock.release()


def _before_fork() -> None:
    global _held
    _held = _unforked.acquire(timeout=_FORK_PATIENCE)


def _in_parent() -> None:
    if _held:
        _unforked.release()


def _in_child() -> None:
    global _unforked
    _unforked = threading.Lock()
    if "grpc" in sys.modules:
        _take_fresh_stacks()
    for thing in followed():
        thing.forget()


def _take_fresh_stacks() -> None:
    """Let the threads of this child not stand where threads of its parent stood.

    gRPC's poller remembers the polling thread of the parent by an address on that thread's stack.
    The C library gives the stacks of the vanished threads to new ones, and a poller that finds
    itself remembered aborts the process: without this one child in a hundred. A stack that is
    bigger than the old ones is a new one.
    """
    usual, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if usual == resource.RLIM_INFINITY:
        usual = _STACK_OF_UNLIMITED
    threading.stack_size((threading.stack_size() or usual) + _STACK_MORE)


def _at_exit() -> None:
    for thing in followed():
        thing.at_exit()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
atexit.register(_at_exit)


def abandon(*things: object) -> None:
    """Keep `things` alive for ever, so that nothing in them is closed or freed.

    For use in a forked child, with whatever holds channels, calls or sockets of the parent.
    """
    for thing in things:
        _inherited.append(thing)
        # One reference that is never given back: module globals are freed at interpreter exit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


class WeakCallbacks:
    """Callbacks that live as long as their owners: bound methods are held weakly.

    Called and changed by any thread; each operation works on one list that is replaced whole.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: tuple[Callable[[], Callable[..., Any] | None], ...] = ()

    def add(self, callback: Callable[..., Any]) -> None:
        if hasattr(callback, "__self__") and hasattr(callback, "__func__"):
            reference: Callable[[], Callable[..., Any] | None] = weakref.WeakMethod(callback)
        else:
            reference = lambda: callback  # noqa: E731 - a plain function has no owner to follow
        live = tuple(r for r in self._references if r() is not None)
        self._references = (*live, reference)

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return (callback for r in self._references if (callback := r()) is not None)
