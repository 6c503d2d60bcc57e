"""The services that some callers see, found by any name that they answer to (H13). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controlplane.model.hosts import is_wildcard, most_specific, single_address
from controlplane.model.registry import Service


class Names:
    """What callers of one namespace mean by a host."""

    __slots__ = ("_addresses", "_domain", "_exact", "_listed", "_namespace", "_wildcards")

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
        self._addresses: dict[str, Service] | None = None
        self._wildcards: dict[str, Service] = {}

    def find(self, host: str) -> Service | None:
        """The service of `reviews`, `reviews.default`, `reviews.default.svc`, of the qualified
        host, of a VIP, or of a host below a `*.` ServiceEntry."""
        host = host.lower().rstrip(".")
        if (address := single_address(host)) is not None:
            return self._by_address().get(str(address))
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
        self._by_address()
        return most_specific(host, {}, self._wildcards)

    def _by_address(self) -> dict[str, Service]:
        if self._addresses is None:
            addresses: dict[str, Service] = {}
            for service in self._listed():
                for address in map(single_address, service.addresses):
                    if address is not None:
                        addresses.setdefault(str(address), service)
                if is_wildcard(service.hostname):
                    self._wildcards[service.hostname] = service
            self._addresses = addresses
        return self._addresses
