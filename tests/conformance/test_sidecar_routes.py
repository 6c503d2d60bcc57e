"""Istio's own cases of outbound routes: which clusters each host's routes lead to.

The cases are for sidecars, whose route configuration holds all hosts of a port; here each host of
a port has its own, so a case is asked host by host.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from typing import Any

import pytest

from controlplane.model.hosts import with_port
from controlplane.model.parse import load_text
from controlplane.model.resource import Resource
from controlplane.translate import resources as xds
from controlplane.translate.node import Node
from controlplane.world import World
from meshsdk.model import ForwardAction
from meshsdk.xds.decode import DECODERS
from tests.support.controlplane import make_node
from tests.support.programs import require_data

_DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "istio" / "simulation"
_CASES, _CALLS = (
    json.loads((_DATA / name).read_text()) if _DATA.exists() else [{"id": "-", "proxy": {}}]
    for name in ("sidecar-routes.json", "calls.json")
)


@functools.cache
def _known_services() -> tuple[Resource, ...]:
    folder = require_data("istio/simulation")
    return load_text((folder / "known-services.yaml").read_text())


@pytest.mark.topic("istio/simulation")
@pytest.mark.parametrize("case", _CASES, ids=lambda case: case["id"])
def test_sidecar_routes(case: dict[str, Any]) -> None:
    services = _known_services()
    text = "\n---\n".join(json.dumps(document) for document in case["resources"])
    world = World.build([*services, *load_text(text)], analyze=False)
    port = case["routeName"]
    for host, clusters in (case["expected"] or {}).items():
        assert _clusters(world, case["proxyNamespace"], host, port) == clusters, host


def _clusters(world: World, namespace: str, host: str, port: str) -> list[str] | None:
    """The clusters behind a host, in the order of its routes; None when it has no routes."""
    node = make_node(namespace)
    name = host if host.rpartition(":")[2] == port else f"{host}:{port}"
    listener = xds.listener(world, node, name)
    decoder = DECODERS[xds.LDS]
    assert listener is not None
    value: Any = decoder.decode(decoder.parse(listener.SerializeToString()), [])
    if host == "allow_any":
        return ["PassthroughCluster"]
    if value.route_config is not None:
        return None  # what is said of hosts that nobody knows
    route = xds.route(world, node, value.route_config_name)
    assert route is not None
    decoder = DECODERS[xds.RDS]
    config: Any = decoder.decode(decoder.parse(route.SerializeToString()), [])
    found = config.virtual_host(name)
    return [
        weighted.cluster
        for one in found.routes
        if isinstance(one.action, ForwardAction)
        for weighted in one.action.clusters
    ]


def _call_marks(case: dict[str, Any]) -> list[pytest.MarkDecorator]:
    """Gateways and what servers receive need Envoy's listeners."""
    inbound = any(item["call"].get("callMode") == "inbound" for item in case.get("calls", ()))
    if case["proxy"].get("type") == "router" or inbound:
        return [pytest.mark.awaits("the Envoy dialect")]
    return []


@pytest.mark.topic("istio/simulation")
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case["id"], marks=_call_marks(case)) for case in _CALLS]
)
def test_calls(case: dict[str, Any]) -> None:
    """A call by address or by host of its request: which cluster does it end in?"""
    require_data("istio/simulation")
    text = "\n---\n".join(case.get(name) or "" for name in ("kubeConfig", "config"))
    text = re.sub(r"tcp:\n  - name: .*\n   ", "tcp:\n  -", text)  # which no version of the kind has
    world = World.build(load_text(text), analyze=False)
    node = make_node(case["proxy"]["namespace"], LABELS=case["proxy"].get("labels") or {})
    xds.everything(world, node)
    for item in case["calls"]:
        call, result = item["call"], item["result"]
        host = call.get("hostHeader") or call["address"]
        name = with_port(host.partition(":")[0] if host.count(":") == 1 else host, call["port"])
        assert _end(world, node, name) == result["clusterMatched"], item["name"]


def _end(world: World, node: Node, name: str) -> str | None:
    listener = xds.listener(world, node, name)
    assert listener is not None
    decoder = DECODERS[xds.LDS]
    value: Any = decoder.decode(decoder.parse(listener.SerializeToString()), [])
    config = value.route_config
    if config is None:
        route = xds.route(world, node, value.route_config_name)
        assert route is not None
        decoder = DECODERS[xds.RDS]
        config = decoder.decode(decoder.parse(route.SerializeToString()), [])
    found = config.virtual_host(name)
    actions = (route.action for route in found.routes if isinstance(route.action, ForwardAction))
    return next((action.clusters[0].cluster for action in actions), None)
