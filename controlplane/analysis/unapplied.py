"""What a rule asks for and nobody does yet: said, so that no one relies on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from controlplane.model.policy import ConnectionPool, LoadBalancer, PortPolicy, TrafficPolicy
from controlplane.model.resource import Finding, Level, Resource

if TYPE_CHECKING:
    from controlplane.world import World

_LATER = "is accepted and sent to clients; the SDK does not act on it yet"


def analyze_unapplied(world: World) -> Iterator[Finding]:
    """One finding per document and feature."""
    for resource in world.resources:
        if resource.typed is None:
            continue
        if resource.kind == "DestinationRule":
            yield from _destination_rule(resource)
        elif resource.kind == "VirtualService":
            yield from _virtual_service(resource)


def _destination_rule(resource: Resource) -> Iterator[Finding]:
    said: set[str] = set()
    for path, policy in _policies(resource):
        if policy.tls is not None and policy.tls.mode != "DISABLE":
            mode = policy.tls.mode
            message = f"{mode} is not applied yet: calls by http:// and gRPC go out in plain text"
            yield resource.finding(Level.WARNING, "MSH0104", message, f"{path}.tls.mode")
        for field, asked in _asked(policy):
            if asked and field not in said:
                said.add(field)
                yield resource.finding(Level.INFO, "MSH0105", _LATER, f"{path}.{field}")


def _policies(resource: Resource) -> Iterator[tuple[str, TrafficPolicy | PortPolicy]]:
    """Every policy of a rule with its path; those of ports count as policies of their own."""
    rule = resource.typed
    found = [("spec.trafficPolicy", rule.traffic_policy)]
    for index, subset in enumerate(rule.subsets):
        found.append((f"spec.subsets[{index}].trafficPolicy", subset.traffic_policy))
    for path, policy in found:
        if policy is None:
            continue
        yield path, policy
        for index, port in enumerate(policy.port_level_settings):
            yield f"{path}.portLevelSettings[{index}]", port


def _asked(policy: TrafficPolicy | PortPolicy) -> Iterator[tuple[str, bool]]:
    balancer = policy.load_balancer or LoadBalancer()
    yield "outlierDetection", policy.outlier_detection is not None
    pool = policy.connection_pool or ConnectionPool()
    limits = pool.tcp is not None and pool.tcp.max_connections  # its connectTimeout is applied
    yield "connectionPool", bool(pool.http or limits)
    yield "loadBalancer.consistentHash", balancer.consistent_hash is not None


def _virtual_service(resource: Resource) -> Iterator[Finding]:
    said: set[str] = set()
    for index, rule in enumerate(resource.typed.http):
        asked = {
            "retries": rule.retries is not None and rule.retries.attempts != 0,
            "mirror": rule.mirror is not None,
            "mirrors": bool(rule.mirrors),
        }
        for field in (name for name, wanted in asked.items() if wanted and name not in said):
            said.add(field)
            yield resource.finding(Level.INFO, "MSH0105", _LATER, f"spec.http[{index}].{field}")
