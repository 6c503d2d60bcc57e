"""Subsets of a cluster by the metadata of its endpoints (Envoy "Load Balancer Subsets").

A route asks for metadata; a selector says which keys make subsets. Which subset it is does not
depend on the call, so that all of them are made with the view and a route is given one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from meshsdk.balancing.endpoint import EndpointState
from meshsdk.balancing.layers import Group, Layer
from meshsdk.model import SubsetFallback, Subsets, SubsetSelector

V = TypeVar("V")
_FALLBACK_LIST = "fallback_list"
Labels = tuple[tuple[str, str], ...]
"""Keys in order, with their values as JSON: 1, "1" and true differ."""


def _labels(match: Mapping[str, Any]) -> Labels:
    return tuple((key, json.dumps(match[key], sort_keys=True)) for key in sorted(match))


def _lb(state: EndpointState) -> Mapping[str, Any]:
    found: Mapping[str, Any] = state.endpoint.metadata.get("envoy.lb") or {}
    return found


def _of_selector(state: EndpointState, keys: frozenset[str], list_as_any: bool) -> Iterator[Labels]:
    """The subsets of a selector that an endpoint belongs to."""
    metadata = _lb(state)
    if not keys or not keys <= metadata.keys():
        return
    found: list[dict[str, Any]] = [{}]
    for key in keys:
        value = metadata[key]
        values = value if list_as_any and isinstance(value, list) else [value]
        found = [{**labels, key: each} for labels in found for each in values]
    yield from map(_labels, found)


def _matches(state: EndpointState, wanted: Mapping[str, Any], list_as_any: bool) -> bool:
    metadata = _lb(state)
    for key, value in wanted.items():
        have = metadata.get(key)
        if list_as_any and isinstance(have, list):
            if value not in have:
                return False
        elif key not in metadata or have != value:
            return False
    return True


class SubsetViews(Generic[V]):
    """The views of all subsets of a cluster.

    Args:
        make: makes a view of layers; `single` for one that has one endpoint.
        has_endpoints: whether a view has anything to offer.
    """

    def __init__(
        self,
        config: Subsets,
        layers: tuple[Layer, ...],
        make: Callable[[tuple[Layer, ...], bool], V],
        has_endpoints: Callable[[V], bool],
    ) -> None:
        self._config = config
        self._has_endpoints = has_endpoints
        self._nothing = make((), False)
        self._any = make(layers, False)
        wanted, as_any = config.default_subset, config.list_as_any
        self._default = make(
            _filtered(layers, lambda state: _matches(state, wanted, as_any), config), False
        )
        self._views: dict[Labels, V] = {}
        self._selectors: dict[frozenset[str], SubsetSelector] = {}
        for selector in config.selectors:
            # The first selector of the same keys decides.
            if self._selectors.setdefault(selector.keys, selector) is selector:
                self._add(selector, layers, make)

    def _add(
        self,
        selector: SubsetSelector,
        layers: tuple[Layer, ...],
        make: Callable[[tuple[Layer, ...], bool], V],
    ) -> None:
        members: dict[Labels, set[EndpointState]] = {}
        for layer in layers:
            for state in layer.hosts:
                for labels in _of_selector(state, selector.keys, self._config.list_as_any):
                    members.setdefault(labels, set()).add(state)
        for labels, states in members.items():
            chosen = _filtered(layers, states.__contains__, self._config)
            self._views[labels] = make(chosen, selector.single_host)

    def find(self, match: Mapping[str, Any] | None) -> V:
        """The view for what a route asks for; None or nothing asks for no subset."""
        if match and self._config.fallback_list and _FALLBACK_LIST in match:
            rest = {key: value for key, value in match.items() if key != _FALLBACK_LIST}
            tries = match[_FALLBACK_LIST]
            for more in tries:
                found = self._find({**rest, **more})
                if self._has_endpoints(found):
                    return found
            return self._nothing if tries else self._find(rest)
        return self._find(match or {})

    def _find(self, match: Mapping[str, Any]) -> V:
        if self._config.allow_redundant_keys:
            keys = next((s.keys for s in self._config.selectors if s.keys <= match.keys()), None)
            match = match if keys is None else {key: match[key] for key in keys}
        found = self._views.get(_labels(match))
        if found is not None:
            return found
        selector = self._selectors.get(frozenset(match))
        if selector is None or selector.fallback is None:
            return self._fallback(self._config.fallback)
        if selector.fallback is SubsetFallback.KEYS_SUBSET:
            return self._find({key: match[key] for key in selector.fallback_keys})
        return self._of(selector.fallback)

    def _fallback(self, fallback: SubsetFallback) -> V:
        found = self._of(fallback)
        if (
            fallback is SubsetFallback.DEFAULT_SUBSET
            and self._config.panic_mode_any
            and not self._has_endpoints(found)
        ):
            return self._any
        return found

    def _of(self, fallback: SubsetFallback) -> V:
        if fallback is SubsetFallback.ANY_ENDPOINT:
            return self._any
        return self._default if fallback is SubsetFallback.DEFAULT_SUBSET else self._nothing


def _filtered(
    layers: tuple[Layer, ...], keep: Callable[[EndpointState], bool], config: Subsets
) -> tuple[Layer, ...]:
    """The layers with the endpoints of a subset only."""

    def filtered(group: Group) -> Group:
        states = tuple(filter(keep, group.states))
        weight = group.weight
        if config.scale_locality_weight and group.states:
            weight = int(weight * len(states) / len(group.states) + 0.5)
        return Group(group.place, weight, states)

    return tuple(layer.having(map(filtered, layer.groups)) for layer in layers)
