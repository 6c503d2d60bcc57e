"""Host names of clusters: which lookups are due, and what their answers make of a cluster.

Pure; only the xDS thread calls it. `meshsdk.xds.lookup` does the lookups in threads of its own.
The rules are Envoy's: an answer without addresses empties a STRICT_DNS cluster and leaves a
LOGICAL_DNS one as it is, a lookup that fails changes nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from meshsdk.model import (
    Assignment,
    Cluster,
    ClusterKind,
    Dns,
    DnsFamily,
    Endpoint,
    LocalityEndpoints,
)
from meshsdk.xds.naming import split_authority

DNS: Final = "dns"
"""Stands where a type URL stands, for what is resolved and not received."""

_SHORTEST: Final = 0.01
_ORIGINAL: Final = Dns(DnsFamily.ALL, refresh=30.0, retry=1.0, retry_max=30.0, respect_ttl=True)
"""For an ORIGINAL_DST, which has no settings of its own: a caller would look up once per
connection, and take the first address."""


@dataclass(frozen=True, slots=True)
class Name:
    """One host name, and how it is looked up."""

    host: str
    dns: Dns


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one lookup.

    Attributes:
        addresses: of all families, as the resolver orders them; None when the lookup failed.
        ttl: seconds, None where the resolver does not tell.
        error: why it failed.
    """

    name: Name
    addresses: tuple[str, ...] | None
    ttl: float | None = None
    error: str = ""


class Resolved:
    """What is known of one name.

    Attributes:
        arrived: there has been an outcome.
        addresses: of the last lookup that did not fail.
        chosen: the one address for who wants one: it stays while it is among the answers, so that
            connections need not move; then the first one.
    """

    __slots__ = ("addresses", "arrived", "chosen", "due", "failures")

    def __init__(self, now: float) -> None:
        self.arrived = False
        self.addresses: tuple[str, ...] = ()
        self.chosen = ""
        self.due: float | None = now
        self.failures = 0


class Names:
    """All names that are in use.

    Args:
        random: uniform numbers in [0, 1), for the back-off.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._names: dict[Name, Resolved] = {}

    def want(self, names: Iterable[Name], now: float) -> None:
        """These names are in use from now on, and no other."""
        known = self._names
        self._names = {name: known.get(name) or Resolved(now) for name in names}

    def get(self, name: Name) -> Resolved | None:
        return self._names.get(name)

    @property
    def deadline(self) -> float | None:
        """When the next lookup is due; None while there is none."""
        return min((s.due for s in self._names.values() if s.due is not None), default=None)

    def due(self, now: float) -> list[Name]:
        """The names to look up now; each is to be answered once."""
        found = [
            n for n, state in self._names.items() if state.due is not None and state.due <= now
        ]
        for name in found:
            self._names[name].due = None
        return found

    def answered(self, answer: Answer, now: float) -> str:
        """Take in an outcome. Returns what to tell of it in the log; empty for nothing."""
        state = self._names.get(answer.name)
        if state is None:
            return ""
        state.arrived = True
        if answer.addresses is None:
            state.due = now + self._pause(answer.name.dns, state.failures)
            state.failures += 1
            kept = "its last addresses stay in use" if state.addresses else "it has no address"
            again = f"{answer.name.host} cannot be resolved: {answer.error}; {kept}, tried again"
            return again if state.failures == 1 else ""
        state.failures = 0
        state.addresses = _of_family(answer.addresses, answer.name.dns.family)
        if state.addresses and state.chosen not in state.addresses:
            state.chosen = state.addresses[0]
        seconds = answer.ttl if answer.name.dns.respect_ttl and answer.ttl else None
        state.due = now + max(seconds or answer.name.dns.refresh, _SHORTEST)
        return ""

    def _pause(self, dns: Dns, failures: int) -> float:
        """Source: Envoy `JitteredExponentialBackOffStrategy`."""
        if dns.retry is None:
            return max(dns.refresh, _SHORTEST)
        most = min(dns.retry * 2.0 ** min(failures, 32), dns.retry_max)
        return max(self._random() * most, _SHORTEST)


def _of_family(addresses: tuple[str, ...], family: DnsFamily) -> tuple[str, ...]:
    four = tuple(address for address in addresses if ":" not in address)
    six = tuple(address for address in addresses if ":" in address)
    match family:
        case DnsFamily.V4_ONLY:
            return four
        case DnsFamily.V6_ONLY:
            return six
        case DnsFamily.V4_PREFERRED:
            return four or six
        case DnsFamily.AUTO:
            return six or four
    return addresses


# --- what a cluster makes of names -----------------------------------------------------------

PLACED: Final = (ClusterKind.ORIGINAL_DST, ClusterKind.DYNAMIC)
"""Kinds whose endpoints depend on the host that is called."""


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def names_of(cluster: Cluster) -> frozenset[Name]:
    """The names that the endpoints of a cluster depend on."""
    if cluster.kind not in (ClusterKind.STRICT_DNS, ClusterKind.LOGICAL_DNS):
        return frozenset()
    return frozenset(
        Name(endpoint.address, cluster.dns)
        for group in (cluster.assignment or Assignment("")).localities
        for endpoint in group.endpoints
        if endpoint.port and not is_address(endpoint.address)
    )


def name_of_place(cluster: Cluster, place: str) -> Name | None:
    """The name that a cluster depends on for calls to `host:port`; None for an address."""
    host, _ = split_authority(place)
    if is_address(host):
        return None
    return Name(host, cluster.dns if cluster.kind is ClusterKind.DYNAMIC else _ORIGINAL)


Find = Callable[[Name], Resolved | None]


def resolved(cluster: Cluster, find: Find) -> Assignment | None:
    """The assignment of a cluster with addresses for names; as it is for other kinds.

    Of endpoints with the same address the first one counts, as in Envoy.
    """
    if cluster.kind not in (ClusterKind.STRICT_DNS, ClusterKind.LOGICAL_DNS):
        return cluster.assignment
    assert cluster.assignment is not None
    taken: set[str] = set()
    localities = []
    for group in cluster.assignment.localities:
        endpoints = [new for old in group.endpoints for new in _found(cluster, old, find)]
        fresh = []
        for endpoint in endpoints:
            if endpoint.target not in taken:
                taken.add(endpoint.target)
                fresh.append(endpoint)
        localities.append(replace(group, endpoints=tuple(fresh)))
    return replace(cluster.assignment, localities=tuple(localities))


def _found(cluster: Cluster, endpoint: Endpoint, find: Find) -> list[Endpoint]:
    if not endpoint.port or is_address(endpoint.address):
        return [endpoint]
    state = find(Name(endpoint.address, cluster.dns))
    if state is None:
        return []
    chosen = (state.chosen,) if state.chosen else ()
    addresses = chosen if cluster.kind is ClusterKind.LOGICAL_DNS else state.addresses
    hostname = endpoint.hostname or endpoint.address
    return [replace(endpoint, address=each, hostname=hostname) for each in addresses]


def at_place(cluster: Cluster, place: str, find: Find) -> tuple[Cluster, Assignment]:
    """A cluster whose endpoints depend on the host that is called, for calls to `host:port`."""
    host, port = split_authority(place)
    name = name_of_place(cluster, place)
    state = find(name) if name is not None else None
    address = host if name is None else state.chosen if state is not None else ""
    placed = replace(cluster, place=place)
    if not address:
        return placed, Assignment(cluster.name)
    found = Endpoint(address, port or 0, hostname=host)
    return placed, Assignment(cluster.name, (LocalityEndpoints((found,)),))
