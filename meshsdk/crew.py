"""Does work beside the calls, a bounded amount of it: in threads, or as tasks of an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

Work = Callable[[], Coroutine[Any, Any, None]]

_THREADS = 16
_PATIENCE = 1.0


class Threads:
    """For the sync side: threads that are there while there is something to do.

    `_lock` guards the rest; it is held for a moment only.

    Args:
        limit: most pieces of work under way and waiting.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._busy = 0
        self._stopped = False

    def take(self, work: Work) -> bool:
        """Whether it will be done."""
        with self._lock:
            if self._stopped or self._busy + len(self._waiting) >= self._limit:
                return False
            self._waiting.append(work)
            more = self._busy < _THREADS
            self._busy += more
        if more:
            threading.Thread(target=self._run, name="meshsdk-mirror", daemon=True).start()
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy -= 1
                    return
                work = self._waiting.popleft()
            coroutine = work()
            try:
                coroutine.send(None)
            except StopIteration:
                continue

    def halt(self) -> None:
        """Begin nothing any more; waits for nothing."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()

    async def stop(self) -> None:
        """`halt`: what is under way ends with its connection."""
        self.halt()


class Tasks:
    """For the async side, under asyncio and trio."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: set[Any] = set()
        self._stopped = False

    def take(self, work: Work) -> bool:
        """Whether it will be done."""
        if self._stopped or len(self._under_way) >= self._limit:
            return False
        loop = asyncio._get_running_loop()
        if loop is None:
            self._take_in_trio(work)
            return True
        task = loop.create_task(work())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return True

    def _take_in_trio(self, work: Work) -> None:
        import trio

        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    await work()
            finally:
                self._under_way.discard(scope)

        self._under_way.add(scope)
        trio.lowlevel.spawn_system_task(run)

    def halt(self) -> list[asyncio.Task[None]]:
        """Cancel what is under way in this loop; what belongs to another ends with that."""
        self._stopped = True
        loop = asyncio._get_running_loop()
        tasks = []
        for each in list(self._under_way):
            if not isinstance(each, asyncio.Task):
                each.cancel()
            elif each.get_loop() is loop:
                each.cancel()
                tasks.append(each)
        return tasks

    async def stop(self) -> None:
        """`halt`, and wait for the end of it."""
        tasks = self.halt()
        if tasks:
            await asyncio.wait(tasks, timeout=_PATIENCE)
