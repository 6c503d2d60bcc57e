"""What a mistyped or misplaced host might have been meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from controlplane.model.hosts import is_wildcard, matches
from controlplane.model.registry import Service

if TYPE_CHECKING:
    from controlplane.world import World


def services_of_host(world: World, host: str) -> list[Service]:
    """The services that a host of a rule, wildcard or not, stands for; visible or not."""
    exact = list(world.services_with_host(host))
    if exact:
        return exact
    return [
        service
        for service in world.services
        if (is_wildcard(host) or is_wildcard(service.hostname)) and matches(host, service.hostname)
    ]


def hint(world: World, host: str, namespace: str) -> str:
    """`; did you mean "reviews"?`, or why a host that looks right is not; empty without an idea."""
    suffix = f".svc.{world.mesh.domain}"
    parts = host.removesuffix(suffix).split(".")
    services = [service for service in world.services if service.source == "kubernetes"]
    if len(parts) >= 2 and not host.endswith(suffix):
        # `reviews.prod` and `reviews.prod.svc` hold a dot: Istio takes them literally.
        full = f"{parts[0]}.{parts[1]}{suffix}"
        if any(service.hostname == full for service in services):
            return f'; a host with a dot is taken literally: write "{full}"'
    elsewhere = sorted(
        service.namespace for service in services if service.name == parts[0] and parts[0]
    )
    if elsewhere:
        full = f"{parts[0]}.{elsewhere[0]}{suffix}"
        return f'; {parts[0]} is in namespace {", ".join(elsewhere)}: write "{full}"'
    close = _closest(world, host, namespace)
    return f'; did you mean "{close}"?' if close else ""


def _closest(world: World, host: str, namespace: str) -> str:
    """Names of one namespace differ in their first label only, so that alone is compared there."""
    suffix = f".{namespace}.svc.{world.mesh.domain}"
    if host.endswith(suffix):
        short = [s.name for s in world.services if s.hostname.endswith(suffix)]
        found = difflib.get_close_matches(host.removesuffix(suffix), short, 1, 0.6)
    else:
        outside = [s.hostname for s in world.services if not s.hostname.endswith(suffix)]
        found = difflib.get_close_matches(host, outside, 1, 0.85)
    return found[0] if found else ""


def closest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean "v1"?` among a few names, else the list of them."""
    options = sorted(set(choices))
    found = difflib.get_close_matches(word, options, 1, 0.5)
    if found:
        return f'; did you mean "{found[0]}"?'
    return f"; there is {', '.join(options)}" if options else ""
