"""Every error that the mesh raises.

    MeshError
    ├── ConfigurationError        bootstrap, argument or environment is wrong
    ├── InvalidResource           an xDS resource is rejected: names resource and field
    ├── NotReady                  the configuration did not arrive in time
    ├── MeshClosed                the mesh was used after close()
    └── CallError                 one call was answered or given up by the mesh itself
        ├── ListenerNotFound      NR  503  the control plane has no configuration for the host
        ├── NoRoute               NR  404  no virtual host or route matches
        ├── UnusableRoute         NR  500  the matching route needs what this SDK cannot do
        ├── ClusterNotFound       NC  503  the route names a cluster that does not exist
        ├── NoHealthyUpstream     UH  503  the cluster has no endpoint to send to
        │   └── DnsFailure        DF  503  the host that the call names has no address
        ├── DropOverload          DO  503  the control plane says to drop some calls
        │   └── UnconditionalDropOverload  UDO  503  it says to drop all of them
        ├── ConnectFailure        UF  503  the endpoint could not be reached; nothing was sent
        ├── RouteTimeout          UT  504  the route's timeout passed
        ├── FaultAbort            FI  any  an injected abort
        └── Blocked               -   502  REGISTRY_ONLY and the host is not in the registry

A `CallError` never reaches an application bare: an adapter raises the framework's own exception
or returns the framework's own response, with the `CallError` as the cause where there is one.
"""

from __future__ import annotations

from typing import ClassVar


class MeshError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(MeshError):
    """The bootstrap, an argument or an environment variable is wrong; says what would be right."""


class InvalidResource(MeshError):
    """One xDS resource cannot be used.

    Args:
        resource: `type name`, for example `RouteConfiguration outbound|9080||reviews`.
        field: path of the field inside the resource, for example `virtual_hosts[0].domains`.
        problem: what is wrong, and what would be right.
    """

    def __init__(self, resource: str, field: str, problem: str) -> None:
        super().__init__(f"{resource}: {field}: {problem}" if field else f"{resource}: {problem}")
        self.resource = resource
        self.field = field
        self.problem = problem


class NotReady(MeshError, TimeoutError):
    """The control plane did not deliver the configuration in time; nothing was sent."""


class MeshClosed(MeshError, RuntimeError):
    """The mesh is closed."""


class CallError(MeshError):
    """The mesh answered or gave up one call.

    Attributes:
        flag: Envoy response flag (`UH`, `NR` …; `-` where Envoy has none).
        http_status: the status that an HTTP caller sees.
        grpc_code: the number of the gRPC status code that a gRPC caller sees.
        sent: whether a byte of the request may have reached an endpoint.
        body: the text that Envoy puts into the reply (HTTP body or grpc-message).
        route, cluster, endpoint: coordinates, empty where the call never got that far.
    """

    flag: ClassVar[str] = "-"
    http_status: int = 503
    body: str = ""

    def __init__(
        self,
        message: str,
        *,
        route: str = "",
        cluster: str = "",
        endpoint: str = "",
        sent: bool = False,
    ) -> None:
        super().__init__(message)
        self.route = route
        self.cluster = cluster
        self.endpoint = endpoint
        self.sent = sent

    @property
    def grpc_code(self) -> int:
        """gRPC status code number for `http_status`, by Envoy's mapping."""
        return grpc_code_of_http(self.http_status)


class ListenerNotFound(CallError):
    """The control plane says that there is no configuration for this host and port.

    gRPC clients see UNAVAILABLE (gRFC A27: the listener resource does not exist).
    """

    flag = "NR"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.body = message


class UnusableRoute(CallError):
    """The matching route asks for something that this SDK cannot do; failing beats misrouting."""

    flag = "NR"
    http_status = 500

    def __init__(self, message: str, *, route: str) -> None:
        super().__init__(message, route=route)
        self.body = message


class NoRoute(CallError):
    """No virtual host or no route matches the request (Envoy: 404, flag NR)."""

    flag = "NR"
    http_status = 404


class ClusterNotFound(CallError):
    """The chosen route names a cluster that does not exist (Envoy: 503, flag NC)."""

    flag = "NC"


class NoHealthyUpstream(CallError):
    """The cluster has no endpoint that may be used (Envoy: 503, flag UH)."""

    flag = "UH"
    body = "no healthy upstream"


class DropOverload(CallError):
    """The endpoint assignment says to drop a share of the calls (Envoy: 503, flag DO)."""

    flag = "DO"
    body = "drop overload"


class DnsFailure(NoHealthyUpstream):
    """The host that a call names has no address (Envoy: 503, flag DF)."""

    flag = "DF"
    body = "DNS resolution failure"


class UnconditionalDropOverload(DropOverload):
    """The endpoint assignment says to drop every call (Envoy: 503, flag UDO)."""

    flag = "UDO"
    body = "unconditional drop overload"


class ConnectFailure(CallError):
    """No connection to the endpoint could be made (Envoy: 503, flag UF)."""

    flag = "UF"
    body = (
        "upstream connect error or disconnect/reset before headers. "
        "reset reason: remote connection failure"
    )


class RouteTimeout(CallError):
    """The timeout of the route passed before the response was complete (Envoy: 504, flag UT).

    gRPC callers see UNAVAILABLE, or INTERNAL once the response has begun: Envoy resets it then.
    """

    flag = "UT"
    http_status = 504
    body = "upstream request timeout"


class FaultAbort(CallError):
    """The route's fault injection aborted the call (Envoy: flag FI)."""

    flag = "FI"
    body = "fault filter abort"

    def __init__(
        self, message: str, *, http_status: int, grpc_code: int | None = None, route: str = ""
    ) -> None:
        super().__init__(message, route=route)
        self.http_status = http_status
        self._grpc_code = grpc_code

    @property
    def grpc_code(self) -> int:
        return grpc_code_of_http(self.http_status) if self._grpc_code is None else self._grpc_code


class Blocked(CallError):
    """The host is not in the registry and the outbound policy is REGISTRY_ONLY."""

    http_status = 502


_GRPC_OF_HTTP = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}


def grpc_code_of_http(status: int) -> int:
    """gRPC status number for an HTTP status.

    Source: gRPC over HTTP/2, "HTTP to gRPC Status Code Mapping"; Envoy uses the same table for
    its local replies. Everything not in the table is UNKNOWN, a 200 among it: a plain HTTP answer
    is no answer to a gRPC call.
    """
    return _GRPC_OF_HTTP.get(status, 2)
