"""VirtualServices that match nothing, lead nowhere, or lose to another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from controlplane.analysis.names import closest, hint, services_of_host
from controlplane.model.hosts import is_wildcard
from controlplane.model.registry import Protocol, Service
from controlplane.model.resource import Finding, Level, Resource
from controlplane.model.traffic import (
    MESH_GATEWAY,
    Destination,
    HTTPRoute,
    VirtualServiceConfig,
    VirtualServiceSpec,
)
from controlplane.model.virtual import qualified

if TYPE_CHECKING:
    from controlplane.world import World


def analyze_virtual_services(world: World) -> Iterator[Finding]:
    """All findings about VirtualServices."""
    resources = [
        res for res in world.resources if res.kind == "VirtualService" and res.typed is not None
    ]
    gateways = {f"{res.namespace}/{res.name}" for res in world.resources if res.kind == "Gateway"}
    delegated: set[tuple[str, str]] = set()
    for resource in resources:
        rule = _Rule(world, resource, qualified(resource, world.mesh.domain), gateways)
        yield from rule.findings()
        for route in rule.spec.http:
            if route.delegate is not None:
                target = route.delegate
                delegated.add((target.namespace or resource.namespace, target.name))
    for resource in resources:
        if not resource.typed.hosts and (resource.namespace, resource.name) not in delegated:
            message = "has no hosts and no VirtualService delegates to it: it applies to nothing"
            yield resource.finding(Level.WARNING, "MSH0127", message, "spec")
    yield from _conflicts(world, {(res.namespace, res.name): res for res in resources})


_FAILS = "calls get 503"
_NOT_MIRRORED = "nothing is mirrored"


class _Rule:
    """One document, names qualified, indexes as in the document."""

    def __init__(
        self, world: World, resource: Resource, spec: VirtualServiceSpec, gateways: set[str]
    ) -> None:
        self.world = world
        self.resource = resource
        self.spec = spec
        self.gateways = gateways
        self.for_mesh = not spec.gateways or MESH_GATEWAY in spec.gateways
        self.services = [
            service for host in spec.hosts for service in services_of_host(world, host)
        ]

    def findings(self) -> Iterator[Finding]:
        yield from self._gateways()
        if self.for_mesh:
            yield from self._hosts()
            yield from self._protocols()
        for index, route in enumerate(self.spec.http):
            path = f"spec.http[{index}]"
            yield from self._faults(route, path)
            yield from self._match_ports(route.match, path)
            if route.mirror is not None:
                yield from self._destination(route.mirror, f"{path}.mirror", _NOT_MIRRORED)
            for number, mirror in enumerate(route.mirrors):
                place = f"{path}.mirrors[{number}].destination"
                yield from self._destination(mirror.destination, place, _NOT_MIRRORED)
        for kind, routes in (
            ("http", self.spec.http),
            ("tls", self.spec.tls),
            ("tcp", self.spec.tcp),
        ):
            yield from self._destinations(kind, routes)

    def _say(self, level: Level, code: str, message: str, path: str) -> Finding:
        return self.resource.finding(level, code, message, path)

    def _gateways(self) -> Iterator[Finding]:
        named = [name for name in self.spec.gateways if name != MESH_GATEWAY]
        for index, name in enumerate(self.spec.gateways):
            if name != MESH_GATEWAY and name not in self.gateways:
                message = f"Gateway {name} does not exist{closest(name, self.gateways)}"
                yield self._say(Level.ERROR, "IST0101", message, f"spec.gateways[{index}]")
        if named and not self.for_mesh and any(s.source == "kubernetes" for s in self.services):
            message = (
                "speaks to gateways only: calls inside the mesh are not changed;"
                ' add "mesh" to gateways if they should be'
            )
            yield self._say(Level.INFO, "MSH0124", message, "spec.gateways")

    def _hosts(self) -> Iterator[Finding]:
        namespace = self.resource.namespace
        for index, host in enumerate(self.spec.hosts):
            path = f"spec.hosts[{index}]"
            found = services_of_host(self.world, host)
            if not found and self._is_of_a_gateway(host) and not hint(self.world, host, namespace):
                continue
            if not found:
                if is_wildcard(host):
                    message = f"{host} matches no service: the rule applies to nothing"
                else:  # H15
                    message = (
                        f"{host} is not in the registry: the rule counts for calls to port 80 of"
                        " just that name and for nothing else"
                    )
                message += hint(self.world, host, namespace)
                yield self._say(Level.WARNING, "MSH0120", message, path)
            elif not any(service.visible_to(namespace) for service in found):
                message = (
                    f"{found[0].resource} does not export {host} to {namespace}:"
                    " callers there cannot see it"
                )
                yield self._say(Level.WARNING, "MSH0122", message, path)

    def _is_of_a_gateway(self, host: str) -> bool:
        """A name that the world outside uses need not be in the registry."""
        outside = any(name != MESH_GATEWAY for name in self.spec.gateways)
        return outside and not host.endswith(f".svc.{self.world.mesh.domain}")

    def _protocols(self) -> Iterator[Finding]:
        """HTTP rules do nothing on ports that are not HTTP."""
        if not self.spec.http:
            return
        for service in self.services:
            ports = [p for p in service.ports if p.protocol is not Protocol.UDP]
            opaque = [
                port
                for port in ports
                if not port.protocol.is_http and port.protocol is not Protocol.UNSUPPORTED
            ]
            if ports and len(opaque) == len(ports):
                spoken = ", ".join(
                    f"{port.name or port.number}: {port.protocol.value}" for port in opaque
                )
                message = (
                    f"no port of {service.hostname} speaks HTTP ({spoken}): http rules have no"
                    ' effect; name the port "http-…" or set appProtocol if it does'
                )
                yield self._say(Level.WARNING, "MSH0126", message, "spec.http")

    def _faults(self, route: HTTPRoute, path: str) -> Iterator[Finding]:
        if route.fault is None:
            return
        for name in ("delay", "abort"):
            fault = getattr(route.fault, name)
            if fault is not None and (fault.percentage is None or fault.percentage.value == 0):
                message = "affects no request: percentage is 0 (as it is when left out)"
                yield self._say(Level.WARNING, "MSH0125", message, f"{path}.fault.{name}")

    def _match_ports(self, matches: Iterable[Any], path: str) -> Iterator[Finding]:
        known = {port.number for service in self.services for port in service.ports}
        for index, match in enumerate(matches):
            if match.port and known and match.port not in known:
                ports = ", ".join(map(str, sorted(known)))
                message = f"no host of this rule has port {match.port}: they have {ports}"
                yield self._say(Level.WARNING, "MSH0123", message, f"{path}.match[{index}].port")

    def _destinations(self, kind: str, routes: Iterable[Any]) -> Iterator[Finding]:
        for index, route in enumerate(routes):
            for number, item in enumerate(route.route):
                path = f"spec.{kind}[{index}].route[{number}].destination"
                yield from self._destination(item.destination, path)

    def _destination(
        self, destination: Destination, path: str, effect: str = _FAILS
    ) -> Iterator[Finding]:
        world, namespace, host = self.world, self.resource.namespace, destination.host
        service = world.service(host, namespace)
        if service is None:
            found = services_of_host(world, host)
            service = next((one for one in found if one.visible_to(namespace)), None)
            if service is None and found:
                message = f"{found[0].resource} does not export {host} to {namespace}"
                yield self._say(Level.ERROR, "MSH0122", message, f"{path}.host")
                return
        if service is None:
            message = f"host {host} is not in the registry: {effect}"
            message += hint(world, host, namespace)
            yield self._say(Level.ERROR, "IST0101", message, f"{path}.host")
            return
        yield from self._port(destination, service, path)
        if destination.subset:
            yield from self._subset(destination, service, path, effect)

    def _port(self, destination: Destination, service: Service, path: str) -> Iterator[Finding]:
        number = destination.port_number
        ports = ", ".join(
            f"{port.number} ({port.name})" if port.name else str(port.number)
            for port in service.ports
        )
        if number and service.ports and service.port(number) is None:
            message = f"{service.hostname} has no port {number}: it has {ports}"
            yield self._say(Level.ERROR, "MSH0121", message, f"{path}.port.number")
        elif not number and len(service.ports) > 1:
            own = {one.hostname for one in self.services}
            if service.hostname not in own:
                message = f"{service.hostname} has several ports ({ports}): say which"
                yield self._say(Level.ERROR, "IST0112", message, f"{path}.port")

    def _subset(
        self, destination: Destination, service: Service, path: str, effect: str
    ) -> Iterator[Finding]:
        policy = self.world.destination_rule(self.resource.namespace, service)
        if policy is None:
            message = f"subset {destination.subset!r}: no DestinationRule defines subsets for"
            message += f" {service.hostname}: {effect}"
            yield self._say(Level.ERROR, "IST0101", message, f"{path}.subset")
        elif policy.subset(destination.subset) is None:
            names = [subset.name for subset in policy.subsets]
            message = f"{policy} has no subset {destination.subset!r}: {effect}"
            message += closest(destination.subset, names)
            yield self._say(Level.ERROR, "IST0101", message, f"{path}.subset")


def _conflicts(world: World, resources: dict[tuple[str, str], Resource]) -> Iterator[Finding]:
    """H11: of several VirtualServices for one mesh host the oldest wins, nothing is merged."""
    by_host: dict[str, list[VirtualServiceConfig]] = defaultdict(list)
    for rule in world.all_virtual_services:
        if rule.for_mesh:
            for host in rule.hosts:
                by_host[host].append(rule)
    for host, rules in sorted(by_host.items()):
        for index, loser in enumerate(rules):
            winner = next((one for one in rules[:index] if _meet(one, loser)), None)
            if winner is None:
                continue
            resource = resources[loser.namespace, loser.name]
            path = f"spec.hosts[{loser.hosts.index(host)}]"
            message = (
                f"host {host} is ruled by {winner} ({winner.origin}) already: that one is older"
                " (or comes first by name), this one has no effect for calls of the mesh"
            )
            yield resource.finding(Level.ERROR, "IST0109", message, path)


def _meet(one: VirtualServiceConfig, other: VirtualServiceConfig) -> bool:
    """Whether some namespace sees both."""
    namespaces = {one.namespace, other.namespace} | (one.export_to | other.export_to) - {".", "~"}
    return any(one.visible_to(name) and other.visible_to(name) for name in namespaces)
