"""Cross-origin requests: preflights answered, answers marked. Source: Envoy's CORS filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from meshsdk.matching import ALWAYS
from meshsdk.model import CorsPolicy
from meshsdk.routing.request import Random, Request


@dataclass(frozen=True, slots=True)
class CorsAnswer:
    """What CORS makes of one request.

    Attributes:
        preflight: the request is answered at once, with `headers`.
        headers: else put into the response, over what is there.
    """

    preflight: bool
    headers: tuple[tuple[str, str], ...] = ()


def cors_answer(
    policies: Sequence[CorsPolicy], request: Request, random: Random
) -> CorsAnswer | None:
    """What CORS makes of a request; None when it has nothing to do with it.

    Args:
        policies: that apply, the most specific one first.
    """
    if not policies or not _enabled(policies[0], random):
        return None
    origin = next(iter(request.values("origin")), "")
    if not origin:
        return None
    origins = _first(policies, lambda policy: policy.allow_origins) or ()
    allowed = any(match.matches("*") or match.matches(origin) for match in origins)
    simple = _simple(policies, origin) if allowed else {}
    wanted = next(iter(request.values("access-control-request-method")), "")
    if request.method == "OPTIONS" and wanted:
        forward = _first(policies, lambda policy: policy.forward_preflights, None)
        if allowed or forward is False:
            return CorsAnswer(True, tuple((_preflight(policies, request, wanted) | simple).items()))
    return CorsAnswer(False, tuple(simple.items())) if allowed else None


def _simple(policies: Sequence[CorsPolicy], origin: str) -> dict[str, str]:
    """What every answer to an origin that is allowed gets, that to a preflight too."""
    found = {"access-control-allow-origin": origin}
    if _first(policies, lambda policy: policy.allow_credentials, None):
        found["access-control-allow-credentials"] = "true"
    exposed = _first(policies, lambda policy: policy.expose_headers)
    if exposed:
        found["access-control-expose-headers"] = exposed
    return found


def _enabled(policy: CorsPolicy, random: Random) -> bool:
    return policy.enabled == ALWAYS or policy.enabled.holds(random())


def _first(
    policies: Sequence[CorsPolicy], read: Callable[[CorsPolicy], Any], absent: Any = ""
) -> Any:
    """What the most specific policy says that says anything."""
    unset = (None,) if absent is None else ("", ())
    return next((value for value in map(read, policies) if value not in unset), None)


def _preflight(policies: Sequence[CorsPolicy], request: Request, wanted: str) -> dict[str, str]:
    asked = next(iter(request.values("access-control-request-headers")), "")
    methods = _first(policies, lambda policy: policy.allow_methods)
    names = _first(policies, lambda policy: policy.allow_headers)
    age = _first(policies, lambda policy: policy.max_age)
    found: dict[str, str] = {}
    if _first(policies, lambda policy: policy.allow_credentials, None):
        found["access-control-allow-credentials"] = "true"
    if methods:
        found["access-control-allow-methods"] = wanted if methods == "*" else methods
    if names:
        found["access-control-allow-headers"] = asked if names == "*" else names
    if age:
        found["access-control-max-age"] = age
    private = request.values("access-control-request-private-network")[:1] == ["true"]
    if private and _first(policies, lambda policy: policy.allow_private_network, None):
        found["access-control-allow-private-network"] = "true"
    return found
