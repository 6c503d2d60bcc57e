"""grpc-go's balancing cases.

The configurations are of gRPC's service config. A control plane can send one in a `TypedStruct`
(gRFC A52), and as that they are decoded. Some are not for control planes: gRPC makes them itself of
xDS resources. The good ones among these are written here as the resources that they stand for.
"""

from __future__ import annotations

import base64
import json
import random
from array import array
from collections import Counter
from datetime import datetime
from typing import Any

import grpc
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format, struct_pb2
from xds.type.v3 import typed_struct_pb2

from meshsdk._grpc.connectivity import aggregate_of_ring
from meshsdk.balancing import ClusterPool, ClusterView, LoadReport
from meshsdk.balancing.endpoint import LoadWeight, Usability
from meshsdk.balancing.hashing import RingTable, xx_hash
from meshsdk.errors import InvalidResource
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    Drop,
    Endpoint,
    HashFunction,
    Health,
    LbConfig,
    LoadReports,
    Locality,
    LocalityEndpoints,
)
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import CLUSTER, ENDPOINT, ROUTE
from tests.support.cases import Case, entries

pytestmark = pytest.mark.topic("envoy/grpc_go_lb")

TOPIC = "envoy/grpc_go_lb"
RLS = pytest.mark.awaits("the route lookup service (RLS)")
EJECTION = pytest.mark.awaits("outlier detection")
READY_FIRST = pytest.mark.awaits("a ring without a key that passes over idle endpoints (gRFC A76)")
TEST_DOUBLE = pytest.mark.aside("a test double of the origin: a policy that its tests register")


# --- policies as JSON ------------------------------------------------------------------------


def cluster_with(policy: str, config: str) -> Cluster:
    """Decode a cluster whose policy is this JSON.

    Raises:
        InvalidResource, json_format.ParseError: the verdict is a rejection.
    """
    message = cluster_pb2.Cluster(name="c", type=cluster_pb2.Cluster.EDS)
    message.eds_cluster_config.eds_config.ads.SetInParent()
    held = typed_struct_pb2.TypedStruct(type_url=f"type.googleapis.com/{policy}")
    held.value.CopyFrom(json_format.Parse(config, struct_pb2.Struct()))
    container = message.load_balancing_policy.policies.add().typed_extension_config
    container.typed_config.Pack(held)
    return decoded(CLUSTER, message)


def decoded(url: str, message: Any) -> Any:
    return DECODERS[url].decode(message, [])


POLICIES = {
    "config_least_request": "least_request_experimental",
    "config_random_subsetting": "random_subsetting_experimental",
    "config_ring_hash": "ring_hash_experimental",
    "config_wrr_locality": "xds_wrr_locality_experimental",
    "config_cds": "cds_experimental",
    "config_cluster_manager": "xds_cluster_manager_experimental",
    "config_cluster_impl": "xds_cluster_impl_experimental",
    "config_priority": "priority_experimental",
    "config_weighted_target": "weighted_target_experimental",
    "config_rls_errors": "rls_experimental",
}


def configurations(*files: str, expect: str) -> Any:
    """Entries of these files with that verdict, and the policy that each configures."""
    found = []
    for file in files:
        for entry in entries(TOPIC, file):
            if not entry.values[0] or entry.values[0]["expect"] == expect:
                values = entry.values[0], POLICIES[file]
                found.append(pytest.param(*values, id=entry.id, marks=entry.marks))
    return pytest.mark.parametrize(("case", "policy"), found)


@configurations(*POLICIES, expect="reject")
def test_what_is_refused(case: Case, policy: str) -> None:
    with pytest.raises((InvalidResource, json_format.ParseError)):
        cluster_with(policy, case["config_json"])


@configurations("config_least_request", expect="accept")
def test_least_request(case: Case, policy: str) -> None:
    found = cluster_with(policy, case["config_json"])
    assert found.balancing is Balancing.LEAST_REQUEST
    assert found.lb.choice_count == case["grpc_go_parsed"]["v"]["ChoiceCount"]


