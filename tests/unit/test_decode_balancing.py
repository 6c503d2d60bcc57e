"""What a Cluster says of load balancing; the verdicts are those of Envoy 1.40."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf import any_pb2, json_format

from meshsdk.errors import InvalidResource
from meshsdk.model import (
    Balancing,
    Cluster,
    HashFunction,
    HashKind,
    HashPolicy,
    LbConfig,
    LoadReports,
    SlowStart,
    SubsetFallback,
    Subsets,
    SubsetSelector,
    ZoneAware,
)
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import CLUSTER

Json = dict[str, Any]
EDS: Json = {"type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}
_TYPES = "type.googleapis.com/envoy.extensions.load_balancing_policies"


def parse(config: Json) -> cluster_pb2.Cluster:
    return json_format.ParseDict({"name": "c", **EDS, **config}, cluster_pb2.Cluster())


def decode(config: Json | cluster_pb2.Cluster, notes: list[str] | None = None) -> Cluster:
    message = parse(config) if isinstance(config, dict) else config
    found = DECODERS[CLUSTER].decode(message, [] if notes is None else notes)
    assert isinstance(found, Cluster)
    return found


def refused(config: Json) -> str:
    with pytest.raises(InvalidResource) as caught:
        decode(config)
    return f"{caught.value.field}: {caught.value.problem}"


def typed(name: str, **fields: Any) -> Json:
    config = {"@type": f"{_TYPES}.{name}", **fields}
    return {"typed_extension_config": {"name": "x", "typed_config": config}}


def as_struct(name: str, kind: str = "xds.type.v3.TypedStruct", **value: Any) -> Json:
    config = {"@type": f"type.googleapis.com/{kind}", "type_url": f"x.com/{name}", "value": value}
    return {"typed_extension_config": {"name": "x", "typed_config": config}}


def policies(*items: Json) -> Json:
    # The enum beside the list is not looked at.
    return {"lb_policy": "MAGLEV", "load_balancing_policy": {"policies": list(items)}}


def wrr(*items: Json) -> Json:
    return typed("wrr_locality.v3.WrrLocality", endpoint_picking_policy={"policies": list(items)})


UNKNOWN = as_struct("myorg.Unknown")
ROUND_ROBIN = typed("round_robin.v3.RoundRobin")
BY_NAME = {"consistent_hashing_lb_config": {"use_hostname_for_hashing": True}}
WEIGHTED = {"locality_weighted_lb_config": {}}


@pytest.mark.parametrize(
    ("config", "balancing", "lb"),
    [
        ({}, Balancing.ROUND_ROBIN, LbConfig()),
        ({"lb_policy": "RANDOM"}, Balancing.RANDOM, LbConfig()),
        ({"lb_policy": "LEAST_REQUEST"}, Balancing.LEAST_REQUEST, LbConfig()),
        (
            {
                "lb_policy": "LEAST_REQUEST",
                "least_request_lb_config": {
                    "choice_count": 5,
                    "active_request_bias": {"default_value": 0.5, "runtime_key": "x"},
                },
            },
            Balancing.LEAST_REQUEST,
            LbConfig(choice_count=5, active_request_bias=0.5),
        ),
        (
            {
                "round_robin_lb_config": {
                    "slow_start_config": {
                        "slow_start_window": "60s",
                        "aggression": {"default_value": 2, "runtime_key": "x"},
                        "min_weight_percent": {"value": 20},
                    }
                }
            },
            Balancing.ROUND_ROBIN,
            LbConfig(slow_start=SlowStart(60.0, 2.0, 20.0)),
        ),
        (
            {"round_robin_lb_config": {"slow_start_config": {"slow_start_window": "0s"}}},
            Balancing.ROUND_ROBIN,
            LbConfig(),
        ),
        (
            {
                "lb_policy": "RING_HASH",
                "ring_hash_lb_config": {
                    "minimum_ring_size": 10,
                    "maximum_ring_size": 20,
                    "hash_function": "MURMUR_HASH_2",
                },
                "common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 150}},
            },
            Balancing.RING_HASH,
            LbConfig(
                minimum_ring_size=10,
                maximum_ring_size=20,
                hash_function=HashFunction.MURMUR_HASH_2,
                hash_balance_factor=150,
            ),
        ),
        (
            {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 101}},
            Balancing.MAGLEV,
            LbConfig(table_size=101),
        ),
        # what belongs to another policy is not looked at
        (
            {"lb_policy": "MAGLEV", "ring_hash_lb_config": {"minimum_ring_size": 10}},
            Balancing.MAGLEV,
            LbConfig(),
        ),
        (
            {"common_lb_config": {"healthy_panic_threshold": {"value": 33.5}, **WEIGHTED}},
            Balancing.ROUND_ROBIN,
            LbConfig(panic_threshold=34, locality_weighted=True),
        ),
        (
            {
                "common_lb_config": {
                    "zone_aware_lb_config": {
                        "routing_enabled": {"value": 40},
                        "min_cluster_size": 0,
                        "fail_traffic_on_panic": True,
                    }
                }
            },
            Balancing.ROUND_ROBIN,
            LbConfig(zone_aware=ZoneAware(40, 0, fail_traffic_on_panic=True)),
        ),
    ],
)
def test_by_enum(config: Json, balancing: Balancing, lb: LbConfig) -> None:
    notes: list[str] = []
    found = decode(config, notes)
    assert (found.balancing, found.lb) == (balancing, lb)
    assert notes == []


@pytest.mark.parametrize(
    ("items", "balancing", "lb"),
    [
        ([ROUND_ROBIN], Balancing.ROUND_ROBIN, LbConfig()),
        ([typed("random.v3.Random"), ROUND_ROBIN], Balancing.RANDOM, LbConfig()),
        ([UNKNOWN, typed("least_request.v3.LeastRequest")], Balancing.LEAST_REQUEST, LbConfig()),
        (
            [typed("least_request.v3.LeastRequest", selection_method="FULL_SCAN")],
            Balancing.LEAST_REQUEST,
            LbConfig(full_scan=True),
        ),
        (
            [
                typed("ring_hash.v3.RingHash", hash_function="MURMUR_HASH_2", **WEIGHTED),
                typed("least_request.v3.LeastRequest", choice_count=3),
            ],
            Balancing.RING_HASH,
            LbConfig(hash_function=HashFunction.MURMUR_HASH_2, locality_weighted=True),
        ),
        (
            [
                typed(
                    "maglev.v3.Maglev",
                    table_size=7,
                    consistent_hashing_lb_config={"use_hostname_for_hashing": True},
                )
            ],
            Balancing.MAGLEV,
            LbConfig(table_size=7, use_hostname_for_hashing=True),
        ),
        (
            [
                typed(
                    "ring_hash.v3.RingHash",
                    consistent_hashing_lb_config={
                        "hash_policy": [{"header": {"header_name": "X-Own"}}]
                    },
                )
            ],
            Balancing.RING_HASH,
            LbConfig(hash_policy=(HashPolicy(HashKind.HEADER, "x-own"),)),
        ),
        ([typed("pick_first.v3.PickFirst")], Balancing.PICK_FIRST, LbConfig()),
        (
            [typed("pick_first.v3.PickFirst", shuffle_address_list=True)],
            Balancing.PICK_FIRST,
            LbConfig(shuffle_address_list=True),
        ),
        (
            [
                typed(
                    "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
                    blackout_period="1s",
                    weight_update_period="0.01s",
                    error_utilization_penalty=0.5,
                    metric_names_for_computing_utilization=["named_metrics.x"],
                )
            ],
            Balancing.CLIENT_SIDE_WEIGHTED_ROUND_ROBIN,
            LbConfig(load_reports=LoadReports(1.0, 180.0, 0.1, 0.5, ("named_metrics.x",))),
        ),
        (
            [wrr(UNKNOWN, typed("random.v3.Random"))],
            Balancing.RANDOM,
            LbConfig(locality_weighted=True),
        ),
        (
            [
                typed(
                    "round_robin.v3.RoundRobin",
                    locality_lb_config={
                        "zone_aware_lb_config": {
                            "force_local_zone": {"min_size": 2},
                            "locality_basis": "HEALTHY_HOSTS_WEIGHT",
                        }
                    },
                )
            ],
            Balancing.ROUND_ROBIN,
            LbConfig(zone_aware=ZoneAware(force_local_zone=2, by_weight=True)),
        ),
        (
            [
                typed(
                    "subset.v3.Subset",
                    subset_selectors=[{"keys": ["a"]}],
                    allow_redundant_keys=True,
                    subset_lb_policy={"policies": [ROUND_ROBIN]},
                )
            ],
            Balancing.ROUND_ROBIN,
            LbConfig(
                subsets=Subsets(
                    selectors=(SubsetSelector(frozenset("a")),), allow_redundant_keys=True
                )
            ),
        ),
        (
            [as_struct("envoy.extensions.load_balancing_policies.maglev.v3.Maglev", tableSize=7)],
            Balancing.MAGLEV,
            LbConfig(table_size=7),
        ),
        (
            [
                as_struct("nobody", kind="udpa.type.v1.TypedStruct"),
                as_struct("ring_hash_experimental", minRingSize=10, maxRingSize=100, future=1),
            ],
            Balancing.RING_HASH,
            LbConfig(minimum_ring_size=10, maximum_ring_size=100),
        ),
        (
            [
                as_struct(
                    "random_subsetting_experimental",
                    subsetSize=3,
                    childPolicy=[{"ring_hash_experimental": {"requestHashHeader": "X-Key"}}],
                )
            ],
            Balancing.RING_HASH,
            LbConfig(subset_size=3, hash_policy=(HashPolicy(HashKind.HEADER, "x-key"),)),
        ),
        (
            [
                as_struct(
                    "xds_wrr_locality_experimental",
                    childPolicy=[{"unknown": {}}, {"round_robin": {}}],
                )
            ],
            Balancing.ROUND_ROBIN,
            LbConfig(locality_weighted=True),
        ),
    ],
)
def test_by_list(items: list[Json], balancing: Balancing, lb: LbConfig) -> None:
    notes: list[str] = []
    found = decode(policies(*items), notes)
    assert (found.balancing, found.lb) == (balancing, lb)
    assert notes == []


def test_endpoints_of_a_dns_cluster_may_hash_by_name() -> None:
    load = {"cluster_name": "c", "endpoints": []}
    dns = {"type": "STRICT_DNS", "load_assignment": load, "lb_policy": "MAGLEV"}
    assert decode({**dns, "common_lb_config": BY_NAME}).lb.use_hostname_for_hashing


def test_the_panic_threshold_stands_beside_the_list() -> None:
    threshold = {"common_lb_config": {"healthy_panic_threshold": {"value": 0}}}
    assert decode({**policies(ROUND_ROBIN), **threshold}).lb.panic_threshold == 0


def test_cluster_provided_by_list() -> None:
    listed = policies(typed("cluster_provided.v3.ClusterProvided"))
    found = decode({**listed, "type": "ORIGINAL_DST"})
    assert found.balancing is Balancing.CLUSTER_PROVIDED


def test_subsets() -> None:
    config = {
        "fallback_policy": "DEFAULT_SUBSET",
        "default_subset": {"stage": "prod", "n": 1},
        "subset_selectors": [
            {"keys": ["b", "a"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["a"]},
            {"keys": ["a"], "fallback_policy": "NO_FALLBACK", "single_host_per_subset": True},
        ],
        "locality_weight_aware": True,
        "scale_locality_weight": True,
        "panic_mode_any": True,
        "list_as_any": True,
        "metadata_fallback_policy": "FALLBACK_LIST",
    }
    assert decode({"lb_subset_config": config}).lb.subsets == Subsets(
        SubsetFallback.DEFAULT_SUBSET,
        (
            SubsetSelector(frozenset("ab"), SubsetFallback.KEYS_SUBSET, frozenset("a")),
            SubsetSelector(frozenset("a"), SubsetFallback.NO_FALLBACK, single_host=True),
        ),
        {"stage": "prod", "n": 1},
        locality_weight_aware=True,
        scale_locality_weight=True,
        panic_mode_any=True,
        list_as_any=True,
        fallback_list=True,
    )


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (
            {
                "lb_policy": "LEAST_REQUEST",
                "least_request_lb_config": {
                    "active_request_bias": {"default_value": -1, "runtime_key": "x"}
                },
            },
            "least_request_lb_config.active_request_bias: is -1.0, 1 is used",
        ),
        (
            {
                "round_robin_lb_config": {
                    "slow_start_config": {
                        "slow_start_window": "1s",
                        "aggression": {"default_value": 0, "runtime_key": "x"},
                    }
                }
            },
            "round_robin_lb_config.slow_start_config.aggression: is 0.0, 1 is used",
        ),
        (
            policies(
                typed(
                    "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
                    enable_oob_load_report=True,
                )
            ),
            "enable_oob_load_report: is not supported",
        ),
    ],
)
def test_what_is_noted(config: Json, note: str) -> None:
    notes: list[str] = []
    decode(config, notes)
    assert len(notes) == 1
    assert note in notes[0]


def ring(**fields: Any) -> Json:
    return {"lb_policy": "RING_HASH", "ring_hash_lb_config": fields}


def maglev(size: int) -> Json:
    return {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": size}}


def selector(**fields: Any) -> Json:
    return {"lb_subset_config": {"subset_selectors": [{"keys": ["a", "b"], **fields}]}}


def nested(depth: int) -> Json:
    return wrr(nested(depth - 1)) if depth else wrr(ROUND_ROBIN)


LIST = "load_balancing_policy.policies"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"lb_policy": "LOAD_BALANCING_POLICY_CONFIG"}, "load_balancing_policy: is needed"),
        (ring(minimum_ring_size=10, maximum_ring_size=5), "minimum_ring_size: is 10, more than"),
        (ring(maximum_ring_size=8388609), "maximum_ring_size: is 8388609, must be at most"),
        (maglev(100), "maglev_lb_config.table_size: is 100, must be a prime"),
        (maglev(1), "must be a prime"),
        (maglev(0), "must be a prime"),
        (maglev(5000077), "must be at most 5000011"),
        (
            {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 1}},
            "least_request_lb_config.choice_count: is 1, must be at least 2",
        ),
        (
            {"common_lb_config": {"healthy_panic_threshold": {"value": 101}}},
            "common_lb_config.healthy_panic_threshold: is 101.0, must be from 0 to 100",
        ),
        (
            {
                "lb_policy": "MAGLEV",
                "common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 99}},
            },
            "common_lb_config.consistent_hashing_lb_config.hash_balance_factor: is 99",
        ),
        (
            {"common_lb_config": BY_NAME},
            "use_hostname_for_hashing: goes with a cluster of type STRICT_DNS only",
        ),
        ({**policies(ROUND_ROBIN), "lb_subset_config": {}}, "lb_subset_config: does not go with"),
        (
            {**policies(ROUND_ROBIN), "common_lb_config": WEIGHTED},
            "common_lb_config.locality_weighted_lb_config: does not go with",
        ),
        (selector(fallback_policy="KEYS_SUBSET"), "fallback_keys_subset: must not be empty"),
        (
            selector(fallback_policy="KEYS_SUBSET", fallback_keys_subset=["c"]),
            "fallback_keys_subset: must be some of the keys",
        ),
        (
            selector(fallback_policy="KEYS_SUBSET", fallback_keys_subset=["b", "a"]),
            "not all of them",
        ),
        (selector(fallback_keys_subset=["a"]), "goes with fallback_policy KEYS_SUBSET only"),
        (
            {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", **selector()},
            "lb_subset_config: does not go with lb_policy CLUSTER_PROVIDED",
        ),
        (policies(UNKNOWN), f"{LIST}: none is supported: myorg.Unknown"),
        (policies(), f"{LIST}: none is supported: the list is empty"),
        (policies(nested(16)), "nested deeper than 16"),
        (policies(typed("ring_hash.v3.RingHash", hash_function=7)), "7 is not known"),
        (policies(typed("least_request.v3.LeastRequest", choice_count=1)), "must be at least 2"),
        (policies(wrr()), "endpoint_picking_policy.policies: none is supported"),
        (policies(typed("subset.v3.Subset")), "subset_lb_policy.policies: none is supported"),
        (
            policies(as_struct("ring_hash_experimental", minRingSize=10, maxRingSize=2)),
            "value.minimum_ring_size: is 10, more than",
        ),
        (policies(as_struct("ring_hash_experimental", minRingSize="x")), "value: "),
        (policies(as_struct("xds_wrr_locality_experimental")), "value.childPolicy: is needed"),
        (policies(as_struct("random_subsetting_experimental")), "value.subsetSize: is 0"),
        (
            policies(as_struct("ring_hash_experimental", requestHashHeader="x-bin")),
            "value.requestHashHeader: is x-bin",
        ),
    ],
)
def test_what_is_refused(config: Json, problem: str) -> None:
    assert problem in refused(config)


def test_what_comes_after_the_first_known_policy_is_not_looked_at() -> None:
    bad = typed("least_request.v3.LeastRequest", choice_count=1)
    assert decode(policies(ROUND_ROBIN, bad)).balancing is Balancing.ROUND_ROBIN


def test_a_policy_of_garbage_is_refused() -> None:
    message = parse(policies(typed("least_request.v3.LeastRequest")))
    kind = f"{_TYPES}.least_request.v3.LeastRequest"
    config = message.load_balancing_policy.policies[0].typed_extension_config.typed_config
    config.CopyFrom(any_pb2.Any(type_url=kind, value=b"\xff"))
    with pytest.raises(InvalidResource, match="the bytes are not"):
        decode(message)
