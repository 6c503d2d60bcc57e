"""What a route does with a call."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshsdk.formats import Format
from meshsdk.matching import ALWAYS, NEVER, Fraction, HeaderMatch
from meshsdk.matching.templates import TemplateRewrite
from meshsdk.model.filters import CorsPolicy, Fault
from meshsdk.model.headers import NO_MUTATIONS, HeaderMutations, HeaderOption


@dataclass(frozen=True, slots=True)
class RegexRewrite:
    pattern: str
    substitution: str


@dataclass(frozen=True, slots=True)
class WeightedCluster:
    """One cluster that a route may choose.

    Attributes:
        cluster: its name; empty where `header` names a header of the request that has the name.
        host_rewrite: applied before that of the route.
        fault, cors: stand before those of route, virtual host and filter.
    """

    cluster: str
    weight: int
    mutations: HeaderMutations = NO_MUTATIONS
    host_rewrite: str | None = None
    fault: Fault | None = None
    header: str = ""
    cors: tuple[CorsPolicy, ...] | None = None


# --- retries and hedging: kept as configured; enforced by the resilience layer -----------------


class ResetFormat(enum.Enum):
    SECONDS = 0
    UNIX_TIMESTAMP = 1


@dataclass(frozen=True, slots=True)
class RateLimitedBackOff:
    """Envoy `RateLimitedRetryBackOff`: response headers that say when to retry."""

    headers: tuple[tuple[str, ResetFormat], ...] = ()
    max_interval: float = 300.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Envoy `RetryPolicy`; intervals in seconds.

    Attributes:
        previous_hosts: hosts that were tried already are avoided.
        previous_priorities: update frequency of that retry priority; None: not asked for.
    """

    retry_on: tuple[str, ...]
    num_retries: int = 1
    per_try_timeout: float | None = None
    retriable_status_codes: tuple[int, ...] = ()
    base_interval: float = 0.025
    max_interval: float = 0.25
    per_try_idle_timeout: float | None = None
    retriable_headers: tuple[HeaderMatch, ...] = ()
    retriable_request_headers: tuple[HeaderMatch, ...] = ()
    rate_limited: RateLimitedBackOff | None = None
    previous_hosts: bool = False
    omit_canary_hosts: bool = False
    previous_priorities: int | None = None
    host_attempts: int = 1
    refresh_cluster: bool = False


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    initial_requests: int = 1
    additional_request_chance: Fraction = NEVER
    on_per_try_timeout: bool = False


@dataclass(frozen=True, slots=True)
class InternalRedirect:
    """Envoy `InternalRedirectPolicy`: kept as configured; redirects go to the caller."""

    max_redirects: int = 1
    statuses: tuple[int, ...] = (302,)
    cross_scheme: bool = False
    predicates: tuple[str, ...] = ()
    copied_headers: tuple[str, ...] = ()


# --- mirroring and hashing --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """One entry of a list of `HeaderMutation`s: one header set or removed."""

    option: HeaderOption | None = None
    remove: str = ""


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """Send a copy of some calls to another cluster. Source: Envoy `RequestMirrorPolicy`.

    Attributes:
        header: the request header that names the cluster, where `cluster` is empty.
        suffix: `-shadow` is added to the host of the copy.
        host_rewrite: the host of the copy.
        trace_sampled: None: as the call itself.
    """

    cluster: str = ""
    header: str = ""
    fraction: Fraction = ALWAYS
    suffix: bool = True
    host_rewrite: str = ""
    trace_sampled: bool | None = None
    changes: tuple[HeaderChange, ...] = ()


class HashKind(enum.Enum):
    HEADER = "header"
    COOKIE = "cookie"
    SOURCE_IP = "connection_properties"
    QUERY = "query_parameter"
    FILTER_STATE = "filter_state"


@dataclass(frozen=True, slots=True)
class HashPolicy:
    """One source of the key by which consistent hashing chooses a host.

    Attributes:
        name: of header, cookie, query parameter or filter state.
        terminal: with a key from here or before, later policies are not asked.
        ttl: seconds; of a cookie that is generated where the call has none. None: not generated.
    """

    kind: HashKind
    name: str = ""
    terminal: bool = False
    rewrite: RegexRewrite | None = None
    ttl: int | None = None
    path: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


# --- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForwardAction:
    """Send the call to one of `clusters` (one entry: no draw).

    Attributes:
        timeout: route timeout for the whole call, or `max_stream_duration` where that is shorter;
            None is no timeout (Envoy `timeout: 0s`).
        max_grpc_timeout: upper limit for the caller's own gRPC deadline
            (`max_stream_duration.grpc_timeout_header_max`); None is no limit.
        random_header: request header with the number that chooses among `clusters`.
        hashed_choice: the hash key chooses among `clusters`.
        not_found_status: of the answer where the cluster does not exist.
        route_timeout, max_stream_duration, idle_timeout, flush_timeout, grpc_timeout_offset: as
            configured; None where they are not.
        subset: endpoint metadata by which a cluster with subsets narrows its choice.
    """

    clusters: tuple[WeightedCluster, ...]
    timeout: float | None = None
    max_grpc_timeout: float | None = None
    retry: RetryPolicy | None = None
    prefix_rewrite: str | None = None
    regex_rewrite: RegexRewrite | None = None
    host_rewrite: str | None = None
    template_rewrite: TemplateRewrite | None = None
    path_format: Format | None = None
    host_of_endpoint: bool = False
    host_header: str = ""
    host_regex: RegexRewrite | None = None
    host_format: Format | None = None
    forwarded_host: bool = False
    random_header: str = ""
    hashed_choice: bool = False
    not_found_status: int = 503
    mirrors: tuple[MirrorPolicy, ...] = ()
    hash_policy: tuple[HashPolicy, ...] = ()
    hedge: HedgePolicy | None = None
    route_timeout: float | None = None
    max_stream_duration: float | None = None
    idle_timeout: float | None = None
    flush_timeout: float | None = None
    grpc_timeout_offset: float | None = None
    high_priority: bool = False
    internal_redirect: InternalRedirect | None = None
    subset: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class RedirectAction:
    """Answer with a redirect. Source: Envoy `RedirectAction`."""

    status: int = 301
    scheme: str | None = None
    https: bool = False
    host: str | None = None
    port: int | None = None
    path: str | None = None
    prefix_rewrite: str | None = None
    regex_rewrite: RegexRewrite | None = None
    strip_query: bool = False
    path_format: Format | None = None


@dataclass(frozen=True, slots=True)
class DirectResponseAction:
    """Answer at once.

    Attributes:
        format: makes the body of the answer; `body` is its LOCAL_REPLY_BODY.
        content_type: that `format` asks for; empty: text/plain.
    """

    status: int
    body: bytes = b""
    format: BodyFormat | None = None
    content_type: str = ""


class JsonBody:
    """A JSON document whose texts hold command operators; built by the decoder."""

    __slots__ = ("document",)

    def __init__(self, document: Any) -> None:
        self.document = document


BodyFormat = Format | JsonBody


@dataclass(frozen=True, slots=True)
class NonForwardingAction:
    """The route is for received calls (gRFC A36): a call that is to be sent does not use it."""


@dataclass(frozen=True, slots=True)
class UnsupportedAction:
    """A route whose action this SDK does not know: matching it fails the call, never misroutes."""

    problem: str


Action = (
    ForwardAction | RedirectAction | DirectResponseAction | NonForwardingAction | UnsupportedAction
)
