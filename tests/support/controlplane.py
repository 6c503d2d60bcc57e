"""The control plane in the test's own process: a world from YAML text, served on a free port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar

from controlplane.model.parse import load_text
from controlplane.translate.node import Node
from controlplane.world import World
from controlplane.xds.push import Hub
from controlplane.xds.server import Observer, XdsServer

T = TypeVar("T")

SDK_NODE = "sidecar~127.0.0.1~app.default~default.svc.cluster.local"


def make_world(*texts: str) -> World:
    """A world from YAML texts."""
    return World.build([resource for text in texts for resource in load_text(text)])


def make_node(namespace: str = "default", *, sdk: bool = True, **metadata: Any) -> Node:
    """A node of our SDK, or of gRPC's own client."""
    return Node.make(
        f"sidecar~127.0.0.1~app.{namespace}~{namespace}.svc.cluster.local",
        {"GENERATOR": "grpc", "NAMESPACE": namespace, **metadata},
        user_agent="meshsdk" if sdk else "grpc-c++",
    )


class ServedWorld:
    """An `XdsServer` in a thread with a loop of its own."""

    def __init__(self, *texts: str, observer: Callable[[Hub], Observer] | None = None) -> None:
        self._texts = texts
        self._make_observer = observer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served-world")
        self.port = 0
        self.hub: Hub

    def run(self, function: Callable[[], T]) -> T:
        """Calls a function in the loop, where hub and server may be touched."""

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def publish(self, *texts: str) -> None:
        """Serves another world from now on."""
        world = make_world(*texts)
        self.run(lambda: self.hub.publish(world))

    def status(self) -> list[dict[str, Any]]:
        return self.run(lambda: self.hub.status())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the server (again: on the port that it had)."""

        async def begin() -> None:
            self.hub = Hub(make_world(*self._texts))
            observer = self._make_observer(self.hub) if self._make_observer else None
            self._server = XdsServer(self.hub, observer)
            self.port = await self._server.start(f"127.0.0.1:{self.port}")

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(0.2), self._loop).result(10)

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


def service(name: str, *ports: str, namespace: str = "default", app: str = "") -> str:
    """YAML of a Kubernetes Service; ports as `http:9080` or `grpc:9081:5000` (targetPort)."""
    lines = []
    for port in ports:
        kind, number, target = [*port.split(":"), ""][:3]
        lines.append(f"  - {{name: {kind}, port: {number}, targetPort: {target or number}}}")
    listed = "\n".join(lines)
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        f"spec:\n  selector: {{app: {app or name}}}\n  ports:\n{listed}\n---\n"
    )


def workload(
    name: str, address: str, app: str, *, version: str = "v1", namespace: str = "default",
    ports: dict[str, int] | None = None, extra: Iterable[str] = (),
) -> str:  # fmt: skip
    """YAML of a WorkloadEntry."""
    listed = ", ".join(f"{key}: {value}" for key, value in (ports or {}).items())
    more = "".join(f", {item}" for item in extra)
    return (
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\n"
        f"spec: {{address: {address}, labels: {{app: {app}, version: {version}}}, "
        f"ports: {{{listed}}}{more}}}\n---\n"
    )
