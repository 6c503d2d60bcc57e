"""What configuration costs the process: taking in a whole mesh, one change, and finding a route.

The resources are those that our own control plane makes of 1000 Services with five workloads each.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import time
from collections.abc import Iterable
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from controlplane.model.parse import load_text
from controlplane.translate.node import Node
from controlplane.translate.resources import everything
from controlplane.world import World
from meshsdk.balancing import ClusterPool
from meshsdk.call import Request, decide
from meshsdk.matching import PathKind, PathMatch
from meshsdk.model import (
    DirectResponseAction,
    ListenerView,
    Route,
    RouteConfiguration,
    RouteMatch,
    Snapshot,
    VirtualHost,
)
from meshsdk.xds.configuration import Configuration
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.naming import ByName
from meshsdk.xds.resolve import Resolver
from meshsdk.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE
from meshsdk.xds.stream import AdsMachine

SERVICES = 1000
ENDPOINTS = 5
_ID = "sidecar~127.0.0.1~bench.default~default.svc.cluster.local"
_PREFIX = "type.googleapis.com/"
Responses = dict[str, list[any_pb2.Any]]


def mesh(services: int = SERVICES) -> Responses:
    """All resources of a mesh, by type, as they come over the wire."""
    made = _everything(
        (number, [f"10.{number // 250}.{number % 250}.{each + 1}" for each in range(ENDPOINTS)])
        for number in range(services)
    )
    return {url: made[url] for url in (CLUSTER, ENDPOINT, LISTENER, ROUTE)}


def _everything(services: Iterable[tuple[int, list[str]]]) -> Responses:
    texts = []
    for number, addresses in services:
        name, ports = f"svc-{number}", [{"name": "http", "port": 9080}]
        spec = {"selector": {"app": name}, "ports": ports}
        meta = {"name": name, "namespace": "default"}
        texts.append({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
        texts += [
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "WorkloadEntry",
                "metadata": {"name": f"{name}-{index}", "namespace": "default"},
                "spec": {"address": address, "labels": {"app": name}},
            }
            for index, address in enumerate(addresses)
        ]
    world = World.build([each for text in texts for each in load_text(json.dumps(text))])
    node = Node.make(_ID, {"GENERATOR": "grpc", "NAMESPACE": "default"}, user_agent="meshsdk")
    found: Responses = {}
    for url, messages in everything(world, node).items():
        full = url if url.startswith(_PREFIX) else _PREFIX + url
        found[full] = [any_pb2.Any(type_url=full, value=m.SerializeToString()) for m in messages]
    return found


def _response(url: str, resources: list[any_pb2.Any], version: str) -> Any:
    return discovery_pb2.DiscoveryResponse(
        type_url=url, version_info=version, nonce=version, resources=resources
    )


def _names(url: str, resources: list[any_pb2.Any]) -> list[str]:
    decoder = DECODERS[url]
    return [getattr(decoder.parse(each.value), decoder.name_field) for each in resources]


def _taken_in(responses: Responses, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds for a whole mesh, cold: to decode and check it, and to put it in force."""
    decoding, applying = [], []
    names = {url: _names(url, resources) for url, resources in responses.items()}
    for _ in range(rounds):
        machine = AdsMachine(base_pb2.Node(id=_ID), DECODERS)
        pool = ClusterPool(random.random, time.monotonic)
        resolver = Resolver(machine.resource, ByName("default"), pool.view, _ID)
        machine.connected(0.0)
        for url, wanted in names.items():
            machine.subscribe(url, wanted, 0.0)
        resolver.want(clients=names[LISTENER])
        gc.collect()
        gc.freeze()  # what the bench itself holds is not to be looked through
        changed: set[tuple[str, str]] = set()
        begun = time.perf_counter()
        for url, resources in responses.items():
            changed |= machine.received(_response(url, resources, "1"), 0.0).changed
        decoded = time.perf_counter()
        resolution = resolver.update(changed)
        snapshot = Snapshot(listeners=resolution.listeners)
        applying.append((time.perf_counter() - decoded) * 1000)
        decoding.append((decoded - begun) * 1000)
        gc.unfreeze()
        ready = [view for view in snapshot.listeners.values() if view.clusters]
        assert len(ready) >= SERVICES, f"{len(ready)} services are in force"
    return decoding, applying


def _one_change(responses: Responses, changes: int) -> list[float]:
    """Microseconds from a response that moves one endpoint to the snapshot in force."""
    configuration = Configuration(base_pb2.Node(id=_ID), ByName("default"), 5000, Snapshot())
    configuration.machine.connected(0.0)
    configuration.want(_names(LISTENER, responses[LISTENER]), 0.0)
    for url in (LISTENER, ROUTE, CLUSTER, ENDPOINT):
        configuration.received(_response(url, responses[url], "1"), 0.0)
    coming = []
    for change in range(changes):
        addresses = [f"10.0.7.{each + 1}" for each in range(ENDPOINTS - 1)]
        addresses.append(f"10.9.{change}.1")
        changed = _everything([(7, addresses)])[ENDPOINT]
        coming.append(_response(ENDPOINT, changed, f"change {change}"))
    spent = []
    gc.collect()
    gc.freeze()
    for response in coming:
        before = configuration.snapshot()
        begun = time.perf_counter()
        configuration.received(response, 0.0)
        after = configuration.snapshot()
        spent.append((time.perf_counter() - begun) * 1e6)
        assert after is not before
    gc.unfreeze()
    return spent


def _view(*paths: PathMatch) -> ListenerView:
    routes = tuple(
        Route(f"r{index}", RouteMatch(path), DirectResponseAction(200))
        for index, path in enumerate(paths)
    )
    host = VirtualHost("all", ("*",), routes)
    return ListenerView("bench:80", RouteConfiguration("bench", (host,)))


def _decided(view: ListenerView, path: str, calls: int) -> float:
    request = Request("GET", path, authority="bench:80")
    begun = time.perf_counter()
    for _ in range(calls):
        decide(view, request, random.random)
    return (time.perf_counter() - begun) / calls * 1e6


def matching(rounds: int, calls: int) -> tuple[float, float]:
    """Median of paired rounds: microseconds that 100 routes add to one, and the ratio of 1000
    exact paths to 10; each time the last route matches."""
    one = _view(PathMatch(PathKind.PREFIX, "/p99/"))
    hundred = _view(*(PathMatch(PathKind.PREFIX, f"/p{n}/") for n in range(100)))
    ten, thousand = (
        _view(*(PathMatch(PathKind.EXACT, f"/exact/{n}") for n in range(count)))
        for count in (10, 1000)
    )
    added, ratio = [], []
    for _ in range(rounds):
        added.append(_decided(hundred, "/p99/x", calls) - _decided(one, "/p99/x", calls))
        few = _decided(ten, "/exact/9", calls)
        ratio.append(_decided(thousand, "/exact/999", calls) / few)
    return statistics.median(added), statistics.median(ratio)


def run(quick: bool) -> dict[str, list[float]]:
    """Samples: `decode` and `apply` in milliseconds, `change` in microseconds."""
    responses = mesh()
    decode, applied = _taken_in(responses, 3 if quick else 15)
    change = _one_change(responses, 20 if quick else 200)
    return {"decode": decode, "apply": applied, "change": change}
