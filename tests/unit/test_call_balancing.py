"""What a cluster's balancing means for the decision of a call: drops, subsets, keys."""

from __future__ import annotations

import random
from typing import Any

from meshsdk.balancing import ClusterPool
from meshsdk.call import Forward, Reply, Request, compile_method, decide
from meshsdk.errors import DropOverload
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    Drop,
    Endpoint,
    HashKind,
    HashPolicy,
    HeaderMutations,
    HeaderOption,
    LbConfig,
    ListenerView,
    LocalityEndpoints,
    RouteConfiguration,
    SubsetFallback,
    Subsets,
    SubsetSelector,
    VirtualHost,
)
from tests.support.static_mesh import forward


def view(
    *drops: Drop,
    balancing: Balancing = Balancing.ROUND_ROBIN,
    lb: LbConfig = LbConfig(),  # noqa: B008  frozen
    **action: Any,
) -> ListenerView:
    endpoints = tuple(
        Endpoint("10.0.0.1", 9000 + i, metadata={"envoy.lb": {"stage": "ab"[i % 2]}})
        for i in range(4)
    )
    assignment = Assignment("c", (LocalityEndpoints(endpoints),), drops=drops)
    cluster = ClusterPool(random.random).view(Cluster("c", balancing=balancing, lb=lb), assignment)
    host = VirtualHost("v", ("*",), (forward("c", **action),))
    return ListenerView("l", RouteConfiguration("r", (host,)), {"c": cluster})


def get(**headers: str) -> Request:
    return Request("GET", "/", authority="h", headers=list(headers.items()))


def test_a_dropped_call_is_answered_as_envoy_answers_it() -> None:
    answer = decide(view(Drop("x", 500_000)), get(), lambda: 0.25)
    assert isinstance(answer, Reply)
    assert (answer.status, answer.flag, answer.body) == (503, "DO", b"drop overload")
    assert answer.grpc_code == 14
    assert isinstance(answer.error, DropOverload)


def test_a_cluster_that_drops_everything_says_so() -> None:
    answer = decide(view(Drop("x", 1_000_000)), get(), random.random)
    assert isinstance(answer, Reply)
    body = b"unconditional drop overload"
    assert (answer.status, answer.flag, answer.body) == (503, "UDO", body)


def test_response_headers_of_the_route_are_on_the_answer_too() -> None:
    added = HeaderMutations(response_set=(HeaderOption("x-route", "yes"),))
    answer = decide(view(Drop("x", 1_000_000), mutations=added), get(), random.random)
    assert isinstance(answer, Reply)
    assert ("x-route", "yes") in answer.headers


def test_each_category_drops_of_what_the_one_before_left() -> None:
    shares = view(Drop("a", 500_000), Drop("b", 500_000))
    draw = random.Random(7)
    kept = sum(isinstance(decide(shares, get(), draw.random), Forward) for _ in range(4000))
    assert 900 < kept < 1100


def test_a_grpc_method_whose_cluster_drops_is_decided_call_by_call() -> None:
    table = compile_method(view(Drop("x", 500_000)), "h", "/p.S/M")
    assert table.static is None
    request = Request("POST", "/p.S/M", authority="h", grpc=True)
    found = {type(table.decide(request, random.Random(seed).random)) for seed in range(20)}
    assert found == {Forward, Reply}
    assert compile_method(view(), "h", "/p.S/M").static is not None


def test_a_route_may_ask_for_a_subset() -> None:
    subsets = Subsets(SubsetFallback.ANY_ENDPOINT, (SubsetSelector(frozenset({"stage"})),))
    lb = LbConfig(subsets=subsets)
    for subset, ports in (({"stage": "b"}, {9001, 9003}), ({}, {9000, 9001, 9002, 9003})):
        found = decide(view(lb=lb, subset=subset), get(), random.random)
        assert isinstance(found, Forward)
        assert {found.pick(random.random).endpoint.port for _ in range(8)} == ports


def test_the_hash_policy_of_the_cluster_stands_before_that_of_the_route() -> None:
    own = LbConfig(hash_policy=(HashPolicy(HashKind.HEADER, "x-own"),))
    route = (HashPolicy(HashKind.HEADER, "x-route"),)
    ring = Balancing.RING_HASH
    request = get(**{"x-own": "1", "x-route": "2"})
    keys = []
    for listener in (
        view(balancing=ring, lb=own, hash_policy=route),
        view(balancing=ring, lb=own),
        view(balancing=ring, hash_policy=route),
    ):
        found = decide(listener, request, random.random)
        assert isinstance(found, Forward)
        keys.append(found.key)
    assert keys[0] == keys[1] != keys[2]
    grpc = view(balancing=ring, lb=own)
    assert compile_method(grpc, "h", "/p.S/M").needs_request
