"""Processes that the demo starts, and every one of which it stops by its pid."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TERM_SECONDS = 25.0


class Trouble(Exception):
    """Something that the demo tells its user in one or a few lines."""


@dataclass(eq=False)
class Process:
    """One running program. Touched only by the demo's event loop.

    Attributes:
        address: `ip:port` of its HTTP port: the name by which answers are counted.
    """

    name: str
    address: str
    log: Path
    popen: subprocess.Popen[bytes]
    grpc_address: str = ""
    expected_to_end: bool = field(default=False)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def explain(self) -> str:
        """What became of it, with the last lines that it wrote."""
        status = self.popen.poll()
        state = "is running" if status is None else f"ended with status {status}"
        lines = "\n".join(f"    {line}" for line in self.tail())
        return f"{self.name} (pid {self.pid}) {state}; its log {self.log} ends:\n{lines}"

    def tail(self, count: int = 8) -> list[str]:
        try:
            return self.log.read_text(errors="replace").splitlines()[-count:] or ["(nothing)"]
        except OSError as error:
            return [str(error)]

    def signal(self, number: int) -> None:
        if self.running:
            self.expected_to_end = True
            self.popen.send_signal(number)

    async def ended(self, seconds: float) -> bool:
        """Whether it is gone within the time."""
        deadline = time.monotonic() + seconds
        while self.running:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def leave(self) -> None:
        """SIGTERM, and wait until it is gone.

        Raises:
            Trouble: it did not go, or not in order.
        """
        self.signal(signal.SIGTERM)
        if not await self.ended(TERM_SECONDS):
            raise Trouble(f"{self.name} does not stop on SIGTERM\n{self.explain()}")
        # Having shut down in order, some servers end by the signal that told them to.
        if self.popen.returncode not in (0, -signal.SIGTERM):
            raise Trouble(f"{self.name} did not leave in order\n{self.explain()}")


class Processes:
    """All that were started, the ended ones too: answers of the past are still counted."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._all: list[Process] = []
        self._keep = False

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        address: str,
        grpc_address: str = "",
    ) -> Process:
        """Starts `python -m arguments…` with a log of its own; does not wait for anything."""
        number = sum(process.name == name for process in self._all) + 1
        log = self._logs / (f"{name}.log" if number == 1 else f"{name}-{number}.log")
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=clean_environment() | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the demo, which then stops them in order.
                start_new_session=True,
            )
        process = Process(name, address, log, popen, grpc_address)
        self._all.append(process)
        return process

    @property
    def running(self) -> list[Process]:
        return [process for process in self._all if process.running]

    def named(self, name: str) -> Process:
        """The newest process of a program."""
        return next(process for process in reversed(self._all) if process.name == name)

    def at(self, address: str) -> Process | None:
        """The newest process that had this address."""
        return next((p for p in reversed(self._all) if p.address == address), None)

    def casualties(self) -> list[Process]:
        """Those that ended although nobody told them to."""
        return [p for p in self._all if not p.running and not p.expected_to_end]

    async def stop(self) -> None:
        """Stops everything that still runs: SIGTERM to all, then SIGKILL to who stays."""
        left = self.running
        # Services first: they say goodbye to the control plane, which was started before them.
        for process in reversed(left):
            process.signal(signal.SIGTERM)
        for process in left:
            if not await process.ended(5.0):
                process.popen.kill()
                await process.ended(5.0)

    def kill(self) -> None:
        """Ends at once whatever still runs."""
        for process in self.running:
            process.popen.kill()
            process.popen.wait()


_FOREIGN = ("MESHSDK_", "GRPC_XDS_", "BOOKINFO_")
_PROXIES = {"http_proxy", "https_proxy", "grpc_proxy", "all_proxy"}


def foreign_variables(environ: Mapping[str, str]) -> list[str]:
    """What an environment says about meshes and proxies, and the demo must not hear.

    It has a mesh of its own, and nothing in it leaves this machine.
    """
    return [n for n in environ if n.startswith(_FOREIGN) or n.lower() in _PROXIES]


def clean_environment() -> dict[str, str]:
    """Our environment without those, and with output as it comes."""
    kept = {k: v for k, v in os.environ.items() if k not in foreign_variables(os.environ)}
    return kept | {"PYTHONUNBUFFERED": "1"}
