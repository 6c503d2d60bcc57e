"""One ADS stream on the sync gRPC API: bytes in, bytes out, nothing decided.

Three threads meet here. The owner (the xDS thread) calls every method. gRPC's own thread pulls
requests out of `_outgoing`. A reader thread hands responses to `deliver` and reads the next one
only after `resume()`: what is not processed is not read, so the control plane feels it (flow
control of gRFC A27).
"""

from __future__ import annotations

import contextlib
import inspect
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc._channel  # grpc would import it at the first channel; see meshsdk.fork.unforked
from envoy.service.discovery.v3 import discovery_pb2

from meshsdk.xds.bootstrap import Server, TlsFiles

_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """One response; the next one is read after `stream.resume()`."""

    stream: AdsStream
    response: discovery_pb2.DiscoveryResponse


@dataclass(frozen=True, slots=True, eq=False)
class Connected:
    """There is a connection (only after `watch()`)."""

    stream: AdsStream


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """The stream is over; `reason` is for people."""

    stream: AdsStream
    reason: str


class AdsStream:
    """A stream from its first request to its end; never reused.

    Args:
        deliver: called by the reader thread with `Received` and, once and last, `Ended`.
        keepalive: seconds between pings that find a dead peer.

    Raises:
        OSError: a credentials file cannot be read.
    """

    def __init__(
        self,
        server: Server,
        deliver: Callable[[Received | Connected | Ended], None],
        keepalive: float,
    ) -> None:
        self._deliver = deliver
        self._outgoing: queue.SimpleQueue[
            discovery_pb2.DiscoveryRequest | threading.Event | None
        ] = queue.SimpleQueue()
        self._processed = threading.Semaphore(0)
        self._stopped = False
        metadata = _metadata(server)
        self._channel = open_channel(server, keepalive)
        open_stream = self._channel.stream_stream(
            _METHOD,
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )
        self._call = open_stream(self._requests(), metadata=tuple(metadata))
        threading.Thread(target=self._read, name="meshsdk-xds-read", daemon=True).start()

    def watch(self) -> None:
        """Deliver `Connected` when there is a connection: for a stream on which nothing is asked.

        Any answer to a health check proves it, "unimplemented" too. (The channel's connectivity
        would say it as well, but a child forked while that is being watched crashes in gRPC.)
        """
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        check.future(b"", wait_for_ready=True).add_done_callback(self._checked)

    def _checked(self, answer: grpc.Future[bytes]) -> None:
        assert isinstance(answer, grpc.Call)
        unanswered = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        if answer.code() not in unanswered:
            self._deliver(Connected(self))

    def send(self, request: discovery_pb2.DiscoveryRequest) -> None:
        """Queue a request."""
        self._outgoing.put(request)

    def notify_sent(self, event: threading.Event) -> None:
        """Set `event` when everything queued so far has been handed to the connection."""
        self._outgoing.put(event)

    def resume(self) -> None:
        """The last response is processed: read the next."""
        self._processed.release()

    def finish(self) -> None:
        """No more requests; the control plane may end the stream in peace."""
        self._outgoing.put(None)

    def read_out(
        self, inbox: queue.SimpleQueue[Any], patience: float, other: Callable[[Any], None]
    ) -> None:
        """Finish, and let the control plane read everything before the connection is gone.

        Args:
            inbox: what `deliver` puts events into. other: told what else is in there.
        """
        self.finish()
        end = time.monotonic() + patience
        with contextlib.suppress(queue.Empty):
            while True:
                event = inbox.get(timeout=max(0.0, end - time.monotonic()))
                if isinstance(event, Ended):
                    return
                if isinstance(event, Received):
                    event.stream.resume()
                else:
                    other(event)

    def cancel(self) -> None:
        """Break the stream; waits for nothing. `Ended` still comes."""
        self._stopped = True
        self._outgoing.put(None)
        self._processed.release()
        self._call.cancel()

    def close(self) -> None:
        """Break the stream and free the connection."""
        self.cancel()
        self._channel.close()

    def _requests(self) -> Iterator[discovery_pb2.DiscoveryRequest]:
        # gRPC asks for the next request when the one before has been handed to the connection.
        while (item := self._outgoing.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            else:
                yield item

    def _read(self) -> None:
        try:
            for response in self._call:
                if self._stopped:
                    break
                self._deliver(Received(self, response))
                self._processed.acquire()
            reason = "the control plane ended the stream"
        except grpc.RpcError as error:
            reason = _described(error)
        self._deliver(Ended(self, reason))


def _described(error: grpc.RpcError) -> str:
    if not isinstance(error, grpc.Call):
        return str(error)
    code = error.code()
    return f"{code.name if code else 'UNKNOWN'}: {error.details()}"


def open_channel(server: Server, keepalive: float) -> grpc.Channel:
    """A channel of our own to `server`.

    Instrumentation that wraps grpc's functions is left out: this stream is not the application's.
    The subchannel is not shared either, so that back-off is decided here alone.
    """
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        # Proxies of the environment lead out of the mesh; the control plane is inside.
        ("grpc.enable_http_proxy", 0),
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", -1),
    ]
    channel: grpc.Channel
    if server.tls is None:
        channel = inspect.unwrap(grpc.insecure_channel)(server.uri, options)
    else:
        secure = inspect.unwrap(grpc.secure_channel)
        channel = secure(server.uri, _credentials(server.tls), options)
    return channel


def _credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    def content(path: str) -> bytes | None:
        if not path:
            return None
        with open(path, "rb") as file:
            return file.read()

    return grpc.ssl_channel_credentials(
        root_certificates=content(files.ca_certificate_file),
        private_key=content(files.private_key_file),
        certificate_chain=content(files.certificate_file),
    )


def _metadata(server: Server) -> list[tuple[str, str | bytes]]:
    """The bearer token, read anew for each stream because it is rotated (gRFC A97).

    It goes over TLS or a Unix socket only.
    """
    protected = server.tls is not None or server.uri.startswith("unix")
    if not server.token_file or not protected:
        return []
    with contextlib.closing(open(server.token_file, encoding="utf-8")) as file:
        return [("authorization", f"Bearer {file.read().strip()}")]
