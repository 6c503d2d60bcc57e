"""python -m examples.demo: plays the demo; 0 when every step passed, 1 when one failed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.demo.play import Step, play, steps, table
from examples.demo.processes import Trouble, foreign_variables
from examples.demo.stage import Stage

USAGE = 2
INTERRUPTED = 130


def main() -> int:
    given = _arguments()
    for name in foreign_variables(os.environ):
        del os.environ[name]  # the demo's mesh is the demo's, whatever the shell is set up for
    directory = Path(given.logs or tempfile.mkdtemp(prefix="meshsdk-demo-")).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        sys.stderr.write(f"--logs {directory}: it is not empty; give a new directory\n")
        return USAGE
    logging.basicConfig(
        filename=directory / "demo.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    console = Console()
    chosen = [step for step in steps() if not given.step or step.number in given.step]
    try:
        failed = asyncio.run(_until_told(_run(directory, chosen, console, given)))
    except (Trouble, OSError) as trouble:
        console.print(str(trouble), markup=False, highlight=False, soft_wrap=True)
        console.print(f"The logs are in {directory}", soft_wrap=True, highlight=False)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Interrupted. Everything that was started has been stopped.")
        if not given.logs:
            shutil.rmtree(directory, ignore_errors=True)
        return INTERRUPTED
    if given.svg:
        _picture(chosen, Path(given.svg))
    if not failed and not given.keep and not given.logs:
        shutil.rmtree(directory, ignore_errors=True)
    console.print(f"{len(chosen) - failed} passed, {failed} failed", highlight=False)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Bookinfo on the mesh: plays every step and checks what happens.",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave everything running, and say where"
    )
    parser.add_argument(
        "--step", type=int, action="append", metavar="N", help="play only this step (repeatable)"
    )
    parser.add_argument(
        "--one-address", action="store_true", help="use no loopback address but 127.0.0.1"
    )
    parser.add_argument("--logs", metavar="DIR", help="keep the logs, in this new directory")
    parser.add_argument("--svg", metavar="FILE", help="write the finished table as a picture")
    return parser.parse_args()


async def _until_told(demo: Coroutine[Any, Any, int]) -> int:
    """Runs the demo until it ends, or SIGTERM ends it as Ctrl-C would."""
    task = asyncio.ensure_future(demo)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    return await task


async def _run(
    directory: Path, chosen: list[Step], console: Console, given: argparse.Namespace
) -> int:
    started = time.monotonic()
    stage = Stage(directory, one_address=given.one_address)
    kept = False
    try:
        with _busy(console, f"Starting the control plane and {len(stage.programs)} services …"):
            await stage.start()
        failed = await play(stage, chosen, console)
        if given.keep:
            _say_where(stage, console)
            kept = True
    finally:
        try:
            if kept:
                await stage.leave()
            else:
                with _busy(console, "Stopping everything …"):
                    await stage.stop()
        finally:
            if not kept:
                stage.processes.kill()  # who was interrupted while stopping has some left
    _explain(chosen, directory, console)
    console.print(f"It took {time.monotonic() - started:.0f} s.", highlight=False)
    return failed


@contextlib.contextmanager
def _busy(console: Console, text: str) -> Iterator[None]:
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text)
        yield


def _explain(chosen: list[Step], directory: Path, console: Console) -> None:
    for step in chosen:
        if step.check.passed:
            continue
        console.print(f"\nStep {step.number}, {step.title}, failed:", style="bold red")
        for problem in step.check.problems:
            console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    if not all(step.check.passed for step in chosen):
        console.print(f"\nThe logs are in {directory / 'logs'}", highlight=False, soft_wrap=True)


def _say_where(stage: Stage, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    pids = stage.directory / "pids"
    pids.write_text("".join(f"{process.pid}\n" for process in reversed(stage.processes.running)))
    say("\nEverything is left running:")
    for process in stage.processes.running:
        also = f" and gRPC {process.grpc_address}" if process.grpc_address else ""
        say(f"  {process.name:15} http://{process.address}{also}  pid {process.pid}")
    page = stage.processes.named("productpage-v1")
    say(f"The page:           http://{page.address}/productpage")
    say(f"The control plane:  xDS {stage.control_plane.target}, {stage.control_plane.url}")
    say(f"Its configuration:  {stage.configuration.directory} (edit step.yaml and look again)")
    say(f"The logs:           {stage.directory / 'logs'}")
    say(f"To stop it all:     kill $(cat {pids}) && rm -r {stage.directory}")


def _picture(chosen: list[Step], path: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=124, file=nowhere, force_terminal=True)
        console.print(table(chosen))
        console.save_svg(str(path), title="make demo")


if __name__ == "__main__":
    sys.exit(main())
