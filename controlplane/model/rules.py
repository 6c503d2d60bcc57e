"""The CEL rules of Istio's CRDs, by their text, written in Python.

A rule gets the value that it stands on (`self` in CEL) and says whether it holds. A test holds that
every rule of `schemas/istio.json` is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from controlplane.model.duration import Duration

_PORT_NAME = re.compile(r"[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?")


def _at_most_one(*names: str) -> Callable[[Any], bool]:
    return lambda self: sum(name in self for name in names) <= 1


def _needs_label_selector(self: Any) -> bool:
    if "portLevelMtls" not in self:
        return True
    return bool((self.get("selector") or {}).get("matchLabels"))


def _scheme_in(schemes: frozenset[str]) -> Callable[[str], bool]:
    def holds(self: str) -> bool:
        scheme = _url_scheme(self)
        if scheme is None:
            scheme = _url_scheme("http://" + self)
        return scheme is not None and scheme in schemes

    return holds


def _url_scheme(text: str) -> str | None:
    """The scheme of a URL or of an absolute path (empty), None when it is neither."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    if parts.scheme:
        return parts.scheme if parts.netloc or parts.path.startswith("/") else None
    return "" if text.startswith("/") else None


def _strict_url(self: str) -> bool:
    return _url_scheme(self) in ("http", "https")


def _duration_from_1ms(self: str) -> bool:
    try:
        return Duration.parse(self) >= 0.001
    except ValueError:
        return False


def _unique_numbers(self: Any) -> bool:
    numbers = [port.get("number") for port in self]
    return len(numbers) == len(set(numbers))


def _cidr_only_static(self: Any) -> bool:
    has_cidr = any("/" in address for address in self.get("addresses", ()))
    return not has_cidr or self.get("resolution", "NONE") in ("STATIC", "NONE")


def _waypoint_context(self: Any) -> bool:
    return ("waypoint" in self) is (self.get("context", "") == "WAYPOINT")


def _service_accounts_alone(self: Any) -> bool:
    if "serviceAccounts" not in self and "notServiceAccounts" not in self:
        return True
    others = ("principals", "notPrincipals", "namespaces", "notNamespaces")
    return not any(name in self for name in others)


def _port_in_range(self: Any) -> bool:
    return 0 < int(self) <= 65535


def _port_keys(self: Any) -> bool:
    return all(key.lstrip("-").isdigit() and _port_in_range(key) for key in self)


def _uds_path(self: str) -> bool:
    return not self.startswith("unix://") or self[7:8] in ("/", "@")


def _port_names(self: Any) -> bool:
    return all(len(key) < 63 and _PORT_NAME.fullmatch(key) for key in self)


_ISURL = (
    'isURL(self) ? (url(self).getScheme() in [{0}]) : (isURL("http://" + self) &&\n'
    'url("http://" + self).getScheme() in [{0}])'
)
_HAS = "(has(self.{0}) ? 1 : 0)"


def _count_rule(*names: str) -> str:
    return " + ".join(_HAS.format(name) for name in names) + " <= 1"


RULES: dict[str, Callable[[Any], bool]] = {
    **{
        _count_rule(*names): _at_most_one(*names)
        for names in (
            ("selector", "targetRefs"),
            ("selector", "targetRef", "targetRefs"),
            ("workloadSelector", "targetRefs"),
            ("tlsCertificates", "credentialNames"),
            ("credentialName", "credentialNames"),
            ("credentialNames", "tlsCertificates"),
            ("workloadSelector", "endpoints"),
            ("jwksUri", "jwks_uri", "jwks"),
        )
    },
    "has(self.wasm) != has(self.lua)": lambda self: ("wasm" in self) != ("lua" in self),
    'self.all(key, !key.contains("*"))': lambda self: not any("*" in key for key in self),
    "self.all(key, key.size() != 0)": lambda self: all(self),
    '!self.contains("*")': lambda self: "*" not in self,
    "self.size() == 0": lambda self: not self,
    _ISURL.format('"", "http", "https", "file", "oci"'): _scheme_in(
        frozenset({"", "http", "https", "file", "oci"})
    ),
    _ISURL.format('"", "http", "https", "oci", "file"'): _scheme_in(
        frozenset({"", "http", "https", "file", "oci"})
    ),
    '(has(self.valueFrom) ? self.valueFrom : "") != "HOST" || !has(self.value)': lambda self: (
        self.get("valueFrom") != "HOST" or "value" not in self
    ),
    "duration(self) >= duration('1ms')": _duration_from_1ms,
    'has(self.context) ? ((self.context == "WAYPOINT") ? has(self.waypoint) :'
    " !has(self.waypoint)) : !has(self.waypoint)": _waypoint_context,
    "0 < self && self <= 65535": _port_in_range,
    '!((has(self.addresses) ? self.addresses : []).exists(k, k.contains("/")) &&'
    ' !((has(self.resolution) ? self.resolution : "NONE") in ["STATIC", "NONE"]))': (
        _cidr_only_static
    ),
    '((has(self.resolution) ? self.resolution : "NONE") == "NONE") ? !has(self.endpoints)'
    " : true": lambda self: self.get("resolution", "NONE") != "NONE" or not self.get("endpoints"),
    '((has(self.resolution) ? self.resolution : "") == "DNS_ROUND_ROBIN") ?'
    " ((has(self.endpoints) ? self.endpoints : []).size() <= 1) : true": lambda self: (
        self.get("resolution") != "DNS_ROUND_ROBIN" or len(self.get("endpoints", ())) <= 1
    ),
    "has(self.address) || has(self.network)": lambda self: "address" in self or "network" in self,
    '(has(self.address) ? self.address : "").startsWith("unix://") ? !has(self.ports)'
    " : true": lambda self: (
        not self.get("address", "").startswith("unix://") or "ports" not in self
    ),
    'self.startsWith("unix://") ? (self.substring(7, 8) == "/" || self.substring(7, 8) == "@")'
    " : true": _uds_path,
    'self.startsWith("unix://") ? !self.endsWith("/") : true': lambda self: (
        not (self.startswith("unix://") and self.endswith("/"))
    ),
    "self.all(key, size(key) < 63 &&"
    ' key.matches("^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$"))': _port_names,
    'self != "*"': lambda self: self != "*",
    "self.all(l1, self.exists_one(l2, l1.number == l2.number))": _unique_numbers,
    'self in ["", "HTTP", "HTTPS"]': lambda self: self in ("", "HTTP", "HTTPS"),
    "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? (!has(self.principals) &&\n"
    "!has(self.notPrincipals) && !has(self.namespaces) && !has(self.notNamespaces)) : true": (
        _service_accounts_alone
    ),
    "has(self.portLevelMtls) ? (((has(self.selector) && has(self.selector.matchLabels)) ?"
    " self.selector.matchLabels : {}).size() > 0) : true": _needs_label_selector,
    "self.all(key, 0 < int(key) && int(key) <= 65535)": _port_keys,
    'url(self).getScheme() in ["http", "https"]': _strict_url,
    '((has(self.operation) ? self.operation : "") == "UPSERT") ? (self.value != "")'
    " : true": lambda self: self.get("operation") != "UPSERT" or bool(self.get("value")),
    '((has(self.operation) ? self.operation : "") == "REMOVE") ? !has(self.value)'
    " : true": lambda self: self.get("operation") != "REMOVE" or "value" not in self,
}
