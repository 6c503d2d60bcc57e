"""Which DestinationRule applies to a call (semantics D1 to D5). Pure.

Source: Istio pilot/pkg/model/push_context.go setDestinationRules, destinationRule;
destination_rule.go mergeDestinationRule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.model.hosts import is_wildcard, most_specific, qualify
from controlplane.model.meshconfig import MeshConfig
from controlplane.model.policy import DestinationRuleConfig, DestinationRuleSpec, Subset
from controlplane.model.registry import exported_to
from controlplane.model.resource import Resource
from controlplane.model.workloads import contains

_Rules = dict[str, list[DestinationRuleConfig]]


@dataclass(slots=True)
class _Namespace:
    """The rules of one namespace by host."""

    exact: _Rules = field(default_factory=dict)
    wildcard: _Rules = field(default_factory=dict)

    def add(self, rule: DestinationRuleConfig) -> None:
        by_host = self.wildcard if is_wildcard(rule.host) else self.exact
        rules = by_host.setdefault(rule.host, [])
        for index, known in enumerate(rules):
            if known.export_to == rule.export_to and known.selector == rule.selector:
                rules[index] = _merge(known, rule)
                return
        rules.append(rule)

    def match(self, host: str) -> list[DestinationRuleConfig]:
        return most_specific(host, self.exact, self.wildcard) or []


class DestinationRules:
    """All DestinationRules, indexed. Immutable once built."""

    def __init__(self, resources: Iterable[Resource], mesh: MeshConfig) -> None:
        self._root = mesh.root_namespace
        self._local: dict[str, _Namespace] = {}
        self._exported: dict[str, _Namespace] = {}
        ordered = sorted(resources, key=lambda resource: resource.age_key)
        # Rules with a workload selector come first (D3).
        for resource in sorted(ordered, key=lambda r: r.typed.workload_selector is None):
            rule = destination_rule(resource, mesh)
            self._local.setdefault(rule.namespace, _Namespace()).add(rule)
            if not rule.selector and not rule.export_to <= {".", rule.namespace}:
                self._exported.setdefault(rule.namespace, _Namespace()).add(rule)

    def all(self) -> list[DestinationRuleConfig]:
        """Every merged rule."""
        return [
            rule
            for local in self._local.values()
            for by_host in (local.exact, local.wildcard)
            for rules in by_host.values()
            for rule in rules
        ]

    def find(
        self,
        namespace: str,
        host: str,
        service_namespace: str,
        labels: Mapping[str, str] | None = None,
    ) -> DestinationRuleConfig | None:
        """The rule for calls from `namespace` to `host` (D1)."""
        rules = self.candidates(namespace, host, service_namespace)
        chosen = None
        for rule in rules:
            if not rule.selector:
                chosen = rule
            elif rule.namespace == namespace and contains(labels or {}, rule.selector):
                return rule
        return chosen

    def candidates(
        self, namespace: str, host: str, service_namespace: str
    ) -> list[DestinationRuleConfig]:
        """The rules of the first namespace that has any for this host."""
        if (local := self._local.get(namespace)) is not None:
            found = local.match(host)
            if namespace == self._root:
                # What the root namespace exports speaks to everybody: a service's own namespace
                # goes before it. Only rules kept to the root namespace count here.
                found = [rule for rule in found if rule.export_to & {".", namespace}]
            if found:
                return found
        for owner in dict.fromkeys((service_namespace, self._root)):
            if (exported := self._exported.get(owner)) is None:
                continue
            found = [
                rule
                for rule in exported.match(host)
                if exported_to(rule.export_to, owner, namespace)
            ]
            if found:
                return found
        return []


def destination_rule(resource: Resource, mesh: MeshConfig) -> DestinationRuleConfig:
    """One document as a rule of its own."""
    spec: DestinationRuleSpec = resource.typed
    selector = spec.workload_selector.match_labels if spec.workload_selector else {}
    export_to = frozenset(spec.export_to) or mesh.default_destination_rule_export_to
    return DestinationRuleConfig(
        host=qualify(spec.host, resource.namespace, mesh.domain),
        namespace=resource.namespace,
        traffic_policy=spec.traffic_policy,
        subsets=_unique(spec.subsets),
        export_to=frozenset(".") if selector else export_to,
        selector=selector,
        created=resource.created,
        names=(resource.name,),
        origin=resource.origin,
    )


def _merge(older: DestinationRuleConfig, newer: DestinationRuleConfig) -> DestinationRuleConfig:
    return dataclasses.replace(
        older,
        traffic_policy=older.traffic_policy or newer.traffic_policy,
        subsets=_unique((*older.subsets, *newer.subsets)),
        names=older.names + newer.names,
    )


def _unique(subsets: Iterable[Subset]) -> tuple[Subset, ...]:
    seen: dict[str, Subset] = {}
    for subset in subsets:
        seen.setdefault(subset.name, subset)
    return tuple(seen.values())
