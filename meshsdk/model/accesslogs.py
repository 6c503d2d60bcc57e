"""Access logs of a listener: where the lines go, what stands in them, of which calls."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from meshsdk.formats import Format
from meshsdk.matching import Fraction, HeaderMatch
from meshsdk.matching.requests import HeaderSource


class EndedCall(Protocol):
    """What a filter asks of a call that is over.

    Attributes:
        duration: seconds.
        grpc: number of the gRPC status, None where there is none.
        draw: a uniform random number in [0, 1), a new one with each call.
    """

    @property
    def status(self) -> int: ...
    @property
    def duration(self) -> float: ...
    @property
    def flags(self) -> tuple[str, ...]: ...
    @property
    def grpc(self) -> int | None: ...
    @property
    def request(self) -> HeaderSource: ...
    @property
    def draw(self) -> Callable[[], float]: ...


class LogFilter(Protocol):
    """Chooses calls to log (Envoy `AccessLogFilter`)."""

    def takes(self, call: EndedCall) -> bool: ...


class Measure(enum.Enum):
    STATUS = "status"
    DURATION = "duration"
    """In milliseconds."""


class Comparison(enum.Enum):
    EQ = 0
    GE = 1
    LE = 2
    NE = 3


@dataclass(frozen=True, slots=True)
class Compares:
    """`ComparisonFilter` of the status or the duration."""

    measure: Measure
    operator: Comparison
    value: int

    def takes(self, call: EndedCall) -> bool:
        of_status = self.measure is Measure.STATUS
        found = call.status if of_status else int(call.duration * 1000)
        return {
            Comparison.EQ: found == self.value,
            Comparison.GE: found >= self.value,
            Comparison.LE: found <= self.value,
            Comparison.NE: found != self.value,
        }[self.operator]


@dataclass(frozen=True, slots=True)
class Sampled:
    """`RuntimeFilter`, without a runtime: a share of the calls."""

    fraction: Fraction

    def takes(self, call: EndedCall) -> bool:
        return self.fraction.holds(call.draw())


@dataclass(frozen=True, slots=True)
class HasHeader:
    """`HeaderFilter`: of the request as it was sent."""

    header: HeaderMatch

    def takes(self, call: EndedCall) -> bool:
        return self.header.matches(call.request)


@dataclass(frozen=True, slots=True)
class HasFlag:
    """`ResponseFlagFilter`; no flags: any flag will do."""

    flags: tuple[str, ...] = ()

    def takes(self, call: EndedCall) -> bool:
        return bool(set(call.flags) & set(self.flags)) if self.flags else bool(call.flags)


@dataclass(frozen=True, slots=True)
class HasGrpcStatus:
    """`GrpcStatusFilter`; a call without a gRPC status has that of its HTTP status."""

    statuses: frozenset[int]
    exclude: bool = False

    def takes(self, call: EndedCall) -> bool:
        return (call.grpc in self.statuses) != self.exclude


@dataclass(frozen=True, slots=True)
class Every:
    """`AndFilter`; of nothing: all calls."""

    filters: tuple[LogFilter, ...] = ()

    def takes(self, call: EndedCall) -> bool:
        return all(part.takes(call) for part in self.filters)


@dataclass(frozen=True, slots=True)
class Either:
    """`OrFilter`; of nothing: no call."""

    filters: tuple[LogFilter, ...] = ()

    def takes(self, call: EndedCall) -> bool:
        return any(part.takes(call) for part in self.filters)


@dataclass(frozen=True, slots=True)
class JsonLine:
    """A JSON document on one line, whose texts are `Format`s.

    Attributes:
        omit_empty: what has no value is left out; else it is null.
    """

    document: Any = field(hash=False)
    omit_empty: bool = False


@dataclass(frozen=True, slots=True)
class AccessLog:
    """One access log.

    Attributes:
        path: of the file; `/dev/stdout` and `/dev/stderr` are the process's own.
        form: of a line; a text brings its own line break.
    """

    path: str
    form: Format | JsonLine
    filter: LogFilter = Every()
