"""Keys of `when` conditions, path templates, service accounts: the small languages of policies.

Source: Istio pkg/config/security/security.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from controlplane.model.validation.checks import subnet_problem

_ONE, _ANY = "{*}", "{**}"
# RFC 3986 pchar without what templates use themselves; Envoy's URI template matcher.
_LITERAL = re.compile(r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+")

Check = Callable[[str], str | None]


def _anything(value: str) -> str | None:
    return None if value else "a value must not be empty"


def _port(value: str) -> str | None:
    valid = value.isdigit() and 1 <= int(value) <= 65535
    return None if valid else f"{value!r} is not a port: 1 to 65535"


def service_account_problem(value: str) -> str | None:
    """`name`, or `namespace/name`."""
    parts = value.split("/")
    if len(parts) > 2 or not all(parts):
        return f"{value!r} is neither a service account nor namespace/service-account"
    return None


def wildcard_problem(value: str) -> str | None:
    """`*` stands for anything, alone or at one end of a value."""
    inner = (
        value
        if value == "*"
        else value.removeprefix("*")
        if value.startswith("*")
        else (value.removesuffix("*"))
    )
    if value != "*" and "*" in inner:
        return f"{value!r}: a wildcard is allowed at one end only"
    return None


def trust_domain_problem(value: str) -> str | None:
    """A trust domain, or a pattern of one."""
    if not value:
        return "a trust domain must not be empty"
    if "/" in value:
        return f"{value!r} is not a trust domain: write cluster.local, without spiffe:// and path"
    return wildcard_problem(value)


_KEYS: Mapping[str, Check] = {
    "source.ip": subnet_problem,
    "remote.ip": subnet_problem,
    "source.namespace": _anything,
    "source.principal": _anything,
    "source.serviceAccount": service_account_problem,
    "source.trustDomain": trust_domain_problem,
    "request.auth.principal": _anything,
    "request.auth.audiences": _anything,
    "request.auth.presenter": _anything,
    "destination.ip": subnet_problem,
    "destination.port": _port,
    "connection.sni": _anything,
}
_MAPS = ("request.headers", "request.auth.claims")
_FILTER_STATE = "experimental.envoy.filters."


def condition_problem(key: str, values: Iterable[str]) -> str | None:
    """What is wrong with one `when` condition, None if nothing."""
    if not key:
        return "key is required"
    for prefix in _MAPS:
        if key.startswith(prefix):
            return None if is_map_key(key[len(prefix) :]) else f"{key!r} must be {prefix}[name]"
    if key.startswith(_FILTER_STATE):
        name, bracket, _ = key.removeprefix(_FILTER_STATE).partition("[")
        fits = name and is_map_key(key[len(_FILTER_STATE) + len(name) :])
        return None if bracket and fits else f"{key!r} must be {_FILTER_STATE}name[key]"
    check = _KEYS.get(key)
    if check is None:
        return f"unknown key {key!r}: one of {', '.join(_KEYS)}, {'[…], '.join(_MAPS)}[…]"
    return next((problem for value in values if (problem := check(value)) is not None), None)


def is_map_key(text: str) -> bool:
    """Whether it is `[name]`, or `[name][name]…` as claims nest."""
    return text.startswith("[") and text.endswith("]") and all(text[1:-1].split("]["))


def contains_path_template(path: str) -> bool:
    return _ONE in path or _ANY in path


def is_valid_literal(text: str) -> bool:
    """Whether a path segment of a template is plain text."""
    return _LITERAL.fullmatch(text) is not None


def path_template_problem(path: str) -> str | None:
    """`{*}` is one segment, `{**}` any number of them, and the last operator."""
    is_template = contains_path_template(path)
    after_any = False
    for segment in path.strip("/").split("/"):
        if segment in (_ONE, _ANY):
            if after_any:
                return f"{path!r}: {_ANY} must be the last operator"
            after_any = segment == _ANY
            continue
        if "{" in segment or "}" in segment:
            return f"{path!r}: only {_ONE} and {_ANY} may stand in braces, as whole segments"
        if is_template and "*" in segment:
            return f"{path!r}: * cannot stand beside {_ONE} or {_ANY}"
        if is_template and not is_valid_literal(segment):
            return f"{path!r}: {segment!r} holds characters that a template cannot have"
    return None
