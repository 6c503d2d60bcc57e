"""The services that some callers see, found by any name that they answer to (H13). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from controlplane.model.hosts import interface, is_wildcard, most_specific, single_address
from controlplane.model.registry import Service

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Names:
    """What callers of one namespace mean by a host."""

    __slots__ = (
        "_addresses", "_domain", "_exact", "_listed", "_namespace", "_networks", "_wildcards"
    )  # fmt: skip

    def __init__(
        self,
        namespace: str,
        domain: str,
        exact: Callable[[str], Service | None],
        listed: Callable[[], Iterable[Service]],
    ) -> None:
        """
        Args:
            namespace: that short names are completed with.
            domain: DNS suffix of Kubernetes names.
            exact: the service of a qualified host.
            listed: all services, asked for once a name is an address or may be below a wildcard.
        """
        self._namespace = namespace
        self._domain = domain
        self._exact = exact
        self._listed = listed
        self._addresses: dict[str, list[Service]] | None = None
        self._networks: list[tuple[Network, Service]] = []
        self._wildcards: dict[str, Service] = {}

    def find(self, host: str, port: int = 0) -> Service | None:
        """The service of `reviews`, `reviews.default`, `reviews.default.svc`, of the qualified
        host, of a VIP or an address in its networks, or of a host below a `*.` ServiceEntry.

        Args:
            port: of services that share an address, one that has this port is preferred.
        """
        host = host.lower().rstrip(".")
        if (address := single_address(host)) is not None:
            return self._at(address, port)
        if (found := self._exact(host)) is not None:
            return found
        suffix = f".svc.{self._domain}"
        parts = host.split(".")
        if len(parts) == 1:
            return self._exact(f"{host}.{self._namespace}{suffix}")
        if len(parts) == 2 or (len(parts) == 3 and parts[2] == "svc"):
            found = self._exact(f"{parts[0]}.{parts[1]}{suffix}")
            if found is not None:
                return found
        self._index()
        return most_specific(host, {}, self._wildcards)

    def _at(self, address: Address, port: int) -> Service | None:
        found = self._index().get(str(address)) or [
            service for network, service in self._networks if address in network
        ]
        with_port = (service for service in found if service.port(port) is not None)
        return next(with_port, found[0] if found else None)

    def _index(self) -> dict[str, list[Service]]:
        if self._addresses is None:
            addresses: dict[str, list[Service]] = {}
            for service in self._listed():
                for text in service.addresses:
                    if (address := single_address(text)) is not None:
                        addresses.setdefault(str(address), []).append(service)
                    elif (within := interface(text)) is not None:
                        self._networks.append((within.network, service))
                if is_wildcard(service.hostname):
                    self._wildcards[service.hostname] = service
            self._networks.sort(key=lambda item: -item[0].prefixlen)  # the narrowest first
            self._addresses = addresses
        return self._addresses
