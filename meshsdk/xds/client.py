"""The handle of the xDS thread: what other threads may ask of it.

Everything that other threads say goes through `_inbox`; what they may read (`status`) is replaced
whole by the xDS thread. The thread itself is `meshsdk.xds.engine`, loaded inside the thread so that
a first call does not pay for importing gRPC in the caller's event loop, and a process without a
mesh does not load it at all.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from meshsdk.fork import unforked
from meshsdk.model import Snapshot
from meshsdk.registration import Workload
from meshsdk.settings import Settings
from meshsdk.xds.lookup import Resolve, system_resolve
from meshsdk.xds.naming import Naming
from meshsdk.xds.store import Saved

if TYPE_CHECKING:
    from meshsdk.xds.engine import Engine

_log = logging.getLogger("meshsdk.xds")

UNCONFIGURED_SECONDS = 0.9
"""Without a bootstrap: how long the default address may take to turn out to be a control plane."""
_PROBE_SECONDS = 0.5
_PROBE_AGAIN = (5.0, 60.0)
"""Without a bootstrap: seconds until the default address is tried again, first and at most."""


BYPASS = Snapshot(bypass=True)
"""Everything passes through."""


@dataclass(frozen=True, slots=True)
class Want:
    """A caller waits for the view of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Serve:
    """What this process serves from now on; `sent` is set when the control plane was told."""

    workload: Workload | None
    sent: threading.Event


@dataclass(frozen=True, slots=True)
class Close:
    """The end; `patience` seconds may be spent on taking leave of the control plane."""

    patience: float


@dataclass(frozen=True, slots=True)
class Status:
    """How the connection is, for `wait_ready` and for error texts.

    Attributes:
        connected: a control plane has answered on the stream that is open now.
        ready: calls can be served.
        error: why there is no connection; empty when there is none to report.
        hopeless_at: monotonic time after which nobody should wait: nothing was configured, and
            a mesh is required.
    """

    server: str
    source: str
    node_id: str
    connected: bool = False
    ready: bool = False
    error: str = ""
    hopeless_at: float | None = None

    def __str__(self) -> str:
        return "connected" if self.connected else "not connected"

    def explain(self, problem: str, waited: float) -> str:
        """`problem` with everything that helps to solve it."""
        if self.connected:
            reason = f"control plane {self.server} is connected but has not sent it"
            advice = "see its log for this node"
        else:
            reason = f"control plane {self.server} (from {self.source}) did not answer"
            reason += f": {self.error}" if self.error else ""
            advice = (
                "start it, or correct the address (MESHSDK_CONTROL_PLANE or GRPC_XDS_BOOTSTRAP); "
                "MESHSDK_ENABLED=false runs without a mesh"
            )
        return f"{problem} after {waited:.1f} s: {reason}; node {self.node_id}; {advice}"


