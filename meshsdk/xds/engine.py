"""The xDS thread: one stream, one loop.

The loop takes one event after the other from the inbox (a caller's wish, a response, the end of a
stream) and looks at its timers. Everything in here belongs to this thread, except `cancel_stream`,
`unsaved` and `saved`, which say who may use them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from meshsdk.fork import HeldForks
from meshsdk.registration import Workload
from meshsdk.xds.backoff import Backoff
from meshsdk.xds.client import BYPASS, UNCONFIGURED_SECONDS, Close, Serve, Want, warn_of_bypass
from meshsdk.xds.configuration import Configuration
from meshsdk.xds.dns import Answer
from meshsdk.xds.lookup import Lookups
from meshsdk.xds.node import HEALTH_INFORMATION, health_request, node_message
from meshsdk.xds.store import Saved, saver_of
from meshsdk.xds.transport import AdsStream, Connected, Ended, Received

if TYPE_CHECKING:
    from meshsdk.xds.client import XdsClient

_log = logging.getLogger("meshsdk.xds")

_KEEPALIVE_SECONDS = 30.0
_RESTORE_SECONDS = 0.5
_CONNECT_SECONDS = 1.0
_CONFIRM_SECONDS = 60.0
_NEVER = float("inf")


class Engine:
    """Args:
    client: whose inbox is served, and whose status and snapshot are kept.
    inherited: configuration to start from instead of the one on disk (after a fork).
    """

    def __init__(self, client: XdsClient, inherited: Saved | None) -> None:
        settings = client.settings
        assert settings.bootstrap is not None
        self._client = client
        self._settings = settings
        self._server = settings.bootstrap.server
        self._unsure = not settings.bootstrap.explicit
        self._inherited = inherited
        self._workload: Workload | None = None
        self._configuration = Configuration(
            node_message(settings, None), client.naming, settings.max_listeners, client.snapshot
        )
        self._lookups = Lookups(client.resolve, client.inbox.put)
        self._saver = saver_of(settings)
        self._backoff = Backoff(settings.reconnect_max, random.random)
        self._keepalive = _KEEPALIVE_SECONDS
        self._stream: AdsStream | None = None
        self._unsent: list[Any] = []
        self._opened = 0.0
        self._told_workload = False
        self._connected = False
        self._complained = False
        self._closing: Close | None = None
        self._error = ""
        # What may not be published yet, and until when: see _run_timers.
        self._restoring = False
        self._restore_at = _NEVER
        self._bypassing = False
        self._bypass_at = _NEVER
        self._reconnect_at = _NEVER
        self._confirm_at = _NEVER
        self._forks = HeldForks(_CONNECT_SECONDS)

    # --- other threads --------------------------------------------------------------------------

    def cancel_stream(self) -> None:
        """Break the stream, waiting for nothing. Any thread."""
        stream = self._stream
        if stream is not None:
            stream.cancel()

    @property
    def unsaved(self) -> bool:
        """Whether something is not on disk yet that should be. Any thread may look."""
        return self._saver is not None and self._saver.due is not None

    def saved(self) -> Saved | None:
        """All that is known. For a forked child, where this thread does not run any more."""
        saved = self._configuration.saved(self._confirmed())
        return saved if saved.resources else self._inherited

    def _confirmed(self) -> float:
        restored = self._configuration.restored
        unconfirmed = self._configuration.machine.unconfirmed
        return restored.confirmed if restored and unconfirmed else time.time()

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `Close`."""
        self._begin()
        self._answer()
        while self._closing is None:
            try:
                self._turn()
            except Exception as error:
                _log.exception("internal error; the stream to the control plane is started anew")
                self._stream_over(f"internal error: {error!r}", time.monotonic())
        self._end(self._closing.patience)

    def _begin(self) -> None:
        now = time.monotonic()
        self._take(self._drained(), now)  # so that the first requests say what is known already
        if self._closing is not None:
            return
        if self._unsure:
            self._bypass_at = now + UNCONFIGURED_SECONDS
        self._open(now)
        saved = self._inherited or (self._saver.store.load() if self._saver else None)
        if saved is not None:
            self._send(self._configuration.restore(saved, now))
            self._restoring = True
            self._restore_at = now + _RESTORE_SECONDS
            self._bypass_at = _NEVER

    def _turn(self) -> None:
        events = self._next_events()
        now = time.monotonic()
        self._take(events, now)
        self._run_timers(now)
        self._answer()

    def _answer(self) -> None:
        """Publish first: what is acknowledged is in effect."""
        self._publish()
        unsent, self._unsent = self._unsent, []
        if self._stream is not None:
            for request in unsent:
                self._stream.send(request)

    def _next_events(self) -> list[Any]:
        """At least one event, unless a timer is due first; then all that is there."""
        due = self._next_timer()
        wait = None if due == _NEVER else max(0.0, due - time.monotonic())
        try:
            first = self._client.inbox.get(timeout=wait)
        except queue.Empty:
            return []
        return [first, *self._drained()]

    def _drained(self) -> list[Any]:
        """All that is in the inbox now."""
        events = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._client.inbox.get_nowait())
        return events

    def _next_timer(self) -> float:
        timers = [self._restore_at, self._bypass_at, self._reconnect_at, self._confirm_at]
        timers.append(self._forks.until)
        timers.append(self._configuration.deadline or _NEVER)
        if self._saver is not None:
            timers.append(self._saver.due or _NEVER)
        return min(timers)

    def _take(self, events: Iterable[Any], now: float) -> None:
        wishes = []
        for event in events:
            if isinstance(event, Want):
                wishes.append(event.name)
            else:
                self._handle(event, now)
        self._send(self._configuration.want(wishes, now))
        if wishes and self._unsure and not self._bypassing:
            self._bypass_at = min(self._bypass_at, now + UNCONFIGURED_SECONDS)

    def _handle(self, event: Any, now: float) -> None:
        match event:
            case Received():
                self._received(event, now)
            case Ended() if event.stream is self._stream:
                self._stream_over(event.reason, now)
            case Connected() if event.stream is self._stream:
                self._now_connected(answered=False)
            case Answer():
                self._send(self._configuration.answered(event, now))
            case Serve():
                self._serve(event, now)
            case Close():
                self._closing = event

    def _run_timers(self, now: float) -> None:
        if now >= self._forks.until:
            self._forks.let_go()
        if now >= self._reconnect_at:
            self._open(now)
        if now >= self._restore_at:
            self._show_restored(now)
        if now >= self._bypass_at:
            self._bypass("it accepts connections but does not answer as a control plane")
        if now >= self._confirm_at and self._saver is not None:
            self._confirm_at = now + _CONFIRM_SECONDS
            self._saver.store.confirm()
        if self._saver is not None:
            self._saver.run(now, self._configuration)
        self._send(self._configuration.tick(now))
        self._lookups.start(self._configuration.due(now))

    # --- the stream -----------------------------------------------------------------------------

    def _open(self, now: float) -> None:
        self._reconnect_at = _NEVER
        self._opened = now
        try:
            self._forks.hold(now)
            self._stream = AdsStream(self._server, self._client.inbox.put, self._keepalive)
        except OSError as error:
            self._stream_over(f"{error.filename}: {error.strerror}", now)
            return
        self._told_workload = False
        requests = self._configuration.machine.connected(now)
        if self._workload is not None:
            requests.append(self._health())
        if not self._configuration.wanted:
            # Nothing is asked, so nothing will be answered: the connection itself must do.
            self._stream.watch()
        self._send(requests)

    def _send(self, requests: Iterable[Any]) -> None:
        """With the end of this turn."""
        if self._stream is not None:
            self._unsent.extend(requests)

    def _received(self, event: Received, now: float) -> None:
        if event.stream is not self._stream:
            return
        if event.response.type_url == HEALTH_INFORMATION:
            for error in event.response.resource_errors:
                _log.error("not registered: %s", error.error_detail.message)
        else:
            self._now_connected(answered=True)
            self._send(self._configuration.received(event.response, now))
            if self._saver is not None:
                self._saver.changed(now)
        event.stream.resume()

    def _now_connected(self, *, answered: bool) -> None:
        self._forks.let_go()
        if answered:
            self._unsure = self._restoring = False
            self._restore_at = _NEVER
        if answered or not self._configuration.wanted:
            self._bypassing = False
            self._bypass_at = _NEVER
        if self._connected:
            return
        self._connected, self._complained, self._error = True, False, ""
        self._confirm_at = self._opened + _CONFIRM_SECONDS
        _log.info("connected to control plane %s as %s", self._server.uri, self._settings.node_id)

    def _stream_over(self, reason: str, now: float) -> None:
        stream, self._stream = self._stream, None
        self._unsent.clear()
        if stream is not None:
            stream.close()
        self._forks.let_go()
        machine = self._configuration.machine
        answered, self._connected, self._error = self._connected, False, reason
        machine.disconnected(now, reason)
        self._confirm_at = _NEVER
        if "too_many_pings" in reason:  # gRFC A8: the server wants fewer keep-alive pings
            self._keepalive *= 2
        delay = self._backoff.after(answered=answered, lasted=now - self._opened)
        self._reconnect_at = now + delay
        if self._restoring:
            self._show_restored(now)
        elif self._unsure:
            self._bypass(reason)
        self._complain(reason)

    def _complain(self, reason: str) -> None:
        """Once per outage."""
        if self._complained or self._bypassing:
            return
        self._complained = True
        _log.warning(
            "control plane %s (from %s) is away: %s; %s, and it is tried again",
            self._server.uri,
            self._client.status.source,
            reason,
            "the last configuration stays in use" if self._has_views() else "nothing is known yet",
        )

    def _has_views(self) -> bool:
        return bool(self._configuration.snapshot().listeners)

    # --- what is served -------------------------------------------------------------------------

    def _serve(self, event: Serve, now: float) -> None:
        before, self._workload = self._workload, event.workload
        node = node_message(self._settings, self._workload)
        self._configuration.machine.node = node
        self._send(self._configuration.serve(self._server_listeners(), now))
        if self._stream is None or (before is None and self._workload is None):
            event.sent.set()
            return
        self._send([self._health()])
        self._answer()
        self._stream.notify_sent(event.sent)

    def _health(self) -> Any:
        self._told_workload = True
        return health_request(self._configuration.machine.node, self._workload)

    def _server_listeners(self) -> set[str]:
        workload = self._workload
        if workload is None:
            return set()
        address = workload.address or self._settings.address
        host = f"[{address}]" if ":" in address else address
        naming = self._client.naming
        names = {naming.server_listener_name(f"{host}:{port}") for port in workload.ports.values()}
        return names - {""}

    # --- what is published ----------------------------------------------------------------------

    def _publish(self) -> None:
        """Bring snapshot and status up to date, if they are not."""
        client = self._client
        configuration = self._configuration
        if self._bypassing:
            snapshot = BYPASS
        elif self._restoring:
            snapshot = client.snapshot
        else:
            snapshot = configuration.snapshot()
        ready = configuration.complete if configuration.wanted else self._connected
        ready = ready and not self._restoring
        if not client.publish(
            snapshot,
            connected=self._connected,
            ready=ready,
            error=self._error,
            hopeless_at=client.status.hopeless_at if self._unsure else None,
        ):
            self._closing = self._closing or Close(0.0)

    def _show_restored(self, now: float) -> None:
        """The control plane lets us wait: go on with what was saved."""
        self._restoring = False
        self._restore_at = _NEVER
        self._unsure = False
        self._send(self._configuration.want_restored(now))
        restored = self._configuration.restored
        assert restored is not None
        _log.warning(
            "control plane %s has not answered yet (%s); the configuration in use was last "
            "confirmed %.0f s ago (%s)",
            self._server.uri,
            self._error or "connecting",
            max(0.0, time.time() - restored.confirmed),
            self._saver.store.path if self._saver else "inherited from the parent process",
        )

    def _bypass(self, reason: str) -> None:
        """Nothing is configured, and nothing is there: everything passes through for now."""
        self._bypass_at = _NEVER
        if self._settings.required:
            return
        self._bypassing = True
        if self._stream is None:
            self._reconnect_at = time.monotonic() + self._client.next_probe()
        warn_of_bypass(self._server.uri, reason)

    # --- the end --------------------------------------------------------------------------------

    def _end(self, patience: float) -> None:
        self._forks.let_go()
        self._lookups.close()
        stream = self._stream
        if stream is not None and patience > 0 and self._told_workload:
            self._take_leave(stream, patience)
        if stream is not None:
            stream.close()
        if self._saver is not None:
            self._saver.flush(self._configuration)
        for event in self._drained():
            self._refuse(event)

    def _take_leave(self, stream: AdsStream, patience: float) -> None:
        """Deregister, and let the control plane read that before the connection is gone."""
        if self._workload is not None:
            self._workload = None
            stream.send(self._health())
        stream.read_out(self._client.inbox, patience, self._refuse)

    def _refuse(self, event: Any) -> None:
        """Nothing is registered any more; whoever waits for it need not."""
        if isinstance(event, Serve):
            event.sent.set()
