"""How resources are named and found: the one place that knows the dialect of a control plane.

`ByName` is the dialect of proxyless gRPC and of this project's control plane: one listener per
`host:port`, asked for by name. Another dialect (Istio's for sidecars: listeners by address, routes
by port) is another implementation of `Naming`.
"""

from __future__ import annotations

import ipaddress
from typing import Protocol

from meshsdk.model import Listener

PASSTHROUGH_CLUSTER = "PassthroughCluster"
"""Istio's name of the cluster for hosts outside the registry: calls to it go out unchanged."""


class Naming(Protocol):
    """Maps what a caller says to resource names. Pure; any thread may ask."""

    def listener_name(self, authority: str, default_port: int) -> str:
        """Name of the view (`Snapshot.listeners`) that calls to this authority use.

        Args:
            authority: `host`, `host:port`, `[ipv6]:port`; any case.
            default_port: used where the authority names none (80 for http, 443 for https).
        """
        ...

    def server_listener_name(self, address: str) -> str:
        """Name of the listener of a server that listens on `ip:port`; empty: there is none."""
        ...

    def listener_resource(self, name: str) -> str:
        """The LDS resource from which the view of this name is made."""
        ...

    def route_resource(self, name: str, listener: Listener) -> str:
        """The RDS resource that the view of this name needs; empty: none, it is inline."""
        ...


class ByName:
    """One listener resource per `host:port`, with the host fully qualified.

    Args:
        namespace: completes a host without a dot, as the resolver in a pod does.
        domain: the cluster's DNS domain.
        server_template: `server_listener_resource_name_template` of the bootstrap (gRFC A36);
            `%s` stands for the address.
    """

    def __init__(
        self, namespace: str, domain: str = "cluster.local", server_template: str = ""
    ) -> None:
        self._suffix = f".{namespace}.svc.{domain}".lower()
        self._server_template = server_template

    def listener_name(self, authority: str, default_port: int) -> str:
        host, port = split_authority(authority)
        if "." not in host and ":" not in host and host != "localhost":
            host += self._suffix
        return f"{f'[{host}]' if ':' in host else host}:{port or default_port}"

    def server_listener_name(self, address: str) -> str:
        return self._server_template.replace("%s", address)

    def listener_resource(self, name: str) -> str:
        return name

    def route_resource(self, name: str, listener: Listener) -> str:
        return listener.route_config_name


def split_authority(authority: str) -> tuple[str, int | None]:
    """Host in lower case, without brackets and trailing dot, and port of an authority.

    Raises:
        ValueError: it is none; says what would be right.
    """
    host, port = _split(authority.lower())
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{authority!r}: the port must be a number from 1 to 65535")
    host = host.removesuffix(".")
    if not host or any(c in host for c in "/@?# []"):
        raise ValueError(f"{authority!r} is no host:port")
    if ":" in host:
        host = ipaddress.IPv6Address(host).compressed
    return host, int(port) if port else None


def _split(authority: str) -> tuple[str, str]:
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{authority!r}: an IPv6 address is written [address]:port")
        return host, rest[1:]
    if authority.count(":") > 1:
        return authority, ""  # a bare IPv6 address
    host, _, port = authority.partition(":")
    return host, port
