"""Fields of load balancers, one by one: from Istio YAML over xDS to the host that the SDK picks."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2

from controlplane.translate import resources as xds
from controlplane.translate.node import Node
from meshsdk.balancing import ClusterPool
from meshsdk.call import Forward, Request, decide
from meshsdk.model import ListenerView, Locality
from meshsdk.xds.caller import caller_of
from meshsdk.xds.decode import DECODERS
from tests.support.controlplane import make_node, make_world, service, workload
from tests.unit.test_translate_fields import inside, rule, taken

HOST = "store.default.svc.cluster.local"
HERE = {
    "topology.kubernetes.io/region": "east",
    "topology.kubernetes.io/zone": "z1",
    "topology.istio.io/subzone": "r1",
}
ALONE = service("store", "http:8080") + workload(
    "a", "10.0.0.1", "store", extra=["locality: east/z1/r1"]
)
BASE = ALONE + workload("b", "10.0.0.2", "store", extra=["locality: west/z2/r2"])
MANY = service("store", "http:8080") + "".join(
    workload(f"w{n}", f"10.0.1.{n}", "store") for n in range(1, 9)
)


def view(text: str, base: str = BASE, node: Node | None = None) -> ListenerView:
    """The listener of `store` as the SDK of a caller in east/z1/r1 sees it."""
    return taken(make_world(base + text), node or make_node(LABELS=HERE), f"{HOST}:8080")


def policy(**fields: Any) -> str:
    return rule("DestinationRule", {"host": "store", "trafficPolicy": fields})


def balancer(**fields: Any) -> str:
    return policy(loadBalancer=fields)


def call(
    seen: ListenerView,
    path: str = "/",
    headers: tuple[tuple[str, str], ...] = (),
    draw: Any = random.random,
) -> Forward:
    request = Request("GET", path, authority=f"{HOST}:8080", headers=headers)
    decision = decide(seen, request, draw)
    assert isinstance(decision, Forward), decision
    return decision


def picks(seen: ListenerView, times: int = 1000) -> Counter[str]:
    """How many of so many calls each host gets, by the last number of its address."""
    draw = random.Random(5).random
    found: Counter[str] = Counter()
    for _ in range(times):
        state = call(seen, draw=draw).pick(draw)
        state.release()
        found[state.endpoint.address.rpartition(".")[2]] += 1
    return found


# --- simple ----------------------------------------------------------------------------------


@pytest.mark.parametrize("simple", ["ROUND_ROBIN", "LEAST_REQUEST", "LEAST_CONN", "RANDOM", None])
def test_everybody_gets_calls(simple: str | None) -> None:
    found = picks(view(balancer(simple=simple) if simple else "", MANY), 800)
    assert set(found) == {str(n) for n in range(1, 9)}
    if simple == "ROUND_ROBIN":
        assert set(found.values()) == {100}


# --- consistentHash --------------------------------------------------------------------------

BY_HEADER = {"httpHeaderName": "x-user"}


def hosts(text: str, base: str, requests: list[dict[str, Any]]) -> list[str]:
    """The host that each request goes to, the same one whatever is drawn."""
    seen = view(text, base)
    found = []
    for request in requests:
        draws = [random.Random(n).random for n in range(5)]
        chosen = {call(seen, **request, draw=draw).pick(draw).target for draw in draws}
        assert len(chosen) == 1, request
        found += chosen
    return found


@pytest.mark.parametrize(
    "table", [{}, {"ringHash": {}}, {"maglev": {}}, {"maglev": {"tableSize": 101}}]
)
@pytest.mark.parametrize(
    ("by", "request_of"),
    [
        (BY_HEADER, lambda value: {"headers": (("x-user", value),)}),
        ({"httpQueryParameterName": "u"}, lambda value: {"path": f"/?u={value}"}),
        (
            {"httpCookie": {"name": "user"}},
            lambda value: {"headers": (("cookie", f"user={value}"),)},
        ),
    ],
)
def test_who_is_the_same_goes_to_the_same_host(by: Any, request_of: Any, table: Any) -> None:
    text = balancer(consistentHash={**by, **table})
    found = hosts(text, MANY, [request_of(f"user-{n}") for n in range(60)])
    assert len(set(found)) > 5
    # Whoever leaves takes hardly any but its own with it.
    gone = found[0]
    address = gone.rpartition(":")[0]
    without = "---\n".join(part for part in MANY.split("---\n") if f"{address}," not in part)
    again = hosts(text, without, [request_of(f"user-{n}") for n in range(60)])
    moved = [new for old, new in zip(found, again, strict=True) if old != gone and old != new]
    assert gone not in again
    assert len(moved) <= 15


def test_a_caller_is_known_by_its_address() -> None:
    text = balancer(consistentHash={"useSourceIp": True})
    found = set()
    for number in range(20):
        node = base_pb2.Node(id=f"sidecar~10.1.0.{number}~app.default~default.svc.cluster.local")
        seen = dataclasses.replace(view(text, MANY), caller=caller_of(node))
        chosen = {call(seen).pick(random.random).target for _ in range(5)}
        assert len(chosen) == 1
        found |= chosen
    assert len(found) > 3


def test_a_caller_without_a_key_goes_anywhere() -> None:
    assert len(picks(view(balancer(consistentHash=BY_HEADER), MANY), 200)) == 8


def test_the_cookie_of_a_new_user() -> None:
    cookie = {
        "name": "user",
        "path": "/shop",
        "ttl": "60s",
        "attributes": [{"name": "SameSite", "value": "Lax"}],
    }
    seen = view(balancer(consistentHash={"httpCookie": cookie}), MANY)
    first = call(seen)
    (made,) = [v for k, v in first.response_headers([]) if k == "set-cookie"]
    value, *attributes = made.split("; ")
    assert set(attributes) >= {"Max-Age=60", "Path=/shop", "SameSite=Lax"}
    again = call(seen, headers=(("cookie", value),))
    assert again.set_cookies == ()
    assert again.pick(random.random).target == first.pick(random.random).target


@pytest.mark.parametrize(
    ("asked", "field", "expected"),
    [
        ({"ringHash": {"minimumRingSize": 9}}, "minimum_ring_size", 9),
        ({"minimumRingSize": 9}, "minimum_ring_size", 9),
        ({}, "minimum_ring_size", 1024),
        ({"maglev": {"tableSize": 101}}, "table_size", 101),
    ],
)
def test_sizes_of_tables(asked: Any, field: str, expected: int) -> None:
    seen = call(view(balancer(consistentHash={**BY_HEADER, **asked}))).cluster.cluster
    assert getattr(seen.lb, field) == expected


# --- localities ------------------------------------------------------------------------------

EJECTS: dict[str, Any] = {"outlierDetection": {}}


@pytest.mark.parametrize(
    ("fields", "here"),
    [
        ({}, 50),
        (EJECTS, 100),
        ({**EJECTS, "loadBalancer": {"localityLbSetting": {"enabled": False}}}, 50),
        (
            {
                "loadBalancer": {
                    "localityLbSetting": {
                        "distribute": [{"from": "east/*", "to": {"east/*": 30, "west/*": 70}}]
                    }
                }
            },
            30,
        ),
        ({**EJECTS, "loadBalancer": {"localityLbSetting": {"failoverPriority": ["app"]}}}, 50),
        (
            {
                **EJECTS,
                "loadBalancer": {
                    "localityLbSetting": {"failoverPriority": ["topology.kubernetes.io/zone"]}
                },
            },
            100,
        ),
        (
            {
                **EJECTS,
                "loadBalancer": {"zoneAwareLbSetting": {"failoverPriority": ["side=left"]}},
            },
            100,
        ),
        ({**EJECTS, "loadBalancer": {"zoneAwareLbSetting": {"enabled": False}}}, 50),
    ],
)
def test_shares_of_places(fields: dict[str, Any], here: int) -> None:
    """What the host in the caller's place gets of calls, in percent."""
    fields = {**fields, "loadBalancer": {"simple": "RANDOM", **fields.get("loadBalancer", {})}}
    node = make_node(LABELS={**HERE, "app": "store"})
    base = BASE.replace("app: store, version: v1", "app: store, side: left", 1)
    assert inside(picks(view(policy(**fields), base, node))["1"], here)