@configurations("config_ring_hash", expect="accept")
def test_ring_hash(case: Case, policy: str) -> None:
    found = cluster_with(policy, case["config_json"])
    assert found.balancing is Balancing.RING_HASH
    # gRPC caps rings at a size that its process is set to; Envoy, and so we, build what is asked.
    cap = 8000 if "raised global limit" in case["id"] else 4096
    sizes = found.lb.minimum_ring_size, found.lb.maximum_ring_size
    parsed = case["grpc_go_parsed"]
    assert (min(cap, sizes[0]), min(cap, sizes[1])) == (
        parsed["MinRingSize"],
        parsed["MaxRingSize"],
    )


@configurations("config_wrr_locality", expect="accept")
def test_wrr_locality(case: Case, policy: str) -> None:
    found = cluster_with(policy, case["config_json"])
    assert found.lb.locality_weighted
    child = case["grpc_go_parsed"]["v"]["ChildPolicy"]["Name"]
    assert found.balancing.value.lower() == child


@RLS
@pytest.mark.parametrize("case", entries(TOPIC, "config_rls"))
def test_route_lookup(case: Case) -> None: ...


@EJECTION
@pytest.mark.parametrize(
    "case", [*entries(TOPIC, "config_outlier_detection"), *entries(TOPIC, "outlier_ejection")]
)
def test_outlier_detection(case: Case) -> None: ...


# --- policies that gRPC makes of resources ---------------------------------------------------


@configurations("config_cds", expect="accept")
def test_a_cluster_by_name(case: Case, policy: str) -> None:
    name = json.loads(case["config_json"])["cluster"]
    config = route_pb2.RouteConfiguration(name="r")
    route = config.virtual_hosts.add(name="v", domains=["*"]).routes.add()
    route.match.prefix = "/"
    route.route.cluster = name
    assert decoded(ROUTE, config).cluster_names == {name}


@configurations("config_cluster_impl", expect="accept")
def test_a_cluster_and_what_it_drops(case: Case, policy: str) -> None:
    asked = json.loads(case["config_json"])
    cluster = cluster_pb2.Cluster(name=asked["cluster"], type=cluster_pb2.Cluster.EDS)
    cluster.eds_cluster_config.eds_config.ads.SetInParent()
    cluster.eds_cluster_config.service_name = asked["edsServiceName"]
    load = endpoint_pb2.ClusterLoadAssignment(cluster_name=asked["edsServiceName"])
    for drop in asked["dropCategories"]:
        made = load.policy.drop_overloads.add(category=drop["category"])
        made.drop_percentage.numerator = drop["requestsPerMillion"]
        made.drop_percentage.denominator = 2
    targets = next(iter(asked["childPolicy"][0].values()))["targets"]
    add_localities(load, {name: target["weight"] for name, target in targets.items()})
    assignment = decoded(ENDPOINT, load)
    found = decoded(CLUSTER, cluster)
    assert (found.name, found.eds_name) == (case["grpc_go_parsed"]["Cluster"], load.cluster_name)
    assert assignment.drops == tuple(
        Drop(drop["category"], drop["requestsPerMillion"]) for drop in asked["dropCategories"]
    )
    assert [item.weight for item in assignment.localities] == [
        target["weight"] for target in targets.values()
    ]


@configurations("config_weighted_target", expect="accept")
def test_weighted_targets(case: Case, policy: str) -> None:
    targets = case["grpc_go_parsed"]["Targets"]
    load = endpoint_pb2.ClusterLoadAssignment(cluster_name="c")
    add_localities(load, {name: target["Weight"] for name, target in targets.items()})
    cluster = Cluster("c", lb=LbConfig(locality_weighted=True))
    view = ClusterPool(lambda: 0.0).view(cluster, decoded(ENDPOINT, load))
    total = sum(target["Weight"] for target in targets.values())
    got = Counter(view.choose(random.random).endpoint.address for _ in range(3 * total))
    assert got == {name: 3 * target["Weight"] for name, target in targets.items()}


def add_localities(load: Any, weights: dict[str, int]) -> None:
    """One endpoint in each, of the locality's name."""
    for name, weight in weights.items():
        group = load.endpoints.add()
        group.locality.zone = name
        group.load_balancing_weight.value = weight
        address = group.lb_endpoints.add().endpoint.address.socket_address
        address.address, address.port_value = name, 80


# --- policies of resources -------------------------------------------------------------------

