"""What every source of configuration offers, and how several become one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from controlplane.model.resource import Finding, Level, Resource, ResourceRef, unique


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a source holds at one moment."""

    resources: tuple[Resource, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What is wrong with the source's documents, and their warnings."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level is Level.ERROR)


class Source(Protocol):
    """A place where configuration lives."""

    def load(self) -> Snapshot:
        """Reads everything now."""
        ...

    def changes(self) -> AsyncGenerator[Snapshot, None]:
        """A new snapshot after every change, until cancelled. Broken input is in its findings."""
        ...


class Writable(Protocol):
    """A source that configuration can be written to."""

    def write(self, document: Mapping[str, Any]) -> str:
        """Creates or replaces one resource; returns where it lies now."""
        ...

    def delete(self, ref: ResourceRef) -> str | None:
        """Removes one resource; returns where it lay, None when there is none."""
        ...


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Several sources as one. Of two resources with one identity the first is kept; it is an error.

    Pure. Order: as the sources are given, then as each lists its resources.
    """
    listed = tuple(snapshots)
    kept, findings = unique(resource for one in listed for resource in one.resources)
    return Snapshot(kept, (*(finding for one in listed for finding in one.findings), *findings))


class Sources:
    """Several sources behind the interface of one. Used by one event loop only."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._latest: list[Snapshot] = [Snapshot()] * len(self._sources)

    def load(self) -> Snapshot:
        self._latest = [source.load() for source in self._sources]
        return merge(self._latest)

    async def changes(self) -> AsyncGenerator[Snapshot, None]:
        """A merged snapshot after a change of any source."""
        queue: asyncio.Queue[None] = asyncio.Queue(maxsize=1)
        # Not a task group: it may not be left from inside a generator that is closed early.
        tasks = [
            asyncio.create_task(self._follow(index, queue)) for index in range(len(self._sources))
        ]
        try:
            while True:
                waiting = asyncio.create_task(queue.get())
                done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                if waiting not in done:
                    waiting.cancel()
                    for task in done:
                        task.result()  # a source that failed ends the whole
                    return
                yield merge(self._latest)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, index: int, queue: asyncio.Queue[None]) -> None:
        async with aclosing(self._sources[index].changes()) as changes:
            async for snapshot in changes:
                self._latest[index] = snapshot
                if queue.empty():
                    queue.put_nowait(None)
