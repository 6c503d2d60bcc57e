"""The ways to make a gRPC channel that the contract suite runs through, and to call on one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

from meshsdk.formats import Format
from meshsdk.grpc import MeshChannel
from meshsdk.grpc_aio import MeshAioChannel
from meshsdk.matching import Fraction
from meshsdk.model import (
    AccessLog,
    AppendAction,
    Fault,
    FaultDelay,
    HeaderMutations,
    HeaderOption,
    Route,
    Snapshot,
)
from tests.support.echo_grpc import EchoRequest, EchoStub
from tests.support.static_mesh import PASSTHROUGH, StaticMesh, forward

NAME = "reviews:9080"

# Nothing that a caller can see differs between these:
#   mesh           the hot path
#   mesh-late      a call starts after a delay, too short to notice
#   mesh-changed   the route looks at the response headers, and changes none
#   mesh-split     each call draws its cluster
#   mesh-logged    each call leaves a line in an access log
#   mesh-outside   the host is not in the registry: PassthroughCluster
#   mesh-off       the mesh is switched off
KINDS = (
    "raw", "mesh", "mesh-late", "mesh-changed", "mesh-split", "mesh-logged", "mesh-outside",
    "mesh-off",
)  # fmt: skip

_NOT_AT_ALL = HeaderOption("x-server", "never", AppendAction.ADD_IF_ABSENT)


def mesh_of(kind: str, target: str) -> StaticMesh:
    """A mesh that sends every call to `target`, in the way that `kind` says."""
    mesh = StaticMesh()
    mesh.endpoints("one", target)
    mesh.endpoints("two", target)
    mesh.listen(NAME, _route(kind))
    if kind == "mesh-logged":
        log = AccessLog("/dev/null", Format("%RESPONSE_CODE% %BYTES_SENT%\n", "-"))
        view = replace(mesh.snapshot.listeners[NAME], access_logs=(log,))
        mesh.publish({**mesh.snapshot.listeners, NAME: view})
    if kind in ("mesh-off", "mesh-outside"):
        mesh.listen(target, forward(PASSTHROUGH.name))
    if kind == "mesh-off":
        mesh.publish({}, bypass=True)
    return mesh


def _route(kind: str) -> Route:
    if kind == "mesh-late":
        return forward("one", fault=Fault(FaultDelay(0.002, Fraction(100))))
    if kind == "mesh-changed":
        return forward("one", mutations=HeaderMutations(response_set=(_NOT_AT_ALL,)))
    if kind == "mesh-split":
        return forward(("one", 50), ("two", 50))
    return forward("one")


class Maker:
    """Makes channels to one target, raw or through a mesh; says what is still open at the end.

    Args:
        raw, meshed: make a channel from (target) and from (mesh, target).
    """

    def __init__(self, kind: str, raw: Callable[..., Any], meshed: Callable[..., Any]) -> None:
        self.kind = kind
        self._raw = raw
        self._meshed = meshed
        self.meshes: list[StaticMesh] = []
        self.channels: list[Any] = []

    def __call__(self, target: str, **more: Any) -> Any:
        if self.kind == "raw":
            channel = self._raw(target, **more)
        else:
            mesh = mesh_of(self.kind, target)
            self.meshes.append(mesh)
            plain = self.kind in ("mesh-off", "mesh-outside")
            channel = self._meshed(mesh, target if plain else NAME, **more)
        self.channels.append(channel)
        return channel

    def active(self) -> int:
        """Attempts that have not been ended."""
        return sum(attempts(mesh.snapshot) for mesh in self.meshes)


def attempts(snapshot: Snapshot) -> int:
    """Attempts under way on the endpoints of a snapshot."""
    return sum(
        endpoint.active
        for view in snapshot.listeners.values()
        for cluster in view.clusters.values()
        for endpoint in cluster.endpoints
    )


class Client:
    """One channel, sync or aio, used the same way by the tests: blocking."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.mesh = StaticMesh()
        self.loop: Any = None
        self.channel: Any = None
        if kind == "aio":
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine: Any) -> Any:
        self.ready()
        return self._run(coroutine)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def open(self, target: str = NAME, **more: Any) -> Client:
        if self.kind == "sync":
            self.channel = MeshChannel(self.mesh, target, **more)
        else:

            async def make() -> Any:
                return MeshAioChannel(self.mesh, target, **more)

            self.channel = self._run(make())
        return self

    @property
    def stub(self) -> Any:
        self.ready()
        return EchoStub(self.channel)

    def ready(self) -> None:
        """Open the channel, from the test's own thread."""
        if self.channel is None:
            self.open()

    def unary(self, text: str = "hi", arguments: Any = None, **request: Any) -> Any:
        """The response; or the error raised."""
        message = EchoRequest(text=text, **request)
        arguments = {"timeout": 10, **(arguments or {})}
        if self.kind == "sync":
            return self.stub.Unary(message, **arguments)

        async def call() -> Any:
            return await self.stub.Unary(message, **arguments)

        return self.run(call())

    def outcome(self, method: str, *arguments: Any, **more: Any) -> tuple[Any, list[Any], Any]:
        """(code, responses, initial metadata) of a call of any arity."""
        if self.kind == "sync":
            return self._outcome(method, *arguments, **more)
        return self.run(self._aio_outcome(method, *arguments, **more))

    def _outcome(self, method: str, *arguments: Any, **more: Any) -> tuple[Any, list[Any], Any]:
        call: Any = getattr(self.stub, method)
        if method in ("Unary", "Up"):
            call = call.future(*arguments, **more)
            replies = [] if call.exception() else [call.result()]
        else:
            call = call(*arguments, **more)
            replies = []
            with contextlib.suppress(grpc.RpcError):
                replies.extend(call)
        return call.code(), replies, call.initial_metadata()

    async def _aio_outcome(self, method: str, *arguments: Any, **more: Any) -> Any:
        call = getattr(self.stub, method)(*arguments, **more)
        replies = []
        try:
            if method in ("Unary", "Up"):
                replies.append(await call)
            else:
                replies = [reply async for reply in call]
        except grpc.RpcError:
            pass
        return await call.code(), replies, await call.initial_metadata()

    def failure(self, *arguments: Any, **more: Any) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            self.unary(*arguments, **more)
        return caught.value

    def close(self) -> None:
        if self.kind == "sync":
            if self.channel is not None:
                self.channel.close()
        else:
            if self.channel is not None:
                self.run(self.channel.close())
            self.loop.call_soon_threadsafe(self.loop.stop)


def calls_of(method: str) -> list[Any]:
    """Arguments for a call of `method`."""
    message = EchoRequest(text="x", count=1)
    return [iter([message])] if method in ("Up", "Both") else [message]
