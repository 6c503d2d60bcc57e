"""Finding the virtual host of an authority and the route of a request without asking them all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import re2

from meshsdk.matching import HeaderSource, PathKind, StringKind
from meshsdk.matching.strings import lower


class DomainIndex:
    """Virtual hosts by domain: exact, then longest `*suffix`, then longest `prefix*`, then `*`.

    Names are compared in lower case; a wildcard stands for at least one character.
    Source: Envoy `VirtualHost.domains`.
    """

    __slots__ = ("_any", "_exact", "_prefixes", "_suffixes")

    def __init__(self, hosts: Sequence[Any]) -> None:
        pairs = [(domain.lower(), host) for host in hosts for domain in host.domains]
        pairs.reverse()  # of equal domains the first one stays
        self._any = dict(pairs).get("*")
        self._exact = {d: h for d, h in pairs if "*" not in d}
        suffixes = {d[1:]: h for d, h in pairs if d.startswith("*") and d != "*"}
        prefixes = {d[:-1]: h for d, h in pairs if d.endswith("*") and d != "*"}
        self._suffixes = sorted(suffixes.items(), key=lambda item: -len(item[0]))
        self._prefixes = sorted(prefixes.items(), key=lambda item: -len(item[0]))

    def find(self, authority: str) -> Any:
        name = authority.lower()
        found = self._exact.get(name)
        if found is not None:
            return found
        for suffix, host in self._suffixes:
            if len(name) > len(suffix) and name.endswith(suffix):
                return host
        for prefix, host in self._prefixes:
            if len(name) > len(prefix) and name.startswith(prefix):
                return host
        return self._any


_FEW: Final = 6
"""Up to that many routes are asked one by one: no index is faster."""

_FEW_EXPRESSIONS: Final = 3

_ANYTHING: Final = "(?s).*"
_AUTOMATON_BYTES: Final = 64 << 20

_Bucket = tuple[int, ...]
_NONE: _Bucket = ()


class RouteIndex:
    """The routes of a virtual host, each filed under one condition that it needs.

    A route is filed under its exact path, under a header that it wants to have one value, under its
    path prefix or its path expression: whichever the fewest routes share. What a request brings
    along leads to the few routes that may take it; those are asked in their order, so that the
    first match wins as in a linear search.
    """

    __slots__ = (
        "_exact", "_exact_folded", "_expressions", "_headers", "_lengths", "_lengths_folded",
        "_positions", "_prefixes", "_prefixes_folded", "_rest", "routes",
    )  # fmt: skip

    def __init__(self, routes: Sequence[Any]) -> None:
        self.routes = tuple(routes)
        if len(routes) <= _FEW:
            return
        keys = [_keys(route) for route in routes]
        shared: dict[tuple[Any, ...], int] = defaultdict(int)
        for choices in keys:
            for key in choices:
                shared[key] += 1
        filed: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for position, choices in enumerate(keys):
            filed[min(choices, key=shared.__getitem__, default=("rest",))].append(position)
        buckets = {key: self._reachable(key, found) for key, found in filed.items()}
        self._exact = _under(buckets, "exact")
        self._exact_folded = _under(buckets, "exact folded")
        self._prefixes = _under(buckets, "prefix")
        self._prefixes_folded = _under(buckets, "prefix folded")
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})
        self._lengths_folded = sorted({len(prefix) for prefix in self._prefixes_folded})
        self._rest: _Bucket = buckets.get(("rest",), _NONE)
        self._headers: dict[str, dict[str, _Bucket]] = defaultdict(dict)
        for key, bucket in buckets.items():
            if key[0] == "header":
                self._headers[key[1]][key[2]] = bucket
        self._expressions, self._positions, alone = _expression_set(buckets)
        self._rest = tuple(sorted((*self._rest, *alone)))

    def _reachable(self, key: tuple[Any, ...], positions: list[int]) -> _Bucket:
        """Without those behind a route to which having come here is enough."""
        if key[0] in ("rest", "header"):
            return tuple(positions)
        for count, position in enumerate(positions, 1):
            match = self.routes[position].match
            if match.unconditional and match.path.kind in (PathKind.EXACT, PathKind.PREFIX):
                return tuple(positions[:count])
        return tuple(positions)

    def candidates(self, path: str, headers: HeaderSource) -> Iterable[Any]:
        """Routes that may take a request of this path, in order; all others do not."""
        routes = self.routes
        if len(routes) <= _FEW:
            return routes
        found = []
        if bucket := self._exact.get(path):
            found.append(bucket)
        for length in self._lengths:
            if length > len(path):
                break
            if bucket := self._prefixes.get(path[:length]):
                found.append(bucket)
        if self._exact_folded or self._prefixes_folded:
            self._folded(lower(path), found)
        for name, values in self._headers.items():
            found += {bucket for v in headers.values(name) if (bucket := values.get(v)) is not None}
        if self._expressions is not None:
            matched = [self._positions[i] for i in self._expressions.Match(path)]
            found.append(tuple(position for bucket in matched for position in bucket))
        if self._rest:
            found.append(self._rest)
        if len(found) == 1:
            return map(routes.__getitem__, found[0])
        return map(routes.__getitem__, sorted(position for bucket in found for position in bucket))

    def _folded(self, path: str, found: list[_Bucket]) -> None:
        if bucket := self._exact_folded.get(path):
            found.append(bucket)
        prefixes = (path[:length] for length in self._lengths_folded if length <= len(path))
        found += filter(None, map(self._prefixes_folded.get, prefixes))


def _keys(route: Any) -> list[tuple[Any, ...]]:
    """The conditions under any of which a route may be filed."""
    path = route.match.path
    keys: list[tuple[Any, ...]] = []
    kind = {PathKind.EXACT: "exact", PathKind.PREFIX: "prefix", PathKind.SEGMENT_PREFIX: "prefix"}
    if path.kind in kind:
        folded = (f"{kind[path.kind]} folded", lower(path.value))
        keys.append(folded if path.ignore_case else (kind[path.kind], path.value))
    elif path.kind is PathKind.REGEX:
        keys.append(("expression", path.value))
    for header in route.match.headers:
        string = header.string
        if string is None or header.invert or string.kind is not StringKind.EXACT:
            continue
        if not (string.ignore_case or (header.missing_as_empty and not string.value)):
            keys.append(("header", header.name, string.value))
    return keys


def _under(buckets: dict[tuple[Any, ...], _Bucket], kind: str) -> dict[str, _Bucket]:
    return {key[1]: bucket for key, bucket in buckets.items() if key[0] == kind}


def _expression_set(
    buckets: dict[tuple[Any, ...], _Bucket],
) -> tuple[Any, list[_Bucket], list[int]]:
    """The path expressions as one automaton; a few are better asked one by one."""
    found = _under(buckets, "expression")
    alone = [position for bucket in found.values() for position in bucket]
    if len(found) <= _FEW_EXPRESSIONS:
        return None, [], alone
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _AUTOMATON_BYTES
    automaton = re2.Set.FullMatchSet(options)
    for pattern in (*found, _ANYTHING):
        automaton.Add(pattern)
    automaton.Compile()
    # One that is too large for its memory finds nothing, ever.
    if len(found) not in automaton.Match("/"):
        return None, [], alone
    return automaton, [*found.values(), _NONE], []
