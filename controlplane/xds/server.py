"""The gRPC service: aggregated discovery, state of the world, over plain text.

Each stream has a reader (its requests go into the `Hub`) and a writer (what the `Hub` has for it
goes out). A client that does not read holds up its own writer only, and finds the newest content
when it reads again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, Protocol

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from controlplane.translate.node import Node
from controlplane.xds.push import Client, Hub
from controlplane.xds.subscription import ACK_OVERDUE, ORDER, Request

log = logging.getLogger("controlplane.xds.server")

HEALTH_INFORMATION = "type.googleapis.com/istio.v1.HealthInformation"
_LONGEST_ID = 1024
_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", -1),
)


class Observer(Protocol):
    """Who wants to know of workloads that come and go by their streams. Called in the loop."""

    def opened(self, client: Client) -> None:
        """A stream has said who it is, or says it anew."""

    def health(self, client: Client, request: Any) -> None:
        """A HealthInformation request."""

    def closed(self, client: Client) -> None:
        """A stream is gone."""


class XdsServer:
    """The ADS server of one event loop.

    Args:
        hub: clients and world.
        observer: told of workloads.
        clock: monotonic seconds.
    """

    def __init__(self, hub: Hub, observer: Observer | None = None, clock: Any = None) -> None:
        self.hub = hub
        self._observer = observer
        self._clock = clock or time.monotonic
        self._server: grpc.aio.Server | None = None
        self._stopping = asyncio.Event()

    async def start(self, address: str) -> int:
        """Listens on `host:port`; the port.

        Raises:
            RuntimeError: the address cannot be bound.
        """
        server = grpc.aio.server(options=_OPTIONS)
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._stream  # takes bytes: what is malformed is answered, not raised inside gRPC
        )
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    _SERVICE, {"StreamAggregatedResources": handler}
                ),
            )
        )
        try:
            port = server.add_insecure_port(address)
            await server.start()
        except BaseException:
            await server.stop(None)  # else it complains when it is collected
            raise
        self._server = server
        return port

    async def stop(self, grace: float = 1.0) -> None:
        """Ends every stream with UNAVAILABLE and stops; clients keep what they have."""
        self._stopping.set()
        for client in list(self.hub.clients):
            client.wake.set()
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None

    async def _stream(self, _requests: Any, context: Any) -> None:
        first, node = await self._first(context)
        if node is None:
            return
        client = self.hub.connect(node, context.peer())
        reader = asyncio.create_task(self._read(client, first, context), name="ads-reader")
        try:
            await self._write(client, reader, context)
            if reader.done() and isinstance(error := reader.exception(), _Malformed):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if not reader.done():
                reader.cancel()
                await asyncio.wait({reader})
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the control plane is stopping")
        except grpc.aio.InternalError:
            pass  # the client went away while it was written to
        finally:
            reader.cancel()
            self.hub.disconnect(client)
            if self._observer is not None:
                self._observer.closed(client)
            log.debug("%s disconnected", client.node.id)

    @staticmethod
    async def _first(context: Any) -> tuple[Any, Node | None]:
        """The request that says who this is; no node when the stream ends before."""
        try:
            request = _parsed(await context.read())
            return request, None if request is grpc.aio.EOF else _node_of(request)
        except _Malformed as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def _read(self, client: Client, first: Any, context: Any) -> None:
        log.debug("%s connected from %s", client.node.id, client.peer)
        if self._observer is not None:
            self._observer.opened(client)
        request = first
        while request is not grpc.aio.EOF:
            self._take(client, request, is_first=request is first)
            request = _parsed(await context.read())

    def _take(self, client: Client, request: Any, *, is_first: bool) -> None:
        if request.node.id and not is_first:
            self.hub.update_node(client, _node_of(request))
            if self._observer is not None and request.type_url != HEALTH_INFORMATION:
                self._observer.opened(client)
        if request.type_url == HEALTH_INFORMATION:
            if self._observer is not None:
                self._observer.health(client, request)
        elif request.type_url in ORDER:
            self.hub.receive(client, _plain(request), self._clock())
        # Other types are not served (yet): no answer is the answer that clients expect.

    async def _write(self, client: Client, reader: asyncio.Task[None], context: Any) -> None:
        reader.add_done_callback(lambda task: _read_over(task, client))
        while True:
            client.wake.clear()
            while (data := self.hub.next(client, self._clock())) is not None:
                await context.write(data)
            if reader.done() or self._stopping.is_set():
                return
            # Only an answer that is overdue is waited for with a limit.
            waits = client.subscription.waiting_since is not None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.wake.wait(), ACK_OVERDUE if waits else None)


class _Malformed(Exception):
    """A request that means nothing; the text is for whoever sent it."""


def _parsed(data: Any) -> Any:
    if data is grpc.aio.EOF:
        return data
    try:
        return discovery_pb2.DiscoveryRequest.FromString(data)
    except DecodeError as error:
        raise _Malformed(f"not a DiscoveryRequest: {error}") from None


def _node_of(request: Any) -> Node:
    if not request.HasField("node") or not request.node.id:
        raise _Malformed(
            "the first request of a stream must carry node.id, for example "
            "sidecar~10.0.0.1~reviews-1.default~default.svc.cluster.local"
        )
    if len(request.node.id) > _LONGEST_ID or not request.node.id.isprintable():
        raise _Malformed(f"node.id must be at most {_LONGEST_ID} printable characters")
    try:
        return Node.from_proto(request.node)
    except ValueError as error:  # a number that JSON does not have
        raise _Malformed(f"node.metadata: {error}") from None


def _read_over(reader: asyncio.Task[None], client: Client) -> None:
    if not reader.cancelled() and (error := reader.exception()) is not None:
        log.warning("stream of %s broke: %s", client.node.id, error)
    client.wake.set()


def _plain(request: Any) -> Request:
    error = None
    if request.HasField("error_detail"):  # one line: it is shown and logged
        error = " ".join(request.error_detail.message.split())
    return Request(
        request.type_url,
        tuple(request.resource_names),
        request.version_info,
        request.response_nonce,
        error,
    )
