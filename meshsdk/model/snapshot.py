"""What a call sees: everything joined, replaced whole and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshsdk.formats import CALLER, Caller
from meshsdk.model.accesslogs import AccessLog
from meshsdk.model.filters import NO_FILTERS, Fault, FilterChain
from meshsdk.model.routes import Listener, RouteConfiguration


@dataclass(frozen=True, slots=True, eq=False)
class ListenerView:
    """One listener joined with everything that its calls may need; replaced, never changed.

    Attributes:
        clusters: each cluster that a route names and that exists, with a `ClusterView` of
            `balancing`. A name that is missing here does not exist (Envoy: 503 NC).
        absent: why the listener cannot be used (it does not exist, or was rejected before any
            good version came); empty when usable.
        passthrough: calls go out unchanged (mesh off, no control plane).
        caller: the calling process, of which header values and hash policies may speak.
    """

    name: str
    route_config: RouteConfiguration | None = None
    clusters: Mapping[str, Any] = field(default_factory=dict)
    fault: Fault | None = None
    max_stream_duration: float | None = None
    absent: str = ""
    passthrough: bool = False
    filters: FilterChain = NO_FILTERS
    caller: Caller = CALLER
    access_logs: tuple[AccessLog, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything that the process knows at one moment. A call takes the reference once.

    Attributes:
        listeners: by resource name; a name that is missing is not known yet.
        bypass: the mesh is off or absent: every name is a passthrough.
        server_listeners: server listeners by resource name (inbound policy, health of config).
        stale_since: Unix time at which the configuration was last confirmed by a control plane,
            when it was read from disk; None while it is live.
    """

    listeners: Mapping[str, ListenerView] = field(default_factory=dict)
    bypass: bool = False
    server_listeners: Mapping[str, Listener] = field(default_factory=dict)
    stale_since: float | None = None

    def view(self, name: str) -> ListenerView | None:
        """The view of a listener; None while it is not known."""
        return _BYPASS if self.bypass else self.listeners.get(name)


_BYPASS = ListenerView("", passthrough=True)
