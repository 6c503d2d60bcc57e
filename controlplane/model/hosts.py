"""Host names: short names, wildcards, specificity, visibility (semantics A1). All pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def is_address(text: str) -> bool:
    """Whether it is an IP address (v4 or v6, without brackets or zone)."""
    # Names almost never start with a digit and never hold a colon: spares the slow parser.
    if not text or not (text[0].isdigit() or ":" in text):
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def single_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The one address of an IP address or of a network of just one; None for everything else."""
    if not text or not (text[0].isdigit() or ":" in text):  # as in `is_address`
        return None
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return None
    return network.network_address if network.num_addresses == 1 else None


def qualify(host: str, namespace: str, domain: str = "cluster.local") -> str:
    """The fully qualified, lower-case form of a host in a rule of `namespace` (H1, H2, H4).

    Only a name without a dot is short; `reviews.prod` is left alone.
    """
    host = host.lower()
    if not host or "." in host or host.startswith("*") or is_address(host):
        return host
    return f"{host}.{namespace}.svc.{domain}"


def is_wildcard(name: str) -> bool:
    return name.startswith("*")


def matches(a: str, b: str) -> bool:
    """Whether two names, wildcards or not, have a host in common (H4, H5)."""
    if is_wildcard(a):
        if is_wildcard(b):
            shorter, longer = (a, b) if len(a) < len(b) else (b, a)
            return longer[1:].endswith(shorter[1:])
        return b.endswith(a[1:])
    if is_wildcard(b):
        return a.endswith(b[1:])
    return a == b


def subset_of(a: str, b: str) -> bool:
    """Whether every host of `a` is a host of `b` (H5)."""
    if is_wildcard(a):
        return is_wildcard(b) and len(a) >= len(b) and a[1:].endswith(b[1:])
    if is_wildcard(b):
        return a.endswith(b[1:])
    return a == b


def specificity(name: str) -> tuple[bool, int, str]:
    """Sort key: names without wildcard first, then longer, then alphabetical (H6)."""
    return (is_wildcard(name), -len(name), name)


def more_specific(a: str, b: str) -> bool:
    """Whether `a` comes before `b`, or is equal (H6)."""
    return specificity(a) <= specificity(b)


def intersection(left: Iterable[str], right: Iterable[str]) -> list[str]:
    """The narrower name of each pair that overlaps, without repetition."""
    found: dict[str, None] = {}
    others = list(right)
    for a in left:
        for b in others:
            if subset_of(a, b):
                found[a] = None
            elif subset_of(b, a):
                found[b] = None
    return list(found)


def most_specific(host: str, exact: Mapping[str, T], wildcards: Mapping[str, T]) -> T | None:
    """What applies to `host`: its exact entry, else the narrowest wildcard around it (D2)."""
    if not is_wildcard(host) and (found := exact.get(host)) is not None:
        return found
    best = min((name for name in wildcards if subset_of(host, name)), key=specificity, default=None)
    return None if best is None else wildcards[best]


def interface(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface | None:
    """An address and the network that it is in, as in `10.1.2.3/8`; None for everything else."""
    if not text or not (text[0].isdigit() or ":" in text):  # as in `is_address`
        return None
    try:
        return ipaddress.ip_interface(text)
    except ValueError:
        return None


def bracketed(host: str) -> str:
    """A host as it stands in an authority: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def with_port(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"{bracketed(host)}:{port}"


def alternate_names(hostname: str, search_domain: str) -> list[str]:
    """Shorter names by which a caller calls a host (H13).

    Args:
        hostname: a fully qualified host.
        search_domain: the caller's DNS search domain, `<namespace>.svc.<domain>`. Outside of
            Kubernetes, any other: then the labels shared with it may be left out.
    """
    if is_address(hostname):
        return []
    namespace, found, suffix = search_domain.partition(".svc.")
    if found:
        base = hostname.removesuffix(f".svc.{suffix}")
        name, dot, owner = base.partition(".")
        if base == hostname or not dot:
            return []
        short = [name] if owner == namespace else []
        return [*short, f"{base}.svc", base]
    own, shared = _split_shared(hostname, search_domain)
    if not shared or not own:
        return []
    names = [".".join(own)]
    if len(own) == 2:  # the name carries its namespace already
        names.append(".".join((*own, shared[0])))
    return names


def host_domains(hostname: str, search_domain: str) -> list[str]:
    """Every name of one host for one caller, without ports: itself, with a final dot, shorter."""
    if is_address(hostname):
        return [bracketed(hostname)]
    final = [] if hostname.endswith(".") or is_wildcard(hostname) else [f"{hostname}."]
    return [hostname, *final, *alternate_names(hostname, search_domain)]


def _split_shared(hostname: str, search_domain: str) -> tuple[list[str], list[str]]:
    """Splits a host into its own labels and those that it shares with the search domain."""
    host, domain = hostname.split("."), search_domain.split(".")
    count = 0
    while count < min(len(host), len(domain)) and host[-1 - count] == domain[-1 - count]:
        count += 1
    cut = len(host) - count
    return host[:cut], host[cut:]


def for_namespace(names: Iterable[str], namespace: str) -> list[str]:
    """Of hosts written `namespace/host`, those that concern one namespace, without the prefix.

    A host without prefix, and one whose prefix is `*`, concerns every namespace.
    """
    found = []
    for name in names:
        owner, slash, host = name.partition("/")
        if not slash:
            found.append(name)
        elif owner in ("*", namespace):
            found.append(host)
    return found
