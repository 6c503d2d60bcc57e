"""What changes per call: the attempts on an endpoint, and what it reports of its load.

It belongs to the endpoint and outlives views. Weights of load reports: gRFC A58, A51, A114.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from meshsdk.model import Cluster, Endpoint, LoadReports


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a server says of its load (`xds.data.orca.v3.OrcaLoadReport`).

    Attributes:
        qps, eps: requests and errors per second.
        utilization: by name, from 0 to 1. named_metrics: by name, of any meaning.
    """

    application_utilization: float = 0.0
    cpu_utilization: float = 0.0
    mem_utilization: float = 0.0
    qps: float = 0.0
    eps: float = 0.0
    utilization: Mapping[str, float] = field(default_factory=dict)
    named_metrics: Mapping[str, float] = field(default_factory=dict)
    request_cost: Mapping[str, float] = field(default_factory=dict)

    def metric(self, name: str) -> float:
        """The value of `cpu_utilization`, `named_metrics.x`, `utilization.x` …; 0 if absent.

        `utilization.*` is the highest of all of that kind.
        """
        kind, _, key = name.partition(".")
        if not key:
            plain = ("application_utilization", "cpu_utilization", "mem_utilization")
            return float(getattr(self, name)) if name in plain else 0.0
        if kind not in ("utilization", "named_metrics", "request_cost"):
            return 0.0
        values: Mapping[str, float] = getattr(self, kind)
        return max(values.values(), default=0.0) if key == "*" else values.get(key, 0.0)


def weight_of(report: LoadReport, how: LoadReports) -> float:
    """The weight of an endpoint that reports this; 0 where the report says too little.

    Requests per second by utilization: what the endpoint could take if it were busy to the full.
    The most constrained named metric stands for the utilization, else that of the application,
    else that of the processor.
    """
    used = max((report.metric(name) for name in how.metric_names), default=0.0)
    if used <= 0:
        used = report.application_utilization or report.cpu_utilization
    if report.qps <= 0:
        return 0.0
    used += report.eps / report.qps * how.error_utilization_penalty
    return report.qps / used if used > 0 else 0.0


class Usability(enum.Enum):
    """Whether the weight of an endpoint may be used."""

    USABLE = "usable"
    NOT_YET = "not yet usable"
    STALE = "stale"


class LoadWeight:
    """The weight of one endpoint, of its load reports.

    Any thread reports, one at a time looks: all three values are replaced in one assignment.
    """

    __slots__ = ("_known", "how")

    def __init__(self, how: LoadReports) -> None:
        self.how = how
        self._known: tuple[float, float, float | None] | None = None

    def report(self, report: LoadReport, now: float) -> None:
        """Take in a report; one that says too little changes nothing.

        Args:
            now: seconds, of a clock that never goes back.
        """
        weight = weight_of(report, self.how)
        if weight > 0:
            known = self._known
            since = known[2] if known else None
            self._known = (weight, now, now if since is None else since)

    def at(self, now: float) -> tuple[float, Usability]:
        """The weight, 0 while it may not be used. After a time without reports the blackout
        period begins anew with the next one."""
        known = self._known
        if known is None:
            return 0.0, Usability.NOT_YET
        weight, updated, since = known
        if now - updated >= self.how.weight_expiration_period:
            self._known = (weight, updated, None)
            return 0.0, Usability.STALE
        blackout = self.how.blackout_period
        if blackout and (since is None or now - since < blackout):
            return 0.0, Usability.NOT_YET
        return weight, Usability.USABLE


class EndpointState:
    """One endpoint of one cluster and the attempts on it that are under way.

    Any thread may `acquire` and `release`: each is one C call on a list whose length is the
    count. A lock around an integer would cost five times as much, on every call. The xDS thread
    replaces `endpoint` when its weight or metadata change, and `cluster`, which says how to
    connect, when that changes.

    Attributes:
        healthy_since: when it was first seen healthy, by the clock of the pool.
        load: takes load reports where the cluster weighs by them, else None.
    """

    __slots__ = (
        "__weakref__",
        "_marks",
        "cluster",
        "endpoint",
        "healthy_since",
        "load",
        "release",
        "target",
    )

    release: Callable[[], None]
    """End one attempt: exactly once per pick, in a `finally`."""

    def __init__(self, endpoint: Endpoint, cluster: Cluster) -> None:
        self.endpoint = endpoint
        self.cluster = cluster
        self.target = endpoint.target
        self.healthy_since: float | None = None
        self.load: LoadWeight | None = None
        self._marks: list[None] = []
        self.release = self._marks.pop

    @property
    def active(self) -> int:
        """Attempts under way."""
        return len(self._marks)

    def acquire(self) -> None:
        self._marks.append(None)

    def report(self, report: LoadReport, now: float) -> None:
        """Tell the load that a response of this endpoint reported; costs nothing where the
        cluster does not weigh by load (see `load` before decoding a report).

        Args:
            now: seconds, by the clock that the pool was made with.
        """
        if self.load is not None:
            self.load.report(report, now)

    def __repr__(self) -> str:
        return f"<EndpointState {self.target} active={self.active}>"