@pytest.mark.parametrize(("first", "other"), [("west", "north"), ("north", "west")])
@pytest.mark.parametrize("setting", ["localityLbSetting", "zoneAwareLbSetting"])
def test_where_calls_go_when_nobody_is_left_here(setting: str, first: str, other: str) -> None:
    base = service("store", "http:8080") + "".join(
        workload(region, f"10.0.0.{number}", "store", extra=[f"locality: {region}/z/s"])
        for number, region in enumerate(("west", "north"))
    )
    to = {"failover": [{"from": "east", "to": first}]}
    seen = view(policy(**EJECTS, loadBalancer={setting: to}), base)
    assert set(picks(seen, 50)) == {str(("west", "north").index(first))}, other


@pytest.mark.parametrize(("fewest", "stay"), [(2, 100), (3, 50)])
def test_zones_are_preferred_from_a_size_on(fewest: int, stay: int) -> None:
    """A caller knows of no other callers, and so everything that can stays where it is."""
    setting = {"simple": "RANDOM", "zoneAwareLbSetting": {"minClusterSize": fewest}}
    pool = ClusterPool(random.Random(1).random, here=Locality("east", "z1", "r1"))
    found = served(pool, balancer(**setting))
    assert inside(found["10.0.0.1:8080"], stay)


