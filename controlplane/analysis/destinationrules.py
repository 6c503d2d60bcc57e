"""DestinationRules for nothing, subsets of nothing, ejection of nobody."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from controlplane.analysis.names import hint, services_of_host
from controlplane.model.destination import destination_rule
from controlplane.model.policy import DestinationRuleConfig, TrafficPolicy
from controlplane.model.registry import Endpoint, Resolution, Service
from controlplane.model.resource import Finding, Level, Resource
from controlplane.model.workloads import contains

if TYPE_CHECKING:
    from controlplane.world import World

DEFAULT_EJECTION_PERCENT = 10


def analyze_destination_rules(world: World) -> Iterator[Finding]:
    """All findings about DestinationRules."""
    defined: dict[tuple[str, str, frozenset[str], str], Resource] = {}
    resources = [
        res for res in world.resources if res.kind == "DestinationRule" and res.typed is not None
    ]
    for resource in sorted(resources, key=lambda res: res.age_key):
        rule = destination_rule(resource, world.mesh)
        services = services_of_host(world, rule.host)
        if not services:
            message = f"{rule.host} is not in the registry: the rule applies to nothing"
            message += hint(world, rule.host, resource.namespace)
            yield resource.finding(Level.WARNING, "MSH0130", message, "spec.host")
        yield from _reach(world, resource, rule, services)
        yield from _subsets(world, resource, services)
        for index, subset in enumerate(rule.subsets):
            key = (rule.host, rule.namespace, rule.export_to, subset.name)
            first = defined.setdefault(key, resource)
            if first is not resource and not rule.selector:
                message = f"subset {subset.name!r} is also in {first} ({first.origin}): that counts"
                path = f"spec.subsets[{index}].name"
                yield resource.finding(Level.WARNING, "MSH0132", message, path)
        endpoints = [endpoint for service in services for endpoint in _endpoints(world, service)]
        yield from _ejection(resource, resource.typed.traffic_policy, endpoints)


def _endpoints(world: World, service: Service) -> tuple[Endpoint, ...]:
    """Those of the port that has most."""
    lists = (world.endpoints(service, port) for port in service.ports)
    return max(lists, key=len, default=())


def _reach(
    world: World, resource: Resource, rule: DestinationRuleConfig, services: list[Service]
) -> Iterator[Finding]:
    """A rule outside of the service's namespace speaks to callers of its own only (D1)."""
    namespace = resource.namespace
    if not services or namespace == world.mesh.root_namespace or rule.export_to <= {".", namespace}:
        return
    if all(service.namespace != namespace for service in services):
        message = (
            f"applies to callers in {namespace} only: {rule.host} belongs to"
            f" {services[0].namespace}, whose own rules speak to everybody else"
        )
        yield resource.finding(Level.INFO, "MSH0134", message, "spec.host")


def _subsets(world: World, resource: Resource, services: list[Service]) -> Iterator[Finding]:
    for index, subset in enumerate(resource.typed.subsets):
        if not subset.labels:
            continue
        for service in services:
            endpoints = _endpoints(world, service)
            if service.resolution is Resolution.NONE or not endpoints:
                continue  # nothing has come up yet: that is not the rule's fault
            if any(contains(endpoint.labels, subset.labels) for endpoint in endpoints):
                continue
            wanted = ", ".join(f"{key}={value}" for key, value in subset.labels.items())
            message = (
                f"subset {subset.name!r} ({wanted}) selects no endpoint of {service.hostname}"
                f" (it has {len(endpoints)}): calls to it get 503{_seen(endpoints, subset.labels)}"
            )
            path = f"spec.subsets[{index}].labels"
            yield resource.finding(Level.WARNING, "MSH0131", message, path)


def _seen(endpoints: tuple[Endpoint, ...], wanted: dict[str, str]) -> str:
    """The values that endpoints do carry under the labels asked for."""
    parts = []
    for key in wanted:
        values = sorted({endpoint.labels[key] for endpoint in endpoints if key in endpoint.labels})
        if values:
            parts.append(f"{key} is {' or '.join(values)}")
    return f"; there {', '.join(parts)}" if parts else "; they carry no such label"


def _ejection(
    resource: Resource, policy: TrafficPolicy | None, endpoints: list[Endpoint]
) -> Iterator[Finding]:
    """A percentage that rounds down to no host at all."""
    outlier = policy.outlier_detection if policy is not None else None
    if outlier is None:
        return
    percent = outlier.max_ejection_percent or DEFAULT_EJECTION_PERCENT
    needed = math.ceil(100 / percent)
    if len(endpoints) >= needed:
        return
    given = "" if outlier.max_ejection_percent else " (the default)"
    now = f"; now it is {len(endpoints)}" if endpoints else ""
    message = (
        f"maxEjectionPercent {percent}{given} ejects nobody among fewer than {needed} hosts{now}"
    )
    path = "spec.trafficPolicy.outlierDetection"
    yield resource.finding(Level.INFO, "MSH0133", message, path)
