"""Who answered: calls are counted by the process that the answer names."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from examples.demo.processes import Processes

CALLS = 1000
CONCURRENCY = 16


def address_of(served_by: str) -> str:
    """`ip:port` out of `reviews-v2; address=127.0.0.13:9080; pid=4711`; empty if there is none."""
    for item in served_by.split("; ")[1:]:
        key, _, value = item.partition("=")
        if key == "address":
            return value
    return ""


def name_of(served_by: str, processes: Processes) -> str:
    """The name of the process that answered; the answer itself if none of ours gave it."""
    process = processes.at(address_of(served_by))
    return process.name if process else f"unknown ({served_by or 'no name in the answer'})"


async def count(
    call: Callable[[], Awaitable[str]], calls: int = CALLS, concurrency: int = CONCURRENCY
) -> Counter[str]:
    """Calls that often, so many at a time, and counts what comes back."""
    found: Counter[str] = Counter()
    left = iter(range(calls))

    async def worker() -> None:
        for _ in left:
            found[await call()] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, calls)):
            group.create_task(worker())
    return found


def told(found: Counter[str]) -> str:
    """`reviews-v1 893, reviews-v3 107`."""
    return ", ".join(f"{name} {number}" for name, number in found.items()) or "nothing"
