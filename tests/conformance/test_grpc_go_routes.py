"""grpc-go's tables of faults, hash keys, header changes and time limits."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshsdk.balancing import ClusterPool
from meshsdk.call import Forward, Reply, decide
from meshsdk.formats import Caller
from meshsdk.model import Cluster, HashKind, HashPolicy, ListenerView, RegexRewrite
from meshsdk.routing import Request, hash_key
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import LISTENER
from tests.support.cases import Case, each_case
from tests.support.resources import pack, route, route_configuration


def no_filter_of_servers(case: Case) -> str:
    return "the filters that ask other servers (ext_authz, ext_proc)"


def listener_with(configs: list[Case]) -> Any:
    manager = hcm_pb2.HttpConnectionManager(stat_prefix="l")
    manager.route_config.CopyFrom(route_configuration("r", [route("c")]))
    for index, item in enumerate(configs):
        fault = fault_pb2.HTTPFault.FromString(base64.b64decode(item["value_b64"]))
        manager.http_filters.add(name=f"fault{index}", typed_config=pack(fault))
    manager.http_filters.add(name="router", typed_config=pack(router_pb2.Router()))
    api = api_listener_pb2.ApiListener(api_listener=pack(manager))
    message = listener_pb2.Listener(name="l", api_listener=api)
    return DECODERS[LISTENER].decode(message, [])


@each_case("envoy/grpc_go_filters", "fault_injection")
def test_faults(case: Case) -> None:
    listener = listener_with(case["filter_configs"])
    value = 0
    for step in case["steps"]:
        for _ in range(step["repeat"]):
            draws = iter([value] * 10)
            headers = [(name, one) for name, values in (step["md"] or {}).items() for one in values]
            request = Request("POST", "/s/m", authority="svc", headers=headers, grpc=True)
            view = ListenerView(
                "l",
                listener.route_config,
                fault=listener.fault,
                filters=listener.filters,
            )

            def random(draws: Any = draws) -> float:
                return next(draws) % 100 / 100

            decision = decide(view, request, random)
            value += case["random_increment"]
            judge(step, decision)


def judge(step: Case, decision: Any) -> None:
    delays = sum(seconds_of(text) for text in step["delays"] or [])
    assert decision.delay == pytest.approx(delays), step
    assert isinstance(decision, Reply)  # the cluster does not exist, unless a fault came before
    aborted = decision.flag == "FI"
    if step["code"]:
        assert aborted, step
        assert decision.grpc_code == step["code"], step
    else:
        assert not aborted, step


def seconds_of(text: str) -> float:
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text[:-1])


@each_case("envoy/grpc_go_filters", "ext_authz_header_map", awaits=no_filter_of_servers)
def test_headers_for_an_authorization_server(case: Case) -> None:
    pytest.fail("not built")


@each_case(
    "envoy/grpc_go_filters",
    ["header_mutation_additions", "header_mutation_removals"],
    awaits=no_filter_of_servers,
)
def test_changes_that_another_server_asks_for(case: Case) -> None:
    pytest.fail("not built")


# --- resolver --------------------------------------------------------------------------------


@each_case("envoy/grpc_go_resolver", "request_hash")
def test_hash_keys(case: Case) -> None:
    policies = []
    for item in case["hash_policies"]:
        if item["HashPolicyType"] == 1:
            policies.append(
                HashPolicy(HashKind.FILTER_STATE, "io.grpc.channel_id", item["Terminal"])
            )
            continue
        rewrite = None
        if item["Regex"] is not None:
            rewrite = RegexRewrite(item["Regex"], item["RegexSubstitution"])
        policies.append(HashPolicy(HashKind.HEADER, item["HeaderName"], item["Terminal"], rewrite))
    headers = [(n, v) for n, values in case["outgoing_metadata"].items() for v in values]
    target = dict(headers).get(":path", case["method"])
    plain = [pair for pair in headers if not pair[0].startswith(":")]
    request = Request("POST", target, authority="svc", headers=plain, grpc=True)
    caller = Caller(channel=12378921)
    key, cookies = hash_key(policies, request, caller, lambda: 0.0)
    assert key == case["request_hash_want"]
    assert cookies == ()


@each_case(
    "envoy/grpc_go_resolver",
    ["listener_resource_name", "percent_encode", "resource_template"],
    awaits=lambda case: "federation of control planes (xdstp:// names)",
)
def test_names(case: Case) -> None:
    pytest.fail("not built")


@each_case("envoy/grpc_go_resolver", "max_stream_duration")
def test_time_limits_of_routes_stand_before_those_of_listeners(case: Case) -> None:
    limits = {"/bar/method": {"max_stream_duration": {"seconds": 0}}, "/baz/method": {}}
    fields = limits[case["method"]]
    config = route_configuration("r", [route("c", timeout=0.0)])
    action = config.virtual_hosts[0].routes[0].route
    if fields:
        action.max_stream_duration.max_stream_duration.seconds = 0
    found = listener_of(config, 1)
    cluster = ClusterPool(lambda: 0.0).view(Cluster("c"), None)
    view = ListenerView(
        "l", found.route_config, {"c": cluster}, max_stream_duration=found.max_stream_duration
    )
    decision = decide(view, Request("POST", case["method"], authority="x", grpc=True), lambda: 0.0)
    assert isinstance(decision, Forward)
    assert decision.timeout == (None if case["want"] is None else seconds_of(case["want"]))


def listener_of(config: Any, longest: int) -> Any:
    manager = hcm_pb2.HttpConnectionManager(stat_prefix="l", route_config=config)
    manager.common_http_protocol_options.max_stream_duration.seconds = longest
    api = api_listener_pb2.ApiListener(api_listener=pack(manager))
    return DECODERS[LISTENER].decode(listener_pb2.Listener(name="l", api_listener=api), [])
