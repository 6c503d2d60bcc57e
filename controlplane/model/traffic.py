"""VirtualService as frozen types: the fields and meaning of istio.networking.v1.VirtualService.

Absent and empty are kept apart where Istio tells them apart (`None`). Times are seconds. Short host
names are as written; `World` hands out rules whose hosts are fully qualified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from controlplane.model.duration import Duration
from controlplane.model.registry import exported_to
from controlplane.model.resource import Origin

MESH_GATEWAY = "mesh"


class Spec(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """Base of all decoded specs."""


class StringMatch(Spec, frozen=True):
    """At most one is set; none set means "is present"."""

    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None

    @property
    def is_presence(self) -> bool:
        return self.exact is None and self.prefix is None and self.regex is None

    def __str__(self) -> str:
        for form in ("exact", "prefix", "regex"):
            if (value := getattr(self, form)) is not None:
                return f"{form} {value!r}"
        return "present"


class PortSelector(Spec, frozen=True):
    number: int = 0


class Destination(Spec, frozen=True):
    host: str = ""
    subset: str = ""
    port: PortSelector | None = None

    @property
    def port_number(self) -> int:
        """The port asked for, 0 when left open (H16)."""
        return self.port.number if self.port else 0


class Percent(Spec, frozen=True):
    value: float = 0.0


class HeaderOperations(Spec, frozen=True):
    set: dict[str, str] = {}
    add: dict[str, str] = {}
    remove: tuple[str, ...] = ()


class Headers(Spec, frozen=True):
    request: HeaderOperations = HeaderOperations()
    response: HeaderOperations = HeaderOperations()


class RouteDestination(Spec, frozen=True):
    destination: Destination = Destination()
    weight: int = 0
    headers: Headers | None = None


class RegexRewrite(Spec, frozen=True):
    match: str = ""
    rewrite: str = ""


class HTTPRewrite(Spec, frozen=True):
    uri: str = ""
    authority: str = ""
    uri_regex_rewrite: RegexRewrite | None = None


class HTTPRedirect(Spec, frozen=True):
    uri: str = ""
    authority: str = ""
    port: int | None = None
    derive_port: str | None = None
    """FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT."""
    scheme: str = ""
    redirect_code: int = 0
    """0: 301."""
    prefix_rewrite: str = ""


class HTTPBody(Spec, frozen=True):
    string: str | None = None
    data: bytes | None = msgspec.field(default=None, name="bytes")

    @property
    def content(self) -> bytes:
        return self.string.encode() if self.string is not None else self.data or b""


class DirectResponse(Spec, frozen=True):
    status: int = 0
    body: HTTPBody | None = None


class Delegate(Spec, frozen=True):
    name: str = ""
    namespace: str = ""


class HTTPRetry(Spec, frozen=True):
    attempts: int = 0
    per_try_timeout: Duration | None = None
    retry_on: str = ""
    retry_remote_localities: bool | None = None
    retry_ignore_previous_hosts: bool | None = None
    backoff: Duration | None = None


class FaultDelay(Spec, frozen=True):
    fixed_delay: Duration | None = None
    percentage: Percent | None = None
    """Absent: 0 % (V21)."""
    percent: int = 0
    exponential_delay: Duration | None = None


class FaultAbort(Spec, frozen=True):
    http_status: int | None = None
    grpc_status: str | None = None
    http2_error: str | None = None
    percentage: Percent | None = None


class HTTPFault(Spec, frozen=True):
    delay: FaultDelay | None = None
    abort: FaultAbort | None = None


class MirrorPolicy(Spec, frozen=True):
    destination: Destination = Destination()
    percentage: Percent | None = None
    """Absent: 100 %."""


class CorsPolicy(Spec, frozen=True):
    allow_origin: tuple[str, ...] = ()
    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age: Duration | None = None
    allow_credentials: bool | None = None
    unmatched_preflights: str = "UNSPECIFIED"


class HTTPMatch(Spec, frozen=True):
    name: str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: dict[str, StringMatch] = {}
    without_headers: dict[str, StringMatch] = {}
    query_params: dict[str, StringMatch] = {}
    ignore_uri_case: bool = False
    port: int = 0
    source_labels: dict[str, str] = {}
    source_namespace: str = ""
    gateways: tuple[str, ...] = ()
    stat_prefix: str = ""


class HTTPRoute(Spec, frozen=True):
    name: str = ""
    match: tuple[HTTPMatch, ...] = ()
    route: tuple[RouteDestination, ...] = ()
    redirect: HTTPRedirect | None = None
    direct_response: DirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HTTPRewrite | None = None
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFault | None = None
    mirror: Destination | None = None
    mirrors: tuple[MirrorPolicy, ...] = ()
    mirror_percentage: Percent | None = None
    mirror_percent: int | None = None
    mirror_percent_old: int | None = msgspec.field(default=None, name="mirror_percent")
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None


class TLSMatch(Spec, frozen=True):
    sni_hosts: tuple[str, ...] = ()
    destination_subnets: tuple[str, ...] = ()
    port: int = 0
    source_labels: dict[str, str] = {}
    source_namespace: str = ""
    gateways: tuple[str, ...] = ()


class TCPMatch(Spec, frozen=True):
    destination_subnets: tuple[str, ...] = ()
    port: int = 0
    source_subnet: str = ""
    source_labels: dict[str, str] = {}
    source_namespace: str = ""
    gateways: tuple[str, ...] = ()


class TLSRoute(Spec, frozen=True):
    match: tuple[TLSMatch, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class TCPRoute(Spec, frozen=True):
    match: tuple[TCPMatch, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class VirtualServiceSpec(Spec, frozen=True):
    hosts: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    http: tuple[HTTPRoute, ...] = ()
    tls: tuple[TLSRoute, ...] = ()
    tcp: tuple[TCPRoute, ...] = ()
    export_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class VirtualServiceConfig:
    """A VirtualService as the mesh uses it.

    Hosts, destinations and mirrors are fully qualified against the rule's namespace (H1, H2),
    gateways are `mesh` or `namespace/name` (V1), delegates are merged in (V26 to V29), and the
    deprecated spellings (`mirror_percent`, fault `percent`) have moved to the current ones.
    """

    name: str
    namespace: str
    spec: VirtualServiceSpec
    export_to: frozenset[str]
    labels: Mapping[str, str]
    created: datetime | None
    origin: Origin

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.spec.hosts

    @property
    def gateways(self) -> tuple[str, ...]:
        return self.spec.gateways

    @property
    def http(self) -> tuple[HTTPRoute, ...]:
        return self.spec.http

    @property
    def tls(self) -> tuple[TLSRoute, ...]:
        return self.spec.tls

    @property
    def tcp(self) -> tuple[TCPRoute, ...]:
        return self.spec.tcp

    @property
    def for_mesh(self) -> bool:
        """It speaks to workloads, not only to gateways."""
        return MESH_GATEWAY in self.spec.gateways

    def visible_to(self, namespace: str) -> bool:
        return exported_to(self.export_to, self.namespace, namespace)

    def __str__(self) -> str:
        return f"VirtualService {self.namespace}/{self.name}"
