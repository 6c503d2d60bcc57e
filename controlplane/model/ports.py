"""Which protocol a port speaks (semantics S1). Source: Istio pkg/config/kube/conversion.go."""

from __future__ import annotations

from controlplane.model.registry import Protocol

_BY_NAME = {
    "http": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "grpc": Protocol.GRPC,
    "grpc-web": Protocol.GRPC_WEB,
    "https": Protocol.HTTPS,
    "http_proxy": Protocol.HTTP_PROXY,
    "tls": Protocol.TLS,
    "tcp": Protocol.TCP,
    "udp": Protocol.UDP,
    "mongo": Protocol.MONGO,
    "redis": Protocol.REDIS,
    "mysql": Protocol.MYSQL,
}
_APP_PROTOCOLS = {
    "kubernetes.io/h2c": Protocol.HTTP2,
    "kubernetes.io/ws": Protocol.HTTP,
    "kubernetes.io/wss": Protocol.HTTPS,
}
# Server-first protocols: waiting for the client's first byte would hang them.
_SERVER_FIRST_PORTS = frozenset({25, 53, 3306, 27017})


def parse_protocol(name: str) -> Protocol:
    """The protocol of a ServiceEntry or Gateway port (`HTTP`, `grpc` …); UNSUPPORTED if none."""
    return _BY_NAME.get(name.lower(), Protocol.UNSUPPORTED)


def port_protocol(
    number: int, name: str = "", transport: str = "TCP", app_protocol: str | None = None
) -> Protocol:
    """The protocol of a Service port: appProtocol, else the prefix of the port's name."""
    if transport == "UDP":
        return Protocol.UDP
    declared = name
    if app_protocol is not None:
        declared = app_protocol
        if (known := _APP_PROTOCOLS.get(declared)) is not None:
            return known
    declared = declared.lower()
    if declared.startswith("grpc-web"):
        return Protocol.GRPC_WEB
    protocol = parse_protocol(declared.partition("-")[0])
    if protocol is Protocol.UNSUPPORTED and number in _SERVER_FIRST_PORTS:
        return Protocol.TCP
    return protocol