class XdsClient:
    """Args:
    settings: an enabled mesh's.
    publish: weak reference to the function that puts a snapshot in force; when its owner
        is gone the thread ends.
    snapshot: what is in force now. The attribute is what was published last.
    resolve: looks up host names, in threads of its own.
    """

    def __init__(
        self,
        settings: Settings,
        naming: Naming,
        publish: Callable[[], Callable[[XdsClient, Snapshot], None] | None],
        snapshot: Snapshot,
        resolve: Resolve = system_resolve,
    ) -> None:
        assert settings.bootstrap is not None
        bootstrap = settings.bootstrap
        self.settings = settings
        self.naming = naming
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        unsure = settings.required and not bootstrap.explicit
        self.status = Status(
            bootstrap.server.uri,
            bootstrap.source,
            settings.node_id,
            hopeless_at=time.monotonic() + UNCONFIGURED_SECONDS if unsure else None,
        )
        self.snapshot = snapshot
        self.resolve = resolve
        self._publish = publish
        self._probe_delay = _PROBE_AGAIN[0]
        self._inherited: Saved | None = None
        self._engine: Engine | None = None
        self._registered = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meshsdk-xds", daemon=True)

    # --- any thread ----------------------------------------------------------------------------

    def start(self, inherited: Saved | None = None) -> None:
        """Start the thread; `inherited` is the configuration of a forked process's parent."""
        self._inherited = inherited
        self._thread.start()

    def want(self, name: str) -> None:
        self.inbox.put(Want(name))

    def serve(self, workload: Workload | None) -> threading.Event:
        """Replace what is registered; the event is set once the control plane was told."""
        sent = threading.Event()
        self._registered = workload is not None
        self.inbox.put(Serve(workload, sent))
        return sent

    def close(self, seconds: float) -> None:
        """Take leave of the control plane and end the thread, within `seconds`."""
        self.inbox.put(Close(seconds / 2))
        if self._thread is not threading.current_thread():
            self._done.wait(seconds)

    def leave(self, seconds: float) -> None:
        """The interpreter exits: waits only if something would be lost, and not for long."""
        engine = self._engine
        unsaved = engine is not None and engine.unsaved
        self.inbox.put(Close(seconds if self._registered else 0.0))
        if self._registered or unsaved:
            self._done.wait(seconds)
        self.abort()

    def abort(self) -> None:
        """End the thread soon; waits for nothing."""
        self.inbox.put(Close(0.0))
        engine = self._engine
        if engine is not None:
            engine.cancel_stream()

    @property
    def saved(self) -> Saved | None:
        """All that is known now. For a forked child, where the thread does not run any more."""
        return self._engine.saved() if self._engine is not None else self._inherited

    # --- the thread ----------------------------------------------------------------------------

    def publish(self, snapshot: Snapshot, **status: Any) -> bool:
        """Put `snapshot` in force with this status; False when nobody is left to use it."""
        before, self.status = self.status, replace(self.status, **status)
        if snapshot is self.snapshot and self.status == before:
            return True
        publish = self._publish()
        if publish is None:
            return False
        self.snapshot = snapshot
        publish(self, snapshot)
        return True

    def next_probe(self) -> float:
        """Seconds until the default address is tried again: rarer and rarer."""
        delay = self._probe_delay
        self._probe_delay = min(delay * 2, _PROBE_AGAIN[1])
        return delay

    def _run(self) -> None:
        try:
            if self._find_control_plane():
                with unforked():
                    from meshsdk.xds.engine import Engine

                    self._engine = Engine(self, self._inherited)
                self._engine.run()
        except Exception as error:
            _log.exception("the xDS thread failed; the configuration is no longer updated")
            self.status = replace(self.status, connected=False, error=f"internal error: {error!r}")
        finally:
            self._done.set()

    def _find_control_plane(self) -> bool:
        """Whether to go on. Without a bootstrap, only when something listens at the default."""
        bootstrap = self.settings.bootstrap
        assert bootstrap is not None
        if bootstrap.explicit or self.settings.state_dir or self._inherited is not None:
            return True
        while (problem := _refusal(bootstrap.server.uri)) is not None:
            if self.settings.required:
                self.status = replace(self.status, error=problem)
                wait = 0.25
            else:
                warn_of_bypass(bootstrap.server.uri, problem)
                if not self.publish(BYPASS, error=problem):
                    return False
                wait = self.next_probe()
            if self._closed_within(wait):
                return False
        return True

    def _closed_within(self, seconds: float) -> bool:
        """Sleep, but wake up for the end. What else arrives stays for later, in its order."""
        later = []
        end = time.monotonic() + seconds
        closed = False
        while not closed:
            try:
                item = self.inbox.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(item, Serve):
                item.sent.set()
            closed = isinstance(item, Close)
            later.append(item)
        for item in later:
            self.inbox.put(item)
        return closed


_warned_of_bypass = False


def warn_of_bypass(address: str, problem: str) -> None:
    """Say once in the life of the process that there is no mesh."""
    global _warned_of_bypass
    if _warned_of_bypass:
        return
    _warned_of_bypass = True
    _log.warning(
        "no mesh: nothing is configured and there is no control plane at %s (%s); calls go out "
        "unchanged. A control plane that appears there later is used. Set "
        "MESHSDK_CONTROL_PLANE=host:port to use another, MESHSDK_ENABLED=false to be silent, "
        "MESHSDK_REQUIRED=true to make this an error",
        address,
        problem,
    )


def _refusal(address: str) -> str | None:
    """Why nothing can be reached at `address`; None when something accepts connections."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _PROBE_SECONDS):
            return None
    except OSError as error:
        return error.strerror or str(error)