def served(pool: ClusterPool, text: str, base: str = BASE) -> Counter[str]:
    """How many of 1000 calls each host gets in a process that has this pool."""
    world, name = make_world(base + text), f"outbound|8080||{HOST}"
    cluster = decoded(xds.CDS, xds.cluster(world, make_node(LABELS=HERE), name))
    load = decoded(xds.EDS, xds.endpoints(world, make_node(LABELS=HERE), name))
    seen, draw = pool.view(cluster, load), random.Random(2).random
    return Counter(seen.choose(draw).target for _ in range(1000))


def decoded(kind: str, message: Any) -> Any:
    return DECODERS[kind].decode(message, [])


# --- warmup ----------------------------------------------------------------------------------


@pytest.mark.parametrize("simple", ["ROUND_ROBIN", "LEAST_REQUEST"])
@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        # after so many seconds the new host has this part of the weight of the old one
        ({"warmupDurationSecs": "60s"}, {0: 0.1, 30: 0.5, 60: 1}),
        ({"warmup": {"duration": "60s"}}, {0: 0.1, 30: 0.5, 60: 1}),
        ({"warmup": {"duration": "60s", "minimumPercent": 30}}, {0: 0.3, 30: 0.5, 60: 1}),
        ({"warmup": {"duration": "60s", "aggression": 2}}, {0: 0.1, 30: 0.5**0.5, 60: 1}),
        ({}, {0: 1}),
    ],
)
def test_new_hosts_warm_up(simple: str, fields: Any, shares: dict[int, float]) -> None:
    now = 0.0
    pool = ClusterPool(random.Random(1).random, lambda: now)
    text = balancer(simple=simple, **fields)
    served(pool, text, ALONE)
    for age, part in shares.items():
        now = 1000.0 + age
        found = served(pool, text)
        assert inside(found["10.0.0.2:8080"], 100 * part / (1 + part)), age


# --- health ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("percent", "served"), [(0, {"1"}), (40, {"1"}), (60, {"1", "2"})])
def test_with_too_few_healthy_hosts_all_are_used(percent: int, served: set[str]) -> None:
    text = policy(outlierDetection={"minHealthPercent": percent})
    ill = workload("b", "10.0.0.2", "store").replace(
        "---\n", 'status: {conditions: [{type: Healthy, status: "False"}]}\n---\n'
    )
    base = service("store", "http:8080") + workload("a", "10.0.0.1", "store") + ill
    assert set(picks(view(text, base), 100)) == served
