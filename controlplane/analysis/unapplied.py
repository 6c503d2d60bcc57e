"""What a rule asks for and nobody does yet: said, so that no one relies on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from controlplane.model.policy import ConnectionPool, PortPolicy, TrafficPolicy
from controlplane.model.resource import Finding, Level, Resource
from controlplane.model.sidecar import SidecarSpec

if TYPE_CHECKING:
    from controlplane.world import World

_NEVER = "is not honoured: the application's own connections go straight to the endpoints"
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
        elif resource.kind == "Sidecar":
            yield from _sidecar(resource)


def _destination_rule(resource: Resource) -> Iterator[Finding]:
    said: set[str] = set()
    for path, policy in _policies(resource):
        if policy.tls is not None and policy.tls.mode == "ISTIO_MUTUAL":
            message = "ISTIO_MUTUAL is not applied yet: calls go out in PLAIN TEXT"
            yield resource.finding(Level.ERROR, "MSH0104", message, f"{path}.tls.mode")
        elif policy.tls is not None and policy.tls.credential_name:
            message = "clients have no secrets by name: they refuse to call; name files instead"
            yield resource.finding(Level.ERROR, "MSH0104", message, f"{path}.tls.credentialName")
        for field in _never(policy):
            yield resource.finding(Level.WARNING, "MSH0107", _NEVER, f"{path}.{field}")
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


def _never(policy: TrafficPolicy | PortPolicy) -> Iterator[str]:
    """Fields that have no meaning for a client inside of the application."""
    if not isinstance(policy, TrafficPolicy):
        return
    if policy.tunnel is not None:
        yield "tunnel"
    if policy.proxy_protocol is not None:
        yield "proxyProtocol"
    if policy.retry_budget is not None and policy.retry_budget.budget_interval:
        yield "retryBudget.budgetInterval"


def _asked(policy: TrafficPolicy | PortPolicy) -> Iterator[tuple[str, bool]]:
    yield "outlierDetection", policy.outlier_detection is not None
    pool = policy.connection_pool or ConnectionPool()
    limits = pool.tcp is not None and pool.tcp.max_connections  # its connectTimeout is applied
    yield "connectionPool", bool(pool.http or limits)


def _virtual_service(resource: Resource) -> Iterator[Finding]:
    said = False
    for index, rule in enumerate(resource.typed.http):
        asked = rule.retries is not None and rule.retries.attempts != 0
        if asked and not said:
            said = True
            yield resource.finding(Level.INFO, "MSH0105", _LATER, f"spec.http[{index}].retries")


def _sidecar(resource: Resource) -> Iterator[Finding]:
    """What Sidecars say of proxies that listen: a program with the SDK listens by itself."""
    spec: SidecarSpec = resource.typed
    for field, asked in (
        ("ingress", spec.ingress),
        ("inboundConnectionPool", spec.inbound_connection_pool),
    ):
        if asked:
            message = "is not honoured by SDK nodes: their programs listen by themselves"
            yield resource.finding(Level.WARNING, "MSH0107", message, f"spec.{field}")
    for index, listener in enumerate(spec.egress):
        if listener.bind:
            message = "is not honoured by SDK nodes: they call by host and port"
            path = f"spec.egress[{index}].bind"
            yield resource.finding(Level.WARNING, "MSH0107", message, path)
