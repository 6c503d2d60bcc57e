"""A small real ADS server: state of the world over aggregated streams.

In this process as `AdsServer`, in its own process (to kill it, and for tests that fork) as
`AdsProcess`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, Self

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message

from tests.support.resources import CDS, EDS, LDS, PREFIX, RDS, pack, passthrough_cluster
from tests.support.resources import unknown_host as unknown_host_listener

HEALTH = PREFIX + "istio.v1.HealthInformation"
_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
_ORDER = (CDS, EDS, LDS, RDS)


def name_of(message: Message) -> str:
    return str(getattr(message, "name", "") or getattr(message, "cluster_name", ""))


def wait_until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """The first true value of `condition`; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        time.sleep(0.005)


def free_port() -> int:
    """A loopback port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Stream:
    """One client's stream; everything is guarded by the server's condition."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.node = base_pb2.Node()
        self.names: dict[str, tuple[str, ...]] = {}
        self.sent: dict[str, tuple[tuple[str, ...], str]] = {}
        self.raw: list[discovery_pb2.DiscoveryResponse] = []
        self.open = True


class AdsServer:
    """Serves whatever `set` was given, by name, and remembers what the clients said.

    Args:
        unknown: what a listener name that nobody set is answered with: "absent" (left out of
            the response), "allow_any" or "block_all" (as our control plane does).
        port: 0 for a free one; `stop()` then `start()` comes back on the same port.
    """

    def __init__(self, *, unknown: str = "absent", port: int = 0) -> None:
        self.unknown = unknown
        self.port = port
        self._hung = False
        self.requests: list[discovery_pb2.DiscoveryRequest] = []
        self.acks: list[discovery_pb2.DiscoveryRequest] = []
        self.nacks: list[discovery_pb2.DiscoveryRequest] = []
        self.health: list[discovery_pb2.DiscoveryRequest] = []
        self.nodes: list[base_pb2.Node] = []
        self.streams: list[_Stream] = []
        self.streams_total = 0
        self._resources: dict[str, dict[str, Message]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._server: grpc.Server | None = None
        self._nonce = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def node_seen(self) -> base_pb2.Node | None:
        """The node of the newest stream."""
        return self.nodes[-1] if self.nodes else None

    @property
    def bootstrap(self) -> dict[str, Any]:
        """A stock bootstrap that points here."""
        return {
            "xds_servers": [
                {
                    "server_uri": self.address,
                    "channel_creds": [{"type": "insecure"}],
                    "server_features": ["xds_v3"],
                }
            ],
            "node": {"id": "sidecar~127.0.0.1~test.default~default.svc.cluster.local"},
        }

    @property
    def hung(self) -> bool:
        """Accept everything and answer nothing, while True."""
        return self._hung

    @hung.setter
    def hung(self, value: bool) -> None:
        with self._changed:
            self._hung = value
            self._changed.notify_all()

    # --- life ---

    def start(self) -> Self:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=96, thread_name_prefix="ads"),
            handlers=[_Handler(self)],
            options=[("grpc.so_reuseport", 0)],
        )
        deadline = time.monotonic() + 5
        while True:
            with contextlib.suppress(RuntimeError):
                self.port = self._server.add_insecure_port(self.address)
                break
            assert time.monotonic() < deadline, f"port {self.port} stays taken"
            time.sleep(0.02)
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop at once: streams break, the port is free."""
        server, self._server = self._server, None
        if server is None:
            return
        done = server.stop(None)
        with self._changed:
            for stream in self.streams:
                stream.open = False
            self._changed.notify_all()
        done.wait(5)

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    # --- resources ---

    def set(self, *resources: Message | Iterable[Message]) -> None:
        """Add or replace resources, by type and name; clients hear of it at once."""
        with self._changed:
            for message in _flat(resources):
                kind = PREFIX + message.DESCRIPTOR.full_name
                self._resources.setdefault(kind, {})[name_of(message)] = message
            self._changed.notify_all()

    def replace(self, *resources: Message | Iterable[Message]) -> None:
        """The whole world anew: what is not named here is gone."""
        with self._changed:
            self._resources.clear()
            self.set(*resources)

    def remove(self, kind: str, *names: str) -> None:
        with self._changed:
            for name in names:
                self._resources.get(kind, {}).pop(name, None)
            self._changed.notify_all()

    def send_raw(self, kind: str, resources: Iterable[any_pb2.Any], version: str = "raw") -> None:
        """Push one response as it is to every stream: for malformed resources."""
        with self._changed:
            for stream in self.streams:
                stream.raw.append(
                    discovery_pb2.DiscoveryResponse(
                        type_url=kind, version_info=version, resources=list(resources)
                    )
                )
            self._changed.notify_all()

    def wait(self, condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
        return wait_until(condition, timeout, what)

    def subscribed(self, kind: str = LDS) -> set[str]:
        """The names that live streams want now."""
        with self._changed:
            return {name for stream in self.streams for name in stream.names.get(kind, ())}

    # --- one stream ---

    def serve(
        self, requests: Iterator[discovery_pb2.DiscoveryRequest], context: grpc.ServicerContext
    ) -> Iterator[discovery_pb2.DiscoveryResponse]:
        with self._changed:
            self.streams_total += 1
            stream = _Stream(self.streams_total)
            self.streams.append(stream)
        context.add_callback(lambda: self._closed(stream))
        threading.Thread(target=self._read, args=(stream, requests), daemon=True).start()
        while True:
            with self._changed:
                responses = self._due(stream)
                while not responses and stream.open:
                    self._changed.wait()
                    responses = self._due(stream)
                if not stream.open:
                    return
            yield from responses

    def _closed(self, stream: _Stream) -> None:
        with self._changed:
            stream.open = False
            if stream in self.streams:
                self.streams.remove(stream)
            self._changed.notify_all()

    def _read(self, stream: _Stream, requests: Iterator[discovery_pb2.DiscoveryRequest]) -> None:
        # The iterator raises whatever grpc has for a broken stream, which is how streams end here.
        with contextlib.suppress(Exception):
            for request in requests:
                with self._changed:
                    self._record(stream, request)
                    self._changed.notify_all()
        self._closed(stream)

    def _record(self, stream: _Stream, request: discovery_pb2.DiscoveryRequest) -> None:
        self.requests.append(request)
        if request.HasField("node"):
            stream.node = request.node
            self.nodes.append(request.node)
        if request.type_url == HEALTH:
            self.health.append(request)
            return
        if request.HasField("error_detail"):
            self.nacks.append(request)
        elif request.response_nonce:
            self.acks.append(request)
        stream.names[request.type_url] = tuple(request.resource_names)

    def _due(self, stream: _Stream) -> list[discovery_pb2.DiscoveryResponse]:
        if self._hung:
            return []
        due = list(stream.raw)
        stream.raw.clear()
        for kind in _ORDER:
            names = stream.names.get(kind)
            if not names:
                continue
            found = [m for m in (self._lookup(kind, name) for name in names) if m is not None]
            packed = [pack(message) for message in found]
            version = hashlib.sha256(b"".join(p.value for p in packed)).hexdigest()[:12]
            if stream.sent.get(kind) == (names, version):
                continue
            stream.sent[kind] = (names, version)
            if not found and kind in (RDS, EDS):
                continue
            due.append(
                discovery_pb2.DiscoveryResponse(
                    type_url=kind, version_info=version, resources=packed
                )
            )
        for response in due:
            self._nonce += 1
            response.nonce = str(self._nonce)
        return due

    def _lookup(self, kind: str, name: str) -> Message | None:
        known = self._resources.get(kind, {}).get(name)
        if known is not None or self.unknown == "absent":
            return known
        if kind == LDS:
            return unknown_host_listener(name, allow=self.unknown == "allow_any")
        if kind == CDS and name == "PassthroughCluster":
            return passthrough_cluster()
        return None


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: AdsServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != _METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(
            self._server.serve,
            request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
            response_serializer=discovery_pb2.DiscoveryResponse.SerializeToString,
        )


def _flat(resources: Iterable[Message | Iterable[Message]]) -> Iterator[Message]:
    for item in resources:
        if isinstance(item, Message):
            yield item
        else:
            yield from item


class AdsProcess:
    """An `AdsServer` in a process of its own, that can be killed and started again.

    Args:
        directory: where its resources are handed over (`tmp_path`).
        resources: what it serves, fixed for its life.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *resources: Message | Iterable[Message],
        unknown: str = "absent",
    ) -> None:
        self.port = 0
        self._unknown = unknown
        self._file = directory / f"ads-{os.getpid()}-{id(self)}.bin"
        world = discovery_pb2.DiscoveryResponse(resources=[pack(m) for m in _flat(resources)])
        self._file.write_bytes(world.SerializeToString())
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        command = [sys.executable, "-m", "tests.support.ads", str(self._file)]
        root = pathlib.Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--unknown", self._unknown],
            cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        return self

    def kill(self) -> None:
        """kill -9, and reap."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--unknown", default="absent")
    args = parser.parse_args()
    server = AdsServer(unknown=args.unknown, port=args.port)
    world = discovery_pb2.DiscoveryResponse.FromString(args.file.read_bytes())
    server.set(_unpack(packed) for packed in world.resources)
    server.start()
    print(server.port, flush=True)
    sys.stdin.read()  # until the test that started this process is gone
    os._exit(0)


def _unpack(packed: any_pb2.Any) -> Message:
    from google.protobuf import descriptor_pool, message_factory

    kind = descriptor_pool.Default().FindMessageTypeByName(packed.TypeName())
    message = message_factory.GetMessageClass(kind)()
    packed.Unpack(message)
    return message


if __name__ == "__main__":
    main()
