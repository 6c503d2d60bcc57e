"""Steps 5, 6, 15 and 16: what must not fail a single call while calls go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from examples.demo.check import Check
from examples.demo.load import Load
from examples.demo.processes import Trouble
from examples.demo.stage import Stage

LANES = 3
_SHOWN = 5


@asynccontextmanager
async def _under_load(stage: Stage, check: Check) -> AsyncIterator[Load]:
    """Load as long as the body runs; afterwards not one of its calls may have failed."""
    load = Load(stage.mesh, stage.processes)
    try:
        async with load:
            await load.more(100)
            yield load
            await load.more(100)
    finally:
        failures = load.record.failures
        for failure in failures[:_SHOWN]:
            check.that(False, str(failure))
        check.that(len(failures) <= _SHOWN, f"and {len(failures) - _SHOWN} more calls failed")
        share = f"{len(failures)} of {load.record.total} calls failed"
        check.counted = "; ".join(filter(None, (check.counted, share)))
        check.expected = "; ".join(filter(None, (check.expected, "no failed call")))


async def blue_green(stage: Stage, check: Check) -> None:
    await stage.apply("01-all-v1.yaml")
    async with _under_load(stage, check):
        await stage.apply("05-blue-green.yaml")
        check.count(await stage.reviews(), {"reviews-v2": 1})


async def roll_back(stage: Stage, check: Check) -> None:
    await stage.apply("05-blue-green.yaml")
    async with _under_load(stage, check):
        await stage.apply("06-roll-back.yaml")
        check.count(await stage.reviews(), {"reviews-v1": 1})


async def rolling_restart(stage: Stage, check: Check) -> None:
    """Each program in turn, some at a time: the new process first, then SIGTERM to the old one."""
    await stage.apply("14-east.yaml")
    left = iter(stage.programs)
    replaced = 0

    async def lane() -> None:
        nonlocal replaced
        for program in left:
            try:
                await stage.replace(program)
            except Trouble as trouble:
                check.that(False, str(trouble))
            else:
                replaced += 1

    check.expected = f"{len(stage.programs)} programs replaced"
    async with _under_load(stage, check), asyncio.TaskGroup() as group:
        for _ in range(LANES):
            group.create_task(lane())
    check.counted = "; ".join((f"{replaced} programs replaced", check.counted))


async def control_plane_killed(stage: Stage, check: Check) -> None:
    await stage.apply("01-all-v1.yaml")
    check.expected = "rules stay, and change again"
    async with _under_load(stage, check) as load:
        await stage.control_plane.kill()
        await load.more(500)
        check.count(await stage.reviews(calls=200), {"reviews-v1": 1})
        await stage.control_plane.start()
        await stage.everybody_back()
        await stage.apply("05-blue-green.yaml")
        check.count(await stage.reviews(), {"reviews-v2": 1})
