"""The services that the day-one configuration speaks of, a control plane, and four clients."""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
import pytest

from meshsdk import Mesh
from tests.support.controlplane import service, workload
from tests.support.programs import ROOT, require_data

METHOD = "/day.One/Who"
_PLACES = {
    # (service, version): namespace
    ("productpage", "v1"): "default",
    ("reviews", "v1"): "default",
    ("reviews", "v2"): "default",
    ("reviews", "v3"): "default",
    ("ratings", "v1"): "default",
    ("my-app", "v1"): "default",
    ("my-app", "v2"): "default",
    ("store", "v1"): "default",
    ("store-shadow", "v1"): "default",
    ("backend", "v1"): "default",
    ("order", "v1"): "production",
    ("order", "v2"): "production",
    ("payment", "v1"): "production",
}


@dataclass(eq=False)
class Workload:
    """A running workload and where it listens."""

    name: str
    version: str
    namespace: str
    process: subprocess.Popen[str]
    http: int
    grpc: int
    tcp: int

    @classmethod
    def start(cls, name: str, version: str, namespace: str, *more: str) -> Workload:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.day_one.workload"),
                *("--service", name, "--version", version, *more),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        ports = [int(port) for port in process.stdout.readline().split()]
        assert len(ports) == 3, f"{name} {version} does not start"
        return cls(name, version, namespace, process, *ports)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def requests(self) -> list[str]:
        """`METHOD host path` of each HTTP request that it got."""
        found: list[str] = httpx.get(f"http://127.0.0.1:{self.http}/log", trust_env=False).json()
        return found


@pytest.fixture(scope="session")
def workloads() -> Iterator[dict[str, Workload]]:
    """By `service-version`."""
    found: dict[str, Workload] = {}
    try:
        for (name, version), namespace in _PLACES.items():
            found[f"{name}-{version}"] = Workload.start(name, version, namespace)
        yield found
    finally:
        for one in found.values():
            one.stop()


def _base(workloads: dict[str, Workload]) -> str:
    """Kubernetes Services and WorkloadEntries: what a cluster would bring by itself."""
    texts = []
    for (name, version), namespace in _PLACES.items():
        one = workloads[f"{name}-{version}"]
        port = 8080 if name.startswith(("my-app", "store", "order", "payment")) else 9080
        if version == "v1" and name != "backend":
            texts.append(service(name, f"http:{port}", f"grpc:{port + 1}", namespace=namespace))
        ports = {"http": one.http, "grpc": one.grpc, "tcp-80": one.tcp}
        texts.append(
            workload(
                f"{name}-{version}", "127.0.0.1", name,
                version=version, namespace=namespace, ports=ports,
            )
        )  # fmt: skip
    return "".join(texts)


@dataclass
class Answer:
    """What a client of any kind was told.

    Attributes:
        status: of HTTP, or the name of the gRPC code.
        said: the workload's answer, empty when it gave none.
    """

    status: int | str
    said: dict[str, Any]
    headers: dict[str, str]
    text: str = ""

    @property
    def who(self) -> str:
        return f"{self.said['service']}-{self.said['version']}" if self.said else ""