MURMUR = "ConvertToServiceConfigFailure/not xx_hash function"
MAGLEV = "ConvertToServiceConfigFailure/no-supported-policy"
OURS = {MURMUR: Balancing.RING_HASH, MAGLEV: Balancing.MAGLEV}
"""gRPC refuses these because it lacks what they ask for. Envoy has it, and so have we."""

NAMES = {
    "ring_hash_experimental": Balancing.RING_HASH,
    "round_robin": Balancing.ROUND_ROBIN,
    "pick_first": Balancing.PICK_FIRST,
}


def resource_policies() -> list[Any]:
    found = []
    for entry in entries(TOPIC, "xds_policy_to_json"):
        double = "custom_lb_type" in str(entry.id)
        marks = [*entry.marks, *([TEST_DOUBLE] if double else [])]
        found.append(pytest.param(*entry.values, id=entry.id, marks=marks))
    return found


@pytest.mark.parametrize("case", resource_policies())
def test_policies_of_resources(case: Case) -> None:
    cluster = cluster_pb2.Cluster(name="c", type=cluster_pb2.Cluster.EDS)
    cluster.eds_cluster_config.eds_config.ads.SetInParent()
    cluster.load_balancing_policy.ParseFromString(base64.b64decode(case["policy"]["value_b64"]))
    if case["id"] in OURS:
        found = decoded(CLUSTER, cluster)
        assert found.balancing is OURS[case["id"]]
        assert case["id"] != MURMUR or found.lb.hash_function is HashFunction.MURMUR_HASH_2
        return
    if case["expect"] == "reject":
        with pytest.raises(InvalidResource):
            decoded(CLUSTER, cluster)
        return
    found = decoded(CLUSTER, cluster)
    ((name, config),) = json.loads(case["want_config_json"])[0].items()
    assert found.balancing is NAMES[name]
    if name == "ring_hash_experimental":
        sizes = found.lb.minimum_ring_size, found.lb.maximum_ring_size
        assert sizes == (config["minRingSize"], config["maxRingSize"])
    assert found.lb.shuffle_address_list == config.get("shuffleAddressList", False)


@pytest.mark.parametrize("case", entries(TOPIC, "drop_requests_per_million"))
def test_drops(case: Case) -> None:
    load = endpoint_pb2.ClusterLoadAssignment(cluster_name="c")
    share = load.policy.drop_overloads.add(category="x").drop_percentage
    share.numerator = case["numerator"]
    share.denominator = {100: 0, 10_000: 1, 1_000_000: 2}[case["denominator"]]
    (drop,) = decoded(ENDPOINT, load).drops
    assert drop.per_million == case["want"]


# --- priorities ------------------------------------------------------------------------------


def zone(locality: Case) -> str:
    name = locality["ID"]["Zone"]
    assert isinstance(name, str)
    return name


@pytest.mark.parametrize("case", entries(TOPIC, "localities_by_priority"))
def test_localities_by_priority(case: Case) -> None:
    """Where only one priority is healthy, its localities are used, in the order they came in."""

    def group(locality: Case, healthy: int) -> LocalityEndpoints:
        health = Health.HEALTHY if locality["Priority"] == healthy else Health.UNHEALTHY
        endpoints = tuple(
            Endpoint(endpoint["ResolverEndpoint"]["Addresses"][0]["Addr"], 80, health=health)
            for endpoint in locality["Endpoints"]
        )
        place = Locality(zone=zone(locality))
        return LocalityEndpoints(endpoints, place, locality["Priority"], locality["Weight"])

    for priority, wanted in enumerate(case["wantLocalities"]):
        groups = tuple(group(each, priority) for each in case["localities"])
        view = ClusterPool(lambda: 0.0).view(Cluster("c"), Assignment("c", groups))
        addresses = [
            endpoint["ResolverEndpoint"]["Addresses"][0]["Addr"]
            for locality in wanted
            for endpoint in locality["Endpoints"]
        ]
        assert [state.endpoint.address for state in view.endpoints] == addresses


