"""Which facts about their callers the rules of a world look at: the rest makes no variants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controlplane.model.envoyfilter import EnvoyFilterSpec
from controlplane.model.policy import (
    DestinationRuleSpec,
    LoadBalancer,
    PortPolicy,
    TrafficPolicy,
)
from controlplane.model.sidecar import SidecarSpec
from controlplane.model.traffic import HTTPMatch, TCPMatch, TLSMatch, VirtualServiceSpec
from controlplane.translate.node import TOPOLOGY, VERSION, Relevant
from controlplane.world import World


def relevant(world: World) -> Relevant:
    """The labels and metadata that sourceLabels, selectors and locality settings ask for."""
    keys: set[str] = set()
    metadata: set[str] = set()
    for resource in world.resources:
        spec = resource.typed
        if isinstance(spec, VirtualServiceSpec):
            keys.update(key for match in _matches(spec) for key in match.source_labels)
        elif isinstance(spec, DestinationRuleSpec):
            if spec.workload_selector is not None:
                keys.update(spec.workload_selector.match_labels)
            keys.update(_of_policies(_policies(spec)))
        elif isinstance(spec, SidecarSpec):
            keys.update(spec.labels)
        elif isinstance(spec, EnvoyFilterSpec):
            keys.update(spec.labels)
            metadata.update(_of_proxies(spec))
    if world.mesh.default_traffic_policy is not None:
        keys.update(_of_policies([world.mesh.default_traffic_policy]))
    keys.update(_priorities(world.mesh.locality_lb.failover_priority))
    if any(service.traffic_distribution for service in world.services):
        keys |= TOPOLOGY
    return Relevant(frozenset(keys), frozenset(metadata))


def _matches(spec: VirtualServiceSpec) -> Iterator[HTTPMatch | TLSMatch | TCPMatch]:
    for http in spec.http:
        yield from http.match
    for tls in spec.tls:
        yield from tls.match
    for tcp in spec.tcp:
        yield from tcp.match


def _policies(spec: DestinationRuleSpec) -> Iterator[TrafficPolicy | PortPolicy]:
    for policy in (spec.traffic_policy, *(subset.traffic_policy for subset in spec.subsets)):
        if policy is not None:
            yield policy
            yield from policy.port_level_settings


def _of_policies(policies: Iterable[TrafficPolicy | PortPolicy]) -> Iterator[str]:
    for policy in policies:
        balancer = policy.load_balancer or LoadBalancer()
        setting = balancer.locality_lb_setting or balancer.zone_aware_lb_setting
        if setting is not None or policy.outlier_detection is not None:
            yield from TOPOLOGY
        if setting is not None:
            yield from _priorities(setting.failover_priority)


def _of_proxies(spec: EnvoyFilterSpec) -> Iterator[str]:
    for patch in spec.config_patches:
        if (proxy := patch.match.proxy) is not None:
            yield from proxy.metadata
            if proxy.proxy_version:
                yield VERSION


def _priorities(listed: Iterable[str]) -> Iterator[str]:
    for entry in listed:
        yield entry.partition("=")[0]
