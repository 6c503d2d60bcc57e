"""Threads and coroutines that wait for a condition which another thread makes true."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Waiters:
    """Any thread may wait; whoever makes a condition true calls `wake()` afterwards.

    `_changed` guards the set of waiting coroutines and is held for a moment only, never while a
    condition is being waited for.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._coroutines: set[_Coroutine] = set()

    def wait(self, due: Callable[[], bool], seconds: float) -> bool:
        """Block until `due()`, at most `seconds`. Returns `due()`."""
        with self._changed:
            return self._changed.wait_for(due, seconds)

    async def wait_async(self, due: Callable[[], bool], seconds: float) -> bool:
        """`wait` for a coroutine under asyncio.

        Raises:
            RuntimeError: there is no running asyncio loop.
        """
        import asyncio  # loaded by whoever runs a loop; others need not pay for it

        waiter = _Coroutine(asyncio.get_running_loop(), due)
        with self._changed:
            self._coroutines.add(waiter)
        try:
            await waiter.wait(seconds)
        finally:
            with self._changed:
                self._coroutines.discard(waiter)
        return due()

    def wake(self) -> None:
        """Let everybody look again."""
        with self._changed:
            self._changed.notify_all()
            due = [waiter for waiter in self._coroutines if waiter.due()]
        for waiter in due:
            waiter.wake()


class _Coroutine:
    """One coroutine that waits; `due` is asked by the waking thread, the rest runs in the loop."""

    __slots__ = ("_loop", "_woken", "due")

    def __init__(self, loop: asyncio.AbstractEventLoop, due: Callable[[], bool]) -> None:
        self._loop = loop
        self._woken: asyncio.Future[None] = loop.create_future()
        self.due = due

    async def wait(self, seconds: float) -> None:
        if self.due():
            return
        timer = self._loop.call_later(seconds, self._resolve)
        try:
            await self._woken
        finally:
            timer.cancel()

    def _resolve(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._resolve)
