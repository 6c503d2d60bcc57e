"""Istio's own cases of outbound routes: which clusters each host's routes lead to.

The cases are for sidecars, whose route configuration holds all hosts of a port; here each host of
a port has its own, so a case is asked host by host.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import pytest

from controlplane.model.parse import load_text
from controlplane.model.resource import Resource
from controlplane.translate import resources as xds
from controlplane.world import World
from meshsdk.model import ForwardAction
from meshsdk.xds.decode import DECODERS
from tests.support.controlplane import make_node
from tests.support.programs import require_data

_DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "istio" / "simulation"
_CASES = (
    json.loads((_DATA / "sidecar-routes.json").read_text()) if _DATA.exists() else [{"id": "-"}]
)


@functools.cache
def _known_services() -> tuple[Resource, ...]:
    folder = require_data("istio/simulation")
    return load_text((folder / "known-services.yaml").read_text())


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
