"""Whether a certificate bears a name that it has to bear. Pure.

Source: Envoy `match_typed_subject_alt_names`, `Utility::dnsNameMatch`; the common name of the
subject is never looked at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from meshsdk.matching import StringKind
from meshsdk.model import NameKind, PeerName

_KINDS = {
    "DNS": NameKind.DNS,
    "URI": NameKind.URI,
    "IP Address": NameKind.IP,
    "email": NameKind.EMAIL,
}


def names_in(certificate: Mapping[str, Any]) -> list[tuple[NameKind, str]]:
    """The subject alternative names of a certificate as `ssl` decodes it."""
    pairs = certificate.get("subjectAltName", ())
    return [(_KINDS[kind], value) for kind, value in pairs if kind in _KINDS]


def bears(wanted: tuple[PeerName, ...], found: list[tuple[NameKind, str]]) -> bool:
    """Whether one of the names found is one of those wanted."""
    return any(_matches(name, kind, value) for name in wanted for kind, value in found)


def bears_host(host: str, found: list[tuple[NameKind, str]]) -> bool:
    """Whether the certificate is for a host, a name or an address."""
    return any(
        _same_address(host, value) if kind is NameKind.IP else dns_name_matches(host, value)
        for kind, value in found
        if kind in (NameKind.IP, NameKind.DNS)
    )


def _matches(wanted: PeerName, kind: NameKind, value: str) -> bool:
    if wanted.kind not in (kind, NameKind.ANY):
        return False
    match = wanted.match
    if match.kind is StringKind.EXACT and kind is NameKind.DNS:
        return dns_name_matches(match.value, value)
    if match.kind is StringKind.EXACT and kind is NameKind.IP:
        return _same_address(match.value, value)
    return match.matches(value)


def dns_name_matches(host: str, pattern: str) -> bool:
    """Whether a name in a certificate, that may begin with `*.`, stands for a host."""
    host, pattern = host.lower().rstrip("."), pattern.lower()
    if pattern.startswith("*."):
        label, dot, rest = host.partition(".")
        return bool(label and dot) and rest == pattern[2:]
    return host == pattern


def _same_address(one: str, other: str) -> bool:
    try:
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    except ValueError:
        return False
