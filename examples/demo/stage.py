"""Everything that runs during the demo, and the few things that all steps do with it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx

import meshsdk
from examples.bookinfo.instance import HEADER
from examples.bookinfo.protos import ratings_pb2_grpc
from examples.demo.answers import CALLS, count, name_of
from examples.demo.configuration import Configuration
from examples.demo.control_plane import ControlPlane
from examples.demo.processes import Process, Processes, Trouble
from examples.demo.topology import CLIENT_ADDRESS, HOME, PROGRAMS, Places, Program

_log = logging.getLogger("demo.stage")

START_SECONDS = 60.0
SLOW_SECONDS = 3.0
RECONNECT_SECONDS = "1"
CLIENT = "demo"


class Stage:
    """The control plane, Bookinfo and a mesh client of the demo's own.

    Args:
        directory: for configuration and logs.
        one_address: run everything at 127.0.0.1, as where no other address can be bound.

    Attributes:
        http, ratings: how the demo calls services, through its own `mesh`.
    """

    programs = PROGRAMS

    def __init__(self, directory: Path, *, one_address: bool = False) -> None:
        self.directory = directory
        logs = directory / "logs"
        logs.mkdir(parents=True)
        self.processes = Processes(logs)
        self._free = Places(one_address=one_address)
        self._secret = secrets.token_hex(32)
        self._places = {p.name: self._take_place(p) for p in PROGRAMS}
        written = {
            f"{p.address}:{p.port}": _http_address(self._places[p.name])
            for p in PROGRAMS
            if not p.group
        }
        self.configuration = Configuration(directory / "config", written)
        self.control_plane = ControlPlane(
            self.processes, self._free, self.configuration.directory, directory / "state"
        )
        self._direct = httpx.AsyncClient(timeout=2.0, trust_env=False)

    async def start(self) -> None:
        """Starts everything.

        Raises:
            Trouble: something does not start; what did start is running.
        """
        await self.control_plane.start()
        try:
            async with asyncio.TaskGroup() as group:
                for program in self.programs:
                    group.create_task(self._start(program))
        except* Trouble as several:
            raise Trouble("\n".join(map(str, several.exceptions))) from None
        await self._join()
        await self.control_plane.registered(self._registered_addresses())

    async def _join(self) -> None:
        self.mesh = meshsdk.Mesh(
            control_plane=self.control_plane.target,
            namespace="default",
            workload_name=CLIENT,
            address=self._free.address(CLIENT_ADDRESS),
            locality=HOME,
            reconnect_max=float(RECONNECT_SECONDS),
        )
        self.http = httpx.AsyncClient(transport=self.mesh.async_transport(), timeout=20.0)
        self._channel = self.mesh.aio_channel("ratings:9081")
        self.ratings = ratings_pb2_grpc.RatingsStub(  # type: ignore[no-untyped-call]
            self._channel
        )

    async def leave(self) -> None:
        """Ends the demo's own part; what it has started goes on."""
        if hasattr(self, "mesh"):
            await self.http.aclose()
            await self._channel.close()
            await self.mesh.aclose()
        await self._direct.aclose()
        await self.control_plane.aclose()

    async def stop(self) -> None:
        """Ends everything that has been started so far."""
        await self.leave()
        await self.processes.stop()

    # --- programs ----------------------------------------------------------------------------

    def _take_place(self, program: Program) -> tuple[str, int, int]:
        """Address, port for HTTP, port for gRPC or 0: all free."""
        address = self._free.address(program.address)
        port = self._free.port(address, program.port)
        return address, port, self._free.port(address, port + 1) if program.grpc else 0

    async def _start(self, program: Program) -> Process:
        """Starts a process of the program at its place, and waits until it answers."""
        address, port, grpc_port = self._places[program.name]
        process = self.processes.start(
            program.name,
            program.command(address, port, grpc_port),
            self._environment(program, address),
            address=f"{address}:{port}",
            grpc_address=f"{address}:{grpc_port}" if grpc_port else "",
        )
        deadline = time.monotonic() + START_SECONDS
        while not await self._healthy(process):
            if not process.running or time.monotonic() > deadline:
                raise Trouble(f"{program.name} does not start\n{process.explain()}")
            await asyncio.sleep(0.1)
        return process

    def _environment(self, program: Program, address: str) -> Mapping[str, str]:
        return {
            "MESHSDK_CONTROL_PLANE": self.control_plane.target,
            "MESHSDK_NAMESPACE": "default",
            "MESHSDK_WORKLOAD_NAME": program.name,
            "MESHSDK_AUTO_REGISTER_GROUP": program.group,
            "MESHSDK_LABELS": f"app={program.service},version={program.version}",
            "MESHSDK_ADDRESS": address,
            "MESHSDK_LOCALITY": program.locality,
            "MESHSDK_REQUIRED": "true",
            "MESHSDK_RECONNECT_MAX": RECONNECT_SECONDS,
            "MESHSDK_PROPAGATE": "" if program.service == "productpage" else "end-user",
            "BOOKINFO_SECRET": self._secret,
        }

    async def _healthy(self, process: Process) -> bool:
        try:
            answer = await self._direct.get(f"http://{process.address}/health")
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def _registered_addresses(self) -> set[str]:
        """`ip:port` that the control plane has to know, of the newest process of each program."""
        newest = [self.processes.named(p.name) for p in self.programs if p.group]
        addresses = {process.address for process in newest}
        return addresses | {process.grpc_address for process in newest} - {""}

    async def replace(self, program: Program) -> None:
        """A new process for the old one: new first, and when all know it, SIGTERM to the old.

        Raises:
            Trouble: the new one does not start, or the old one does not leave in order.
        """
        old = self.processes.named(program.name)
        self._places[program.name] = self._take_place(program)
        new = await self._start(program)
        if not program.group:
            self.configuration.relocate(old.address, new.address)
        await self.control_plane.registered({new.address, new.grpc_address} - {""})
        await old.leave()

    async def everybody_back(self) -> None:
        """Returns when all are connected to the control plane, the demo included.

        Raises:
            Trouble: somebody does not come back.
        """
        names = {program.name for program in self.programs if program.group}
        await self.control_plane.connected(names | {CLIENT})

    # --- configuration and calls -------------------------------------------------------------

    async def apply(self, name: str) -> None:
        """Puts a file of `config/` in force, and waits until it is in effect everywhere."""
        await self.control_plane.in_effect(self.configuration.write(name))

    async def answers(
        self, url: str, headers: Mapping[str, str] | None = None, calls: int = CALLS
    ) -> Counter[str]:
        """Who answered that many GETs through the mesh; a bad status counts as its own name."""

        async def call() -> str:
            started = time.monotonic()
            answer = await self.http.get(url, headers=dict(headers or {}))
            if (seconds := time.monotonic() - started) > SLOW_SECONDS:
                _log.info("%s took %.1f s: %s", url, seconds, answer.headers.get(HEADER))
            if answer.status_code != 200:
                return f"status {answer.status_code} {answer.text[:80]}"
            return name_of(answer.headers.get(HEADER, ""), self.processes)

        return await count(call, calls)

    async def reviews(
        self, headers: Mapping[str, str] | None = None, calls: int = CALLS
    ) -> Counter[str]:
        return await self.answers("http://reviews:9080/reviews/1", headers, calls)

    def reader(self) -> httpx.AsyncClient:
        """Somebody with a browser: keeps cookies, and calls productpage through the mesh."""
        return httpx.AsyncClient(
            transport=self.mesh.async_transport(),
            base_url="http://productpage:9080",
            timeout=20.0,
        )


def _http_address(place: tuple[str, int, int]) -> str:
    return f"{place[0]}:{place[1]}"
