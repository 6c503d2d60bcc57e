"""A raw ADS client: sends what it is told, acknowledges, remembers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tests.support.ads import wait_until

_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"


class AdsClient:
    """One stream over a channel of its own.

    Args:
        address: `host:port` of the server.
        node_id: id of its node; metadata as given.
        acknowledge: answer responses with an ACK.
    """

    def __init__(
        self,
        address: str,
        node_id: str = "sidecar~127.0.0.1~raw.default~default.svc.cluster.local",
        *,
        user_agent: str = "meshsdk",
        acknowledge: bool = True,
        **metadata: Any,
    ) -> None:
        self.node = base_pb2.Node(id=node_id, user_agent_name=user_agent)
        self.node.metadata.update(metadata)
        self.responses: list[discovery_pb2.DiscoveryResponse] = []
        self.content: dict[tuple[str, str], bytes] = {}
        self.names: dict[str, list[str]] = {}
        self.versions: dict[str, str] = {}
        self.status: grpc.StatusCode | None = None
        self._nonces: dict[str, str] = {}
        self._acknowledge = acknowledge
        self._queue: queue.Queue[Any] = queue.Queue()
        self._first = True
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        method = self._channel.stream_stream(
            _METHOD,
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )
        self._call = method(iter(self._queue.get, None))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def subscribe(self, type_url: str, *names: str, version: str = "") -> None:
        """Wants exactly these names of a type."""
        self.names[type_url] = list(names)
        self.versions.setdefault(type_url, version)
        self.send(
            discovery_pb2.DiscoveryRequest(
                type_url=type_url,
                resource_names=names,
                version_info=self.versions[type_url],
                response_nonce=self._nonces.get(type_url, ""),
            )
        )

    def send(self, request: discovery_pb2.DiscoveryRequest) -> None:
        if self._first:
            self._first = False
            request.node.CopyFrom(self.node)
        self._queue.put(request)

    def wait(self, condition: Callable[[], Any], timeout: float = 5.0, what: str = "") -> Any:
        return wait_until(condition, timeout, what)

    def close(self) -> None:
        """Ends the stream in good order."""
        self._queue.put(None)
        self._thread.join(5)
        self._channel.close()

    def kill(self) -> None:
        """Breaks the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._call.cancel()
        self._channel.close()

    def _read(self) -> None:
        try:
            for response in self._received():
                self.responses.append(response)
                self._nonces[response.type_url] = response.nonce
                for resource in response.resources:
                    self.content[resource.type_url, _name(resource)] = resource.value
                if self._acknowledge and response.type_url in self.names:
                    self.versions[response.type_url] = response.version_info
                    self.subscribe(response.type_url, *self.names[response.type_url])
            self.status = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.status = error.code()

    def _received(self) -> Iterator[discovery_pb2.DiscoveryResponse]:
        yield from self._call


def _name(resource: Any) -> str:
    # Field 1 of all four types is the name.
    length = resource.value[1]
    return bytes(resource.value[2 : 2 + length]).decode() if length < 128 else ""
