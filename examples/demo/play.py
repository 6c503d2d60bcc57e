"""The steps in their order, and a table that shows how they go."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from examples.demo import endurance, traffic
from examples.demo.check import Check
from examples.demo.processes import Trouble
from examples.demo.stage import Stage

_log = logging.getLogger("demo")


@dataclass(eq=False)
class Step:
    """One row of the table."""

    number: int
    title: str
    play: Callable[[Stage, Check], Awaitable[None]]
    check: Check = field(default_factory=Check)
    seconds: float | None = None
    """None until it is over."""

    @property
    def result(self) -> str:
        if self.seconds is None:
            return ""
        return "passed" if self.check.passed else "failed"


def steps() -> list[Step]:
    """The sixteen steps, none played yet."""
    plays: list[tuple[str, Callable[[Stage, Check], Awaitable[None]]]] = [
        ("all reviews to v1", traffic.all_to_v1),
        ("canary: 90 % v1, 10 % v3", traffic.canary),
        ("jason to v2", traffic.jason_to_v2),
        ("everyone else to v1", traffic.others_to_v1),
        ("blue-green: v1 → v2 under load", endurance.blue_green),
        ("roll back: v2 → v1 under load", endurance.roll_back),
        ("my-app: 80 % v1, 20 % v2", traffic.new_version),
        ("ratings delayed by 7 s", traffic.delay),
        ("half of ratings aborted, HTTP", traffic.abort_http),
        ("half of ratings aborted, gRPC", traffic.abort_grpc),
        ("redirect", traffic.redirect),
        ("rewrite", traffic.rewrite),
        ("headers", traffic.headers),
        ("ServiceEntry: reviews in east", traffic.east),
        ("rolling restart under load", endurance.rolling_restart),
        ("control plane killed under load", endurance.control_plane_killed),
    ]
    return [Step(number, title, play) for number, (title, play) in enumerate(plays, 1)]


async def play(stage: Stage, all_steps: list[Step], console: Console) -> int:
    """Plays the steps in their order and shows them; how many failed."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8) as live:
            live.update(table(all_steps))
            for step in all_steps:
                live.update(table(all_steps, playing=step))
                await _played(stage, step)
                live.update(table(all_steps))
    else:
        for step in all_steps:
            await _played(stage, step)
            console.print(_line(step), highlight=False, markup=False, soft_wrap=True)
    return sum(not step.check.passed for step in all_steps)


async def _played(stage: Stage, step: Step) -> None:
    started = time.monotonic()
    try:
        await step.play(stage, step.check)
    except Trouble as trouble:
        step.check.that(False, str(trouble))
    except Exception as error:
        _log.exception("step %d", step.number)
        for cause in _leaves(error):
            step.check.that(False, f"{type(cause).__name__}: {cause}")
    for process in stage.processes.casualties():
        process.expected_to_end = True
        step.check.that(False, process.explain())
    step.seconds = time.monotonic() - started


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def table(all_steps: list[Step], playing: Step | None = None) -> Table:
    """All steps as rich shows them."""
    made = Table(title="Bookinfo on the mesh", title_style="bold", box=SIMPLE_HEAD)
    made.add_column("#", justify="right", style="dim")
    made.add_column("step", min_width=18)
    made.add_column("expected", ratio=1)
    made.add_column("counted", ratio=1)
    made.add_column("result")
    made.add_column("s", justify="right", style="dim")
    styles = {"passed": "[bold green]passed[/]", "failed": "[bold red]failed[/]", "": ""}
    for step in all_steps:
        made.add_row(
            str(step.number),
            escape(step.title),
            escape(step.check.expected),
            escape(step.check.counted),
            "[yellow]playing …[/]" if step is playing else styles[step.result],
            "" if step.seconds is None else f"{step.seconds:.1f}",
        )
    return made


def _line(step: Step) -> str:
    return (
        f"{step.number:2d} {step.result.upper()} {step.title}: expected {step.check.expected}; "
        f"counted {step.check.counted} ({step.seconds:.1f} s)"
    )
