"""Rules of a VirtualService that no request can reach.

Source: Istio pkg/config/validation analyzeUnreachableHTTPRules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from controlplane.model.validation.checks import Checker, Fields

UNREACHABLE, INEFFECTIVE = "IST0130", "IST0131"


def check_reachability(check: Checker, routes: Sequence[Fields]) -> None:
    """Warns about rules and matches that earlier ones always catch."""
    seen: dict[str, str] = {}
    earlier: list[tuple[str, Fields]] = []
    catch_all = ""
    for index, route in enumerate(routes):
        path = f"spec.http[{index}]"
        name = _name(route, index)
        if catch_all:
            check.warn(path, f"never reached: {catch_all} catches everything", UNREACHABLE)
            continue
        matches = route.get("match") or ()
        if not matches:
            catch_all = f"the earlier {name} (no match)"
            continue
        lost = 0
        for number, match in enumerate(matches):
            place = f"{path}.match[{number}]"
            key = json.dumps(match, sort_keys=True)
            cover = seen.get(key) or next(_covering(earlier, match or {}), "")
            if cover:
                check.warn(place, f"without effect: the earlier {cover} catches it", INEFFECTIVE)
                lost += 1
            else:
                seen[key] = f"match of {name}"
                earlier.append((f"match of {name}", match or {}))
            if _catches_all(match or {}):
                catch_all = f"match {number} of the earlier {name}"
        if lost == len(matches):
            check.warn(path, "never reached: earlier rules catch all it matches", UNREACHABLE)


def _name(route: Fields, index: int) -> str:
    return f"rule {route['name']!r}" if route.get("name") else f"rule {index}"


def _conditions(match: Fields) -> set[str]:
    return {key for key, value in match.items() if value not in (None, {}, [], "", 0)} - {
        "name",
        "statPrefix",
    }


def _catches_all(match: Fields) -> bool:
    """As Istio: prefix `/` or any regex `.*`, and nothing else asked for."""
    conditions = _conditions(match)
    if conditions - {"uri", "ignoreUriCase"}:
        return False
    uri = match.get("uri") or {}
    return uri.get("prefix") == "/" or uri.get("regex") == "*"


def _covering(earlier: Sequence[tuple[str, Fields]], match: Fields) -> Iterator[str]:
    """Earlier matches of a bare prefix under which this one lies."""
    uri: Any = match.get("uri") or {}
    value = uri.get("exact") or uri.get("prefix")
    if not value:
        return
    for name, other in earlier:
        prefix = (other.get("uri") or {}).get("prefix")
        bare = _conditions(other) <= {"uri"}
        if bare and prefix and value.startswith(prefix) and not match.get("ignoreUriCase"):
            yield name
