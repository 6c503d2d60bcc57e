"""What the HTTP filters of a listener do, and what routes change about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from meshsdk.matching import ALWAYS, NEVER, Fraction, HeaderMatch, StringMatch


@dataclass(frozen=True, slots=True)
class FaultDelay:
    """`seconds` None: the caller chooses by x-envoy-fault-delay-request."""

    seconds: float | None
    fraction: Fraction


@dataclass(frozen=True, slots=True)
class FaultAbort:
    """Neither status given: the caller chooses by x-envoy-fault-abort-request."""

    fraction: Fraction
    http_status: int | None = None
    grpc_status: int | None = None
    body: str | None = None
    """In place of Envoy's text."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Envoy `HTTPFault`: applies to calls whose headers match and, if given, to one cluster.

    Attributes:
        downstream_nodes: only calls with one of these in x-envoy-downstream-service-node.
        max_active: calls with a fault at the same time; None is no limit. Only 0, which switches
            the fault off, is honoured.
    """

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None
    headers: tuple[HeaderMatch, ...] = ()
    upstream_cluster: str = ""
    downstream_nodes: tuple[str, ...] = ()
    max_active: int | None = None


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """Envoy `CorsPolicy` of one level; what is empty or None here, a less specific level says.

    Attributes:
        enabled, shadow: shares of the calls, asked of the most specific level only.
        forward_preflights: whether a preflight of an origin that is not allowed is sent on.
    """

    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: str = ""
    allow_headers: str = ""
    expose_headers: str = ""
    max_age: str = ""
    allow_credentials: bool | None = None
    allow_private_network: bool | None = None
    forward_preflights: bool | None = None
    enabled: Fraction = ALWAYS
    shadow: Fraction = NEVER


class RequireTls(enum.Enum):
    """Envoy `VirtualHost.TlsRequirementType`."""

    NONE = 0
    EXTERNAL_ONLY = 1
    ALL = 2


@dataclass(frozen=True, slots=True)
class LocalRateLimit:
    """Envoy `LocalRateLimit`: kept as configured; enforced by the resilience layer.

    Attributes:
        tokens, fill, interval: bucket size, tokens that come back in each interval, seconds.
        status: of the answer to a call over the limit.
        config: the message in proto-JSON, for what is not listed here.
    """

    tokens: int = 0
    fill: int = 0
    interval: float = 0.0
    status: int = 429
    enabled: Fraction = NEVER
    enforced: Fraction = NEVER
    config: str = ""


@dataclass(frozen=True, slots=True)
class FilterChain:
    """What the filters of a listener do beside its first fault.

    Attributes:
        further_faults: of fault filters behind the first one.
        cors_first: the CORS filter stands before the fault filter.
    """

    further_faults: tuple[Fault, ...] = ()
    cors_first: bool = False
    local_rate_limit: LocalRateLimit | None = None


NO_FILTERS = FilterChain()


@dataclass(frozen=True, slots=True)
class FilterOverrides:
    """The `typed_per_filter_config` of one level; None: inherit.

    Attributes:
        fault: an empty one switches off what a less specific level says.
        cors: False switches CORS off.
    """

    fault: Fault | None = None
    cors: CorsPolicy | bool | None = None
    local_rate_limit: LocalRateLimit | None = None

    def over(self, less_specific: FilterOverrides) -> FilterOverrides:
        """This level before a less specific one."""

        def first(mine: Any, other: Any) -> Any:
            return other if mine is None else mine

        return FilterOverrides(
            first(self.fault, less_specific.fault),
            first(self.cors, less_specific.cors),
            first(self.local_rate_limit, less_specific.local_rate_limit),
        )
