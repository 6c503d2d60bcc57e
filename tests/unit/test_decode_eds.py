"""ClusterLoadAssignment into a frozen value."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from meshsdk.errors import InvalidResource
from meshsdk.model import Assignment, Drop, Endpoint, Health, Locality, LocalityEndpoints
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import ENDPOINT

Json = dict[str, Any]
MAX = 2**32 - 1


def decode(config: Json, notes: list[str] | None = None) -> Assignment:
    message = json_format.ParseDict(
        {"cluster_name": "c", **config}, endpoint_pb2.ClusterLoadAssignment()
    )
    found = DECODERS[ENDPOINT].decode(message, [] if notes is None else notes)
    assert isinstance(found, Assignment)
    return found


def at(host: str, port: int = 80, extra: tuple[str, ...] = (), **fields: Any) -> Json:
    def address(name: str) -> Json:
        return {"socket_address": {"address": name, "port_value": port}}

    more = [{"address": address(name)} for name in extra]
    return {"endpoint": {"address": address(host), "additional_addresses": more}, **fields}


def place(*endpoints: Json, weight: int | None = 1, zone: str = "", **fields: Any) -> Json:
    made: Json = {"locality": {"zone": zone}, "lb_endpoints": list(endpoints), **fields}
    if weight is not None:
        made["load_balancing_weight"] = weight
    return made


def test_endpoints_by_locality() -> None:
    found = decode(
        {
            "endpoints": [
                place(
                    at("10.0.0.1", 9080, health_status="HEALTHY", load_balancing_weight=3),
                    {"endpoint": {"address": {"pipe": {"path": "/run/x"}}, "hostname": "h"}},
                    weight=7,
                    zone="z",
                ),
                place(at("::1"), priority=1),
            ],
            "policy": {"overprovisioning_factor": 200},
        }
    )
    assert found == Assignment(
        "c",
        (
            LocalityEndpoints(
                (
                    Endpoint("10.0.0.1", 9080, 3, Health.HEALTHY),
                    Endpoint("/run/x", 0, hostname="h"),
                ),
                Locality(zone="z"),
                0,
                7,
            ),
            LocalityEndpoints((Endpoint("::1", 80),), Locality(), 1, 1),
        ),
        200,
    )
    targets = [e.target for item in found.localities for e in item.endpoints]
    assert targets == ["10.0.0.1:9080", "unix:/run/x", "[::1]:80"]


@pytest.mark.parametrize("health", list(Health))
def test_health(health: Health) -> None:
    found = decode({"endpoints": [place(at("a", health_status=health.value))]})
    assert found.localities[0].endpoints[0].health is health


def test_nothing_and_an_empty_locality() -> None:
    assert decode({}) == Assignment("c")
    assert decode({"endpoints": [place()], "policy": {}}).overprovisioning == 140


def test_metadata_becomes_plain() -> None:
    metadata = {
        "filter_metadata": {
            "istio": {"workload": "w;ns;app"},
            "envoy.transport_socket_match": {"tlsMode": "istio", "n": 1, "l": [True, None]},
            "deep": {"a": {"b": "c"}},
        }
    }
    found = decode({"endpoints": [place(at("a", metadata=metadata))]})
    assert found.localities[0].endpoints[0].metadata == metadata["filter_metadata"]


def test_a_locality_without_weight_is_not_used_and_that_is_noted() -> None:
    notes: list[str] = []
    localities = [place(at("a"), weight=None), place(at("b"), weight=0), place(weight=None)]
    found = decode({"endpoints": [*localities, place(at("c"))]}, notes)
    assert [item.endpoints[0].address for item in found.localities] == ["c"]
    assert len(notes) == 2
    assert notes[1].startswith("ClusterLoadAssignment c: endpoints[1].load_balancing_weight")


@pytest.mark.parametrize(
    ("percentage", "per_million"),
    [
        ({"numerator": 5}, 50_000),
        ({"numerator": 5, "denominator": "TEN_THOUSAND"}, 500),
        ({"numerator": 5, "denominator": "MILLION"}, 5),
        ({"numerator": 150}, 1_000_000),
        ({}, 0),
    ],
)
def test_drops(percentage: Json, per_million: int) -> None:
    drop = {"category": "x", "drop_percentage": percentage}
    found = decode({"policy": {"drop_overloads": [drop, drop]}})
    assert found.drops == (Drop("x", per_million),) * 2


def test_policy() -> None:
    policy = {"overprovisioning_factor": 100, "weighted_priority_health": True}
    found = decode({"policy": policy})
    assert (found.overprovisioning, found.weighted_priority_health) == (100, True)
    with pytest.raises(InvalidResource, match="must not be 0"):
        decode({"policy": {"overprovisioning_factor": 0}})


@pytest.mark.parametrize(
    ("localities", "field", "problem"),
    [
        (
            [place(at("a", load_balancing_weight=0))],
            "[0].lb_endpoints[0].load_balancing_weight",
            "0",
        ),
        ([place({"endpoint_name": "x"})], "[0].lb_endpoints[0].endpoint", "endpoint_name"),
        ([place(at("a", health_status=77))], "[0].lb_endpoints[0].health_status", "77"),
        (
            [place(at("a", port=0))],
            "[0].lb_endpoints[0].endpoint.address.socket_address.port_value",
            "is 0",
        ),
        (
            [place(at("a", port=65536))],
            "[0].lb_endpoints[0].endpoint.address.socket_address.port_value",
            "is 65536",
        ),
        ([place(at(""))], "[0].lb_endpoints[0].endpoint.address.socket_address.address", "empty"),
        ([place({"endpoint": {}})], "[0].lb_endpoints[0].endpoint.address", "nothing"),
        (
            [place({"endpoint": {"address": {"pipe": {}}}})],
            "[0].lb_endpoints[0].endpoint.address.pipe.path",
            "empty",
        ),
        (
            [place({"endpoint": {"address": {"envoy_internal_address": {}}}})],
            "[0].lb_endpoints[0].endpoint.address",
            "envoy_internal_address",
        ),
        ([place(at("a"), at("a"))], "[0].lb_endpoints[1].endpoint.address", "a:80 comes twice"),
        (
            [place(at("a")), place(at("b", extra=("a",)), zone="z")],
            "[1].lb_endpoints[0].endpoint.address",
            "a:80 comes twice",
        ),
        (
            [place(leds_cluster_locality_config={})],
            "[0].leds_cluster_locality_config",
            "lb_endpoints",
        ),
        ([place(at("a")), place(at("b"))], "", "a locality comes twice"),
        ([place(at("a"), priority=1)], "", "without a gap, not 1"),
        ([place(at("a")), place(at("b"), priority=2)], "", "not 0, 2"),
        ([place(at("a"), weight=MAX), place(at("b"), zone="z")], "", "weights of priority 0"),
        (
            [place(at("a", load_balancing_weight=MAX), at("b"))],
            "",
            "weights in a locality",
        ),
    ],
)
def test_what_is_refused(localities: list[Json], field: str, problem: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        decode({"endpoints": localities})
    assert caught.value.field == f"endpoints{field}"
    assert problem in caught.value.problem
    assert caught.value.resource == "ClusterLoadAssignment c"


def test_the_same_locality_may_be_in_two_priorities() -> None:
    localities = [place(at("a")), place(at("b"), priority=1)]
    assert len(decode({"endpoints": localities}).localities) == 2


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_priorities_must_count_from_zero(priorities: list[int]) -> None:
    localities = [
        place(at(f"h{i}"), zone=str(i), priority=priority) for i, priority in enumerate(priorities)
    ]
    gapless = set(priorities) == set(range(max(priorities) + 1))
    if gapless:
        assert len(decode({"endpoints": localities}).localities) == len(priorities)
    else:
        with pytest.raises(InvalidResource, match="without a gap"):
            decode({"endpoints": localities})
