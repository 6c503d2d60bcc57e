"""One HTTP/1.1 connection to one endpoint: h11 over httpcore's network streams.

Does what httpcore's own connection does, event by event, but is spared the locks and bookkeeping
that a connection needs which several requests may be after: here it belongs to one exchange at a
time, or to an idle stack. And a route's timeout, which is for the whole answer where httpcore's are
per read, can be applied where reads happen.
"""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import h11

from meshsdk._httpx.trip import Trip
from meshsdk._httpx.wire import Wire
from meshsdk.model import UpstreamTls
from meshsdk.tls.context import check_peer, client_context

Key = str | tuple[str, str, UpstreamTls | None]
"""Target; or target, server name and TLS of the mesh, None for that of the application."""

Tracer = Callable[[str, dict[str, Any]], Awaitable[None]]

_MAX_HEAD = 100 * 1024
ALPN = ("http/1.1",)


class Connection:
    """A connection that connects at its first request.

    Attributes:
        used: it has carried a request before.
        reusable: it is open and waits for its next request.
        received: a byte of the present exchange's answer has come.
        sent: a byte of the present exchange's request was handed to the operating system.
        loop: the event loop that the socket belongs to; None for sync and trio.
    """

    __slots__ = (
        "_answering", "_connect", "_core", "_deadline", "_h11", "_in_body", "_readable",
        "_request", "_timeouts", "_tracer", "_trip", "_wire", "began", "closed", "idle_since",
        "key", "loop", "origin", "received", "reusable", "sent", "target", "used",
    )  # fmt: skip

    def __init__(
        self,
        core: Any,
        wire: Wire,
        connect: dict[str, Any],
        *,
        key: Key,
        origin: Any,
        target: str,
        loop: Any,
    ) -> None:
        self._core = core
        self._wire = wire
        self._connect = connect
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._readable: Callable[[], Any] | None = None
        self.key = key
        self.origin = origin
        self.target = target
        self.loop = loop
        self.used = self.closed = self.reusable = False
        self.idle_since = 0.0

    def __repr__(self) -> str:
        state = "closed" if self.closed else "idle" if self.reusable else "active"
        return f"<Connection {self.target} {state}>"

    # --- one exchange ---

    async def exchange(self, request: Any, trip: Trip, tracer: Tracer | None) -> Any:
        """Send a request, receive the head of its response; the body comes from `chunk`.

        Raises:
            RouteTimeout: the route's time was up before the response began.
            Exception: httpcore's, and what the request's own stream raises. The connection is
                closed then.
        """
        self._request, self._trip, self._tracer = request, trip, tracer
        self._timeouts: dict[str, float | None] = request.extensions.get("timeout") or {}
        self._deadline: float | None = None
        self.sent = self.received = self._answering = self._in_body = self.reusable = False
        self.began = time.monotonic()
        try:
            if self._wire.stream is None:
                await self._dial()
            try:
                if tracer is None:
                    await self._send_headers()
                    await self._send_body()
                else:
                    await self._step("http11.send_request_headers", self._send_headers)
                    await self._step("http11.send_request_body", self._send_body)
            except self._core.WriteError:
                pass  # servers may answer and close before they have read everything
            head = await self._step("http11.receive_response_headers", self._receive_head)
            self._answering = True
            return self._response(head)
        except BaseException:
            await self.close()
            await self._tell_closed()
            raise

    async def _step(self, name: str, act: Callable[[], Awaitable[Any]]) -> Any:
        """One step of an exchange, with the events that httpcore's `trace` extension promises."""
        tracer = self._tracer
        if tracer is None:
            return await act()
        await tracer(f"{name}.started", {"request": self._request})
        try:
            value = await act()
        except BaseException as error:
            await tracer(f"{name}.failed", {"exception": error})
            raise
        await tracer(f"{name}.complete", {"return_value": value})
        return value

    async def _dial(self) -> None:
        how = {
            "timeout": self._trip.to_connect(),
            "socket_options": self._connect["socket_options"],
        }
        wire = self._wire
        try:
            if self._connect["uds"] is not None:
                await self._step(
                    "connection.connect_unix_socket",
                    lambda: wire.connect_unix_socket(path=self._connect["uds"], **how),
                )
            else:
                host = self.origin.host.decode("ascii")
                how.update(port=self.origin.port, local_address=self._connect["local_address"])
                await self._step(
                    "connection.connect_tcp", lambda: wire.connect_tcp(host=host, **how)
                )
            if self.origin.scheme == b"https":
                await self._start_tls()
        finally:
            self._trip.connecting += time.monotonic() - self.began

    async def _start_tls(self) -> None:
        assert isinstance(self.key, tuple)
        _, name, tls = self.key
        if tls is None:
            await self._shake_hands(self._own_context(), self._own_server_name(name))
            return
        try:
            context = client_context(tls, ALPN)
        except OSError as error:
            raise self._core.ConnectError(f"TLS: {error}") from error
        await self._shake_hands(context, name or None)
        try:
            check_peer(tls, self._wire.stream.get_extra_info("ssl_object"), name)
        except ssl.SSLCertVerificationError as error:
            raise self._core.ConnectError(str(error.args[0])) from error

    def _own_context(self) -> ssl.SSLContext:
        context: ssl.SSLContext = self._connect["ssl_context"] or self._core.default_ssl_context()
        context.set_alpn_protocols(list(ALPN))
        return context

    def _own_server_name(self, name: str) -> str:
        chosen: str = self._request.extensions.get("sni_hostname") or name
        return chosen

    async def _shake_hands(self, context: ssl.SSLContext, name: str | None) -> None:
        how = {
            "ssl_context": context,
            "server_hostname": name,
            "timeout": self._trip.to_connect(since=self.began),
        }
        await self._step("connection.start_tls", lambda: self._wire.start_tls(**how))

    async def _send_headers(self) -> None:
        request = self._request
        try:
            event = h11.Request(
                method=request.method, target=request.url.target, headers=request.headers
            )
        except h11.LocalProtocolError as error:
            raise self._core.LocalProtocolError(error) from error
        await self._send(event)

    async def _send_body(self) -> None:
        stream = self._request.stream
        if hasattr(stream, "__aiter__") and not hasattr(stream, "__iter__"):
            async for chunk in stream:
                if chunk:
                    await self._send(h11.Data(data=chunk))
        else:
            for chunk in stream:
                if chunk:
                    await self._send(h11.Data(data=chunk))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: Any) -> None:
        data = self._h11.send(event)
        if data:
            await self._wire.write(data, self._timeouts.get("write"))
            self.sent = True

    async def _receive_head(self) -> Any:
        while True:
            event = await self._event()
            if isinstance(event, h11.Response) or event.status_code == 101:
                return event

    def _response(self, event: Any) -> Any:
        stream = self._wire.stream
        status = event.status_code
        if status == 101 or (self._request.method == b"CONNECT" and 200 <= status < 300):
            self._trip.timeout = None  # a route's timeout ends where another protocol begins
            stream = self._upgraded(stream, self._h11.trailing_data[0])
        return self._core.Response(
            status=status,
            headers=event.headers.raw_items(),
            extensions={
                "http_version": b"HTTP/" + event.http_version,
                "reason_phrase": event.reason,
                "network_stream": stream,
            },
        )

    def _upgraded(self, stream: Any, leading: bytes) -> Any:
        core = self._core
        if isinstance(stream, core.AsyncNetworkStream):
            return core._async.http11.AsyncHTTP11UpgradeStream(stream, leading)
        return core._sync.http11.HTTP11UpgradeStream(stream, leading)

    async def chunk(self) -> bytes | None:
        """The next part of the body; None at its end."""
        if self._tracer is not None:
            return await self._traced_chunk(self._tracer)
        event = await self._event()
        return bytes(event.data) if isinstance(event, h11.Data) else None

    async def _traced_chunk(self, tracer: Tracer) -> bytes | None:
        if not self._in_body:
            self._in_body = True
            await tracer("http11.receive_response_body.started", {"request": self._request})
        try:
            event = await self._event()
        except BaseException as error:
            await tracer("http11.receive_response_body.failed", {"exception": error})
            raise
        if isinstance(event, h11.Data):
            return bytes(event.data)
        await tracer("http11.receive_response_body.complete", {"return_value": None})
        return None

    async def _event(self) -> Any:
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise self._core.RemoteProtocolError(error) from error
            if event is not h11.NEED_DATA:
                return event
            data = await self._read()
            if not data and self._h11.their_state is h11.SEND_RESPONSE:
                raise self._core.RemoteProtocolError(
                    "Server disconnected without sending a response."
                )
            self._h11.receive_data(data)

    # --- limits ---

    async def _read(self) -> bytes:
        limit, by_route = self._limit()
        try:
            data = await self._wire.read(limit)
        except self._core.ReadTimeout:
            if by_route:
                raise self._expired() from None
            raise
        if data:
            self.received = True
        return data

    def _limit(self) -> tuple[float | None, bool]:
        """Seconds for one read, and whether they are the route's rather than the caller's."""
        limit = self._timeouts.get("read")
        trip = self._trip
        if trip.waited and limit is not None and not self.received:
            limit = max(limit - trip.waited, 0.001)
        if trip.timeout is None:
            return limit, False
        now = time.monotonic()
        if self._deadline is None:
            # The first read: the request is sent. Connecting counted, sending did not (Envoy).
            self._deadline = now + trip.timeout - trip.connecting
        left = self._deadline - now
        if left <= 0:
            raise self._expired()
        if limit is None or left < limit:
            return left, True
        return limit, False

    def _expired(self) -> Exception:
        """Envoy answers 504 before the response has begun, and resets the stream after."""
        error = self._trip.timed_out()
        if not self._answering:
            return error
        broken: Exception = self._core.RemoteProtocolError(str(error))
        broken.__cause__ = error
        return broken

    # --- its end ---

    async def finish(self) -> None:
        """End of an exchange: ready for the next one if both sides are done, closed otherwise."""
        state = self._h11
        if self.closed:
            return
        if state.our_state is h11.DONE and state.their_state is h11.DONE:
            state.start_next_cycle()
            self.reusable = True
        else:
            await self.close()
        await self._tell_closed()

    async def _tell_closed(self) -> None:
        # Afterwards: a hook that is cancelled must not keep a connection open.
        if self._tracer is not None:
            await self._tracer("http11.response_closed.started", {"request": self._request})
            await self._tracer("http11.response_closed.complete", {"return_value": None})

    async def close(self) -> None:
        self.closed, self.reusable = True, False
        await self._wire.close()

    def stale(self, expiry: float | None, loop: Any) -> bool:
        """Whether an idle connection is of no use any more.

        It is too old, or closed by its server, or belongs to another event loop than `loop`.
        """
        if expiry is not None and time.monotonic() - self.idle_since > expiry:
            return True
        if self.loop is not loop or self.closed:
            return True
        if self._readable is None:
            self._readable = _readable_check(self._wire.stream)
        return bool(self._readable())


def _readable_check(stream: Any) -> Callable[[], Any]:
    """Asks whether an idle socket can be read: then its server has closed it.

    httpcore asks the same, but looks the socket up and makes a poll object every time.
    """
    sock = stream.get_extra_info("socket")
    if sock is None or not hasattr(select, "poll"):
        return lambda: stream.get_extra_info("is_readable")
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return lambda: poll.poll(0)
