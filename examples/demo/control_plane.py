"""The control plane of the demo: its process, and what it says of itself over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import httpx

from examples.demo.processes import Process, Processes, Trouble
from examples.demo.topology import CONTROL_PLANE_ADDRESS, Places

_log = logging.getLogger("demo.control_plane")

START_SECONDS = 60.0
EFFECT_SECONDS = 60.0
SLOW_SECONDS = 1.0
_POLL_SECONDS = 0.02

NAME = "control-plane"


class ControlPlane:
    """`meshctl serve` on the demo's configuration directory.

    Attributes:
        target: `host:port` for xDS.
        url: where it answers over HTTP.
    """

    def __init__(self, processes: Processes, places: Places, config: Path, state: Path) -> None:
        host = places.address(CONTROL_PLANE_ADDRESS)
        self._processes = processes
        self._config = config
        self._state = state
        self._host = host
        self._xds_port = places.port(host, 15010)
        self._http_port = places.port(host, 15014)
        self.target = f"{host}:{self._xds_port}"
        self.url = f"http://{host}:{self._http_port}"
        # A connection per question: a kept one may be closed just as the next question is sent.
        once = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False, limits=once)

    @property
    def process(self) -> Process:
        return self._processes.named(NAME)

    async def start(self) -> None:
        """Starts it, at the same ports as before if it ran before, and waits until it serves.

        Raises:
            Trouble: it ended, or does not get ready.
        """
        arguments = ["controlplane", "serve", "--config", str(self._config)]
        arguments += ["--address", self._host, "--xds-port", str(self._xds_port)]
        arguments += ["--http-port", str(self._http_port), "--state-dir", str(self._state)]
        process = self._processes.start(NAME, arguments, {}, address=self.target)
        deadline = time.monotonic() + START_SECONDS
        while not await self._ready():
            if not process.running or time.monotonic() > deadline:
                raise Trouble(f"the control plane does not get ready\n{process.explain()}")
            await asyncio.sleep(_POLL_SECONDS)

    async def kill(self) -> None:
        """Ends it without a chance to say goodbye (SIGKILL)."""
        process = self.process
        process.expected_to_end = True
        process.popen.kill()
        await process.ended(5.0)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _ready(self) -> bool:
        try:
            return (await self._http.get("/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    async def _get(self, path: str) -> Any:
        try:
            answer = await self._http.get(path)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            problem = f"the control plane does not answer {path}: {error!r}"
            raise Trouble(f"{problem}\n{self.process.explain()}") from error
        return answer.json()

    # --- what is in effect -------------------------------------------------------------------

    async def in_effect(self, documents: list[dict[str, Any]]) -> None:
        """Returns when it serves `documents` and every client has confirmed what it was sent.

        Raises:
            Trouble: not within the time; says what is missing.
        """
        await self._until(lambda: self._missing(documents), "the configuration is not in effect")

    async def _missing(self, documents: list[dict[str, Any]]) -> str:
        items = (await self._get("/config"))["items"]
        served = {_identity(item): item.get("spec") for item in items}
        for document in documents:
            if served.get(_identity(document)) != document["spec"]:
                return f"{' '.join(_identity(document))} is not loaded"
        return await self._unconfirmed()

    async def _unconfirmed(self) -> str:
        for client in await self._get("/debug/syncz"):
            for kind, state in client["types"].items():
                if state["status"] not in ("SYNCED", "NOT SENT"):
                    text = f"{client['node']} has {kind} {state['status']}"
                    return f"{text} {state.get('error', '')}".strip()
        return ""

    async def registered(self, addresses: set[str]) -> None:
        """Returns when all of these `ip:port` are healthy endpoints, and every client knows.

        Raises:
            Trouble: not within the time; says who is missing.
        """

        async def missing() -> str:
            absent = addresses - await self.endpoints()
            if absent:
                return f"{', '.join(sorted(absent))} not registered"
            return await self._unconfirmed()

        await self._until(missing, "not everybody is registered")

    async def endpoints(self) -> set[str]:
        """`ip:port` of all healthy endpoints."""
        return {
            f"{endpoint['address']}:{endpoint['port']}"
            for service in await self._get("/debug/registryz")
            for port in service["ports"]
            for endpoint in port["endpoints"]
            if endpoint["health"] == "HEALTHY"
        }

    async def localities(self, hostname: str) -> set[str]:
        """Where the endpoints of a service are, as `region/zone`."""
        return {
            endpoint["locality"]
            for service in await self._get("/debug/registryz")
            if service["hostname"] == hostname
            for port in service["ports"]
            for endpoint in port["endpoints"]
        }

    async def connected(self, names: set[str]) -> None:
        """Returns when workloads of all these names are connected and have what they want.

        Raises:
            Trouble: not within the time; says who is missing.
        """

        async def missing() -> str:
            there = {client["name"] for client in await self._get("/debug/syncz")}
            absent = names - there
            if absent:
                return f"{', '.join(sorted(absent))} not connected"
            return await self._unconfirmed()

        await self._until(missing, "not everybody is connected")

    async def _until(self, missing: Any, problem: str) -> None:
        """Polls until nothing is missing, twice in a row: who confirms a configuration is just
        about to use it."""
        started = time.monotonic()
        calm, last = 0, ""
        while calm < 2:
            seen = await missing()
            calm, last = (0, seen) if seen else (calm + 1, last)
            if seen and time.monotonic() > started + EFFECT_SECONDS:
                raise Trouble(f"{problem} after {EFFECT_SECONDS:.0f} s: {seen}")
            await asyncio.sleep(_POLL_SECONDS)
        if (waited := time.monotonic() - started) > SLOW_SECONDS:
            _log.info("waited %.1f s, at last because %s", waited, last)


def _identity(document: dict[str, Any]) -> tuple[str, str, str]:
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", "default"), metadata["name"]
