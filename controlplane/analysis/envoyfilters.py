"""Patches of EnvoyFilters that mean nothing to SDK nodes, each by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from controlplane.model.envoyfilter import patches
from controlplane.model.resource import Finding, Level, Resource

if TYPE_CHECKING:
    from controlplane.world import World

_OTHERS = ("GATEWAY", "WAYPOINT")


def analyze_envoy_filters(world: World) -> Iterator[Finding]:
    """One finding for each patch, or part of one, that only Envoy nodes get."""
    for resource in world.envoy_filters:
        yield from _document(resource)


def _document(resource: Resource) -> Iterator[Finding]:
    if resource.typed.target_refs:
        message = "targetRefs name gateways and waypoints: no SDK node gets these patches"
        yield resource.finding(Level.INFO, "MSH0160", message, "spec.targetRefs")
        return
    for patch in patches(resource):
        for why in patch.unhonoured:
            message = f"not applied to SDK nodes: {why}"
            # A patch for gateways is not meant for them in the first place.
            meant = patch.match.context not in _OTHERS
            level = Level.WARNING if meant else Level.INFO
            yield resource.finding(level, "MSH0160", message, patch.path)
