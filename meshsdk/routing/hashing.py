"""The key by which consistent hashing chooses a host.

Source: Envoy `RouteAction.HashPolicy`; XXH64 with seed 0 throughout, as there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import xxhash

from meshsdk.formats import Caller
from meshsdk.matching import cookies, first_query_value
from meshsdk.model import HashKind, HashPolicy
from meshsdk.routing.request import Random, Request
from meshsdk.routing.rewriting import replaced

_MASK = (1 << 64) - 1


def hash_key(
    policies: Iterable[HashPolicy], request: Request, caller: Caller, random: Random
) -> tuple[int | None, tuple[str, ...]]:
    """(64-bit key, `set-cookie` values of the cookies made for it); the key is None when no
    policy gave one.

    Args:
        request: as it is sent on.
        random: of it a cookie is made where the call has none and the policy wants one.
    """
    key: int | None = None
    made: list[str] = []
    for policy in policies:
        value = _value(policy, request, caller, random, made)
        if value is not None:
            # Rotating keeps two policies of the same value from cancelling each other out.
            key = value if key is None else ((key << 1 | key >> 63) & _MASK) ^ value
        if policy.terminal and key is not None:
            break
    return key, tuple(made)


def _value(
    policy: HashPolicy, request: Request, caller: Caller, random: Random, made: list[str]
) -> int | None:
    match policy.kind:
        case HashKind.HEADER:
            return _of_header(policy, request)
        case HashKind.COOKIE:
            return _of_cookie(policy, request, random, made)
        case HashKind.SOURCE_IP:
            return _hash(caller.address) if caller.address else None
        case HashKind.QUERY:
            value = first_query_value(request.query, policy.name)
            return None if value is None else _hash(value)
        case HashKind.FILTER_STATE:
            # gRFC A42: the one key that gRPC knows stands for the channel.
            return caller.channel if policy.name == "io.grpc.channel_id" else None


def _of_header(policy: HashPolicy, request: Request) -> int | None:
    if request.grpc and policy.name.endswith("-bin"):
        return None  # gRFC A42: binary metadata is never hashed
    values: Sequence[str] = request.values(policy.name)
    if not values:
        return None
    if policy.rewrite is not None:
        values = [replaced(policy.rewrite, value) for value in values]
    key = 0
    for value in sorted(values):
        key = _hash(value, key)
    return key


def _of_cookie(policy: HashPolicy, request: Request, random: Random, made: list[str]) -> int | None:
    value = cookies(request.values("cookie")).get(policy.name, "")
    if not value and policy.ttl is not None:
        value = f"{int(random() * (1 << 53)) ^ _hash(policy.name):016x}"
        made.append(_set_cookie(policy, value))
    return _hash(value) if value else None


def _set_cookie(policy: HashPolicy, value: str) -> str:
    parts = [f'{policy.name}="{value}"']
    if policy.ttl:
        parts.append(f"Max-Age={policy.ttl}")
    if policy.path:
        parts.append(f"Path={policy.path}")
    parts += [f"{name}={text}" if text else name for name, text in policy.attributes]
    parts.append("HttpOnly")
    return "; ".join(parts)


def _hash(text: str, seed: int = 0) -> int:
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogateescape"), seed)
