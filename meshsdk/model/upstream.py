"""How a cluster's endpoints are found by name, and how connections to them are protected."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshsdk.matching import StringMatch


class DnsFamily(enum.Enum):
    """Envoy `Cluster.DnsLookupFamily`."""

    AUTO = "AUTO"
    """IPv6 addresses; IPv4 ones where there are none."""
    V4_ONLY = "V4_ONLY"
    V6_ONLY = "V6_ONLY"
    V4_PREFERRED = "V4_PREFERRED"
    ALL = "ALL"


@dataclass(frozen=True, slots=True)
class Dns:
    """How often the names of a cluster are resolved. Times are seconds.

    Attributes:
        refresh: between a successful lookup and the next.
        retry: before a failed lookup is repeated, the first time; doubled each time after, with
            jitter. None: as after a successful one.
        retry_max: upper limit of that.
        respect_ttl: the shortest TTL of an answer counts instead of `refresh`, where the resolver
            tells it.
    """

    family: DnsFamily = DnsFamily.AUTO
    refresh: float = 5.0
    retry: float | None = None
    retry_max: float = 0.0
    respect_ttl: bool = False


DEFAULT_DNS = Dns()


class NameKind(enum.Enum):
    """Kind of a subject alternative name."""

    ANY = "ANY"
    DNS = "DNS"
    URI = "URI"
    IP = "IP_ADDRESS"
    EMAIL = "EMAIL"


@dataclass(frozen=True, slots=True)
class PeerName:
    """One name that the certificate of an endpoint may bear."""

    kind: NameKind
    match: StringMatch


@dataclass(frozen=True, slots=True)
class Pem:
    """PEM text: in a file, or given inline."""

    path: str = ""
    content: bytes = b""


SYSTEM_ROOTS = Pem(path="system")
"""The roots that this machine trusts."""


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """TLS towards the endpoints of a cluster. Source: Envoy `UpstreamTlsContext`.

    Attributes:
        sni: server name to send; empty for none.
        sni_of_endpoint: the host name of the endpoint stands before that (`auto_host_sni`).
        sni_of_host: the host that the call names stands before both (`auto_sni`).
        roots: the authorities that are trusted; None: the certificate is not verified.
        names: the certificate has to bear one of these; empty: any name will do.
        verify_sni: the certificate has to bear the server name that was sent.
        certificate, key: what this side shows of itself; None: nothing.
        min_version, max_version: `TLSv1_2` and the like, empty for the default.
        alpn: protocols to offer.
    """

    sni: str = ""
    sni_of_endpoint: bool = False
    sni_of_host: bool = False
    roots: Pem | None = None
    names: tuple[PeerName, ...] = ()
    verify_sni: bool = False
    certificate: Pem | None = None
    key: Pem | None = None
    min_version: str = ""
    max_version: str = ""
    alpn: tuple[str, ...] = ()

    def server_name(self, host: str, endpoint: str) -> str:
        """The server name to send, empty for none.

        Args:
            host: that the call names, without port. endpoint: host name of the endpoint, if known.
        """
        if self.sni_of_host and host and not _is_address(host):
            return host
        return (self.sni_of_endpoint and endpoint) or self.sni


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


@dataclass(frozen=True, slots=True)
class SocketMatch:
    """How to connect to endpoints with this metadata. Source: Envoy `TransportSocketMatch`.

    Attributes:
        tls: None is plain text.
    """

    match: Mapping[str, Any] = field(hash=False)
    tls: UpstreamTls | None = None