@pytest.mark.parametrize("case", entries(TOPIC, "priority_name_generator"))
def test_a_priority_that_keeps_its_name_keeps_its_state(case: Case) -> None:
    """gRPC names the priorities so that their state survives; here it is with the endpoints."""
    pool = ClusterPool(lambda: 0.0)
    before: dict[str, set[int]] = {}
    for step in case["steps"]:
        groups = [
            LocalityEndpoints(
                (Endpoint(zone(locality), 80),), Locality(zone=zone(locality)), priority
            )
            for priority, localities in enumerate(step["input"])
            for locality in localities
        ]
        # Everything is a little sick, so that every priority takes part.
        view = pool.view(Cluster("c"), Assignment("c", tuple(groups), overprovisioning=20))
        by_zone = {state.endpoint.address: id(state) for state in view.endpoints}
        now = {
            name: {by_zone[zone(locality)] for locality in localities}
            for name, localities in zip(step["want"], step["input"], strict=True)
        }
        for name, states in now.items():
            if before:
                assert bool(states & before.get(name, set())) == (name in before)
        before = now


# --- ring hash -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", entries(TOPIC, "ring_hash_aggregate_state"))
def test_connectivity_of_a_ring(case: Case) -> None:
    states = [grpc.ChannelConnectivity[name] for name in case["endpoint_states"]]
    assert aggregate_of_ring(states) is grpc.ChannelConnectivity[case["want"]]


def ring_view(count: int) -> ClusterView:
    endpoints = tuple(Endpoint("10.0.0.1", 9000 + i) for i in range(count))
    cluster = Cluster("c", balancing=Balancing.RING_HASH)
    return ClusterPool(lambda: 0.0).view(cluster, Assignment("c", (LocalityEndpoints(endpoints),)))


@pytest.mark.parametrize("case", entries(TOPIC, "ring_hash_picker"))
def test_the_next_on_the_ring_stands_in_for_one_that_is_down(case: Case) -> None:
    """A call waits for the first that is not known to be down; an idle one connects for it."""
    states = case["ring_entry_states"]
    view = ring_view(len(states))
    order = list(view.sequence(random.random, 12345))
    assert order[0] is view.choose(random.random, 12345)
    down = {s for s, name in zip(order, states, strict=True) if name == "TRANSIENT_FAILURE"}
    taken = order.index(view.pick_up(random.random, 12345, down.__contains__))
    if case["want_pick_index"] is not None:
        assert taken == int(case["want_pick_index"])
    elif case["want_connect_index"] is not None:
        assert (taken, states[taken]) == (int(case["want_connect_index"]), "IDLE")
    elif len(down) < len(states):
        assert states[taken] == "CONNECTING"
    else:
        assert taken == 0  # fails with what is wrong with the endpoint of the key


@READY_FIRST
@pytest.mark.parametrize("case", entries(TOPIC, "ring_hash_random_hash_picker"))
def test_a_ring_without_a_key(case: Case) -> None: ...


@pytest.mark.parametrize("case", entries(TOPIC, "ring_hash_request_hash_key"))
def test_the_key_of_a_header(case: Case) -> None:
    third = 0xFFFFFFFFFFFFFFFF // 3
    ring = RingTable([0, third, third * 2], array("I", [0, 1, 2]))
    key = xx_hash(",".join(case["headerValues"]).encode())
    assert ring.find(key) == case["expectedPick"]


# --- weights of load reports -----------------------------------------------------------------

NEVER = "0001-01-01T00:00:00Z"


def seconds(text: str) -> float:
    """Of a timestamp, or of a duration such as 1m0s."""
    if "T" in text:
        return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").timestamp()
    minutes, found, rest = text.rpartition("m")
    return (float(minutes) * 60 if found else 0.0) + float(rest.rstrip("s"))


@pytest.mark.parametrize("case", entries(TOPIC, "wrr_weight_freshness"))
def test_freshness_of_weights(case: Case) -> None:
    how = LoadReports(seconds(case["blackoutPeriod"]), seconds(case["weightExpirationPeriod"]))
    weight = LoadWeight(how)
    report = LoadReport(cpu_utilization=0.5, qps=10.0)
    if case["nonEmpty"] != NEVER:
        weight.report(report, seconds(case["nonEmpty"]))
    if case["lastUpdated"] != NEVER:
        weight.report(report, seconds(case["lastUpdated"]))
    found, usable = weight.at(seconds(case["nowTime"]))
    assert (found == 0.0) == (case["endpointWeightWant"] == "0")
    stale, not_yet = case["endpointWeightStaleWant"], case["endpointWeightNotYetUsableWant"]
    assert (usable is Usability.STALE) == (stale == "1")
    assert (usable is Usability.NOT_YET) == (not_yet == "1")