class Clients:
    """One mesh, and each way to call through it."""

    def __init__(self, control_plane: str, namespace: str) -> None:
        self.mesh = Mesh(control_plane=control_plane, namespace=namespace)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._sync = httpx.Client(transport=self.mesh.transport(), timeout=20)
        self._async = httpx.AsyncClient(transport=self.mesh.async_transport(), timeout=20)
        self._channels: dict[tuple[str, str], Any] = {}

    def close(self) -> None:
        self._sync.close()
        self._await(self._async.aclose())
        for (kind, _), channel in self._channels.items():
            if kind == "sync":
                channel.close()
            else:
                self._await(channel.close())
        self.mesh.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(60)

    def http(self, kind: str, url: str, method: str = "GET", **request: Any) -> Answer:
        if kind == "sync":
            response = self._sync.request(method, url, **request)
        else:
            response = self._await(self._async.request(method, url, **request))
        json_body = response.headers.get("content-type") == "application/json"
        return Answer(
            response.status_code,
            response.json() if json_body else {},
            dict(response.headers),
            response.text,
        )

    def grpc(self, kind: str, target: str, timeout: float = 20, **metadata: str) -> Answer:
        pairs = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        if kind == "sync":
            if (kind, target) not in self._channels:
                self._channels[kind, target] = self.mesh.channel(target)
            call = self._channels[kind, target].unary_unary(METHOD)
            try:
                reply, state = call.with_call(b"", timeout=timeout, metadata=pairs)
            except grpc.RpcError as error:
                return Answer(error.code().name, {}, {}, error.details())
            found = {str(name): str(value) for name, value in state.initial_metadata()}
            return Answer("OK", json.loads(reply), found)
        answer: Answer = self._await(self._aio(target, timeout, pairs))
        return answer

    async def _aio(self, target: str, timeout: float, pairs: Any) -> Answer:  # noqa: ASYNC109
        if ("aio", target) not in self._channels:
            self._channels["aio", target] = self.mesh.aio_channel(target)
        call = self._channels["aio", target].unary_unary(METHOD)(
            b"", timeout=timeout, metadata=pairs
        )
        try:
            reply = await call
        except grpc.RpcError as error:
            return Answer(error.code().name, {}, {}, error.details())
        found = {str(name): str(value) for name, value in await call.initial_metadata()}
        return Answer("OK", json.loads(reply), found)

    def calls(self, host: str, http_port: int) -> dict[str, Callable[..., Answer]]:
        """The four adapters as `call(**headers)` on one service; gRPC is one port further."""
        url, target = f"http://{host}:{http_port}/", f"{host}:{http_port + 1}"
        return {
            "httpx": lambda **headers: self.http("sync", url, headers=_names(headers)),
            "httpx async": lambda **headers: self.http("async", url, headers=_names(headers)),
            "grpc": lambda **headers: self.grpc("sync", target, **headers),
            "grpc aio": lambda **headers: self.grpc("aio", target, **headers),
        }


def _names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


class Day:
    """A control plane on a folder of files, as a user starts it.

    Attributes:
        log: the lines that it has written so far.
    """

    def __init__(self, directory: Path, base: str) -> None:
        self.directory = directory
        self.log: list[str] = []
        (directory / "cluster.yaml").write_text(base)
        self._clients: list[Clients] = []

    def bring(self, *names: str) -> None:
        """Put files of the day-one configuration into the folder, unmodified."""
        for name in names:
            (found,) = require_data("seed-config").glob(f"{name}*.yaml")
            shutil.copy(found, self.directory)

    def start(self, *flags: str) -> Self:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "controlplane", "serve", "--config", str(self.directory)),
                *("--xds-port", "0", "--http-port", "0", *flags),
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line.rstrip())
            found = re.search(r"xDS on (\S+?)[,;.]?(?:\s|$)", line)
            if found:
                self.address = found[1]
                break
        else:
            pytest.fail("\n".join(self.log))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.log.extend(line.rstrip() for line in self._process.stderr)

    def clients(self, namespace: str = "default") -> Clients:
        made = Clients(self.address, namespace)
        self._clients.append(made)
        return made

    def stop(self) -> None:
        for clients in self._clients:
            clients.close()
        self._process.terminate()
        self._reader.join()
        self._process.wait(20)
        assert not [line for line in self.log if "Traceback" in line]


@pytest.fixture
def day(tmp_path: Path, workloads: dict[str, Workload]) -> Iterator[Day]:
    """Not started; bring the files first."""
    made = Day(tmp_path, _base(workloads))
    try:
        yield made
    finally:
        if hasattr(made, "_process"):
            made.stop()


@pytest.fixture
def _loopback_21() -> Iterator[None]:
    """The addresses of row 18 are the demo's too: one at a time."""
    with (Path(tempfile.gettempdir()) / "meshsdk-system-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def counted(call: Callable[..., Answer], times: int, **headers: str) -> Counter[str]:
    """Which workload answered how often; anything else by its status."""
    found: Counter[str] = Counter()
    for _ in range(times):
        answer = call(**headers)
        found[answer.who or str(answer.status)] += 1
    return found


def inside(counted: int, of: int, share: float) -> bool:
    """Whether a count lies inside the 99.99 % binomial interval around `share`."""
    spread = 3.9 * (of * share * (1 - share)) ** 0.5 + 1
    return abs(counted - of * share) <= spread
