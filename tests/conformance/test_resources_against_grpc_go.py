"""Which resources are accepted and which are rejected: the verdicts of grpc-go.

The cases come from grpc-go's own tests, as the exact bytes. Where this SDK decides otherwise on
purpose, the case is in `DIFFERENT` with the reason, and the test holds the SDK to the other
verdict, so that no difference comes or goes unseen.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import yaml
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format

from meshsdk.errors import InvalidResource
from meshsdk.model import Assignment, Cluster, ForwardAction, Listener, RouteConfiguration
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, ResourceState, Status
from meshsdk.xds.stream import AdsMachine, Received
from tests.support.programs import require_data

_WRAPPER = "type.googleapis.com/envoy.service.discovery.v3.Resource"

_TEST_DOUBLE = "a filter that only grpc-go's tests know"
_TLS = "certificate providers are not in this SDK yet: rejected, nothing goes out unprotected"
DIFFERENT: dict[str, tuple[str, str]] = {
    "UnmarshalListener_ClientSide/v3_with_custom_filter": ("nack", _TEST_DOUBLE),
    "UnmarshalListener_ClientSide/v3_with_custom_filter_in_old_typed_struct": (
        "nack",
        _TEST_DOUBLE,
    ),
    "UnmarshalListener_ClientSide/v3_with_custom_filter_in_new_typed_struct": (
        "nack",
        _TEST_DOUBLE,
    ),
    "UnmarshalListener_ClientSide/v3_with_optional_err_filter": (
        "accept",
        "a known filter with a bad configuration there; unknown and optional here",
    ),
    "RDSGenerateRDSUpdateFromRouteConfiguration/good-route-config-with-http-filter-config": (
        "nack",
        _TEST_DOUBLE,
    ),
    "RDSGenerateRDSUpdateFromRouteConfiguration/"
    "good-route-config-with-http-filter-config-in-new-typed-struct": ("nack", _TEST_DOUBLE),
    "RoutesProtoToSlice/with custom HTTP filter config": ("nack", _TEST_DOUBLE),
    "RoutesProtoToSlice/with custom HTTP filter config in typed struct": ("nack", _TEST_DOUBLE),
    "ValidateCluster_Failure/non-supported-cluster-type-original-dst": (
        "nack",
        "supported here, but with CLUSTER_PROVIDED only, as in Envoy",
    ),
    "ValidateCluster_Failure/unsupported-lb-policy": (
        "accept",
        "MAGLEV is supported here",
    ),
    "ValidateCluster_Failure/least-request-unsupported-in-converter-since-env-var-unset": (
        "accept",
        "least request is always supported",
    ),
    "ValidateClusterAndConstructClusterUpdate_GCP_AUTHENTICATION_FILTER_ConverterFailure/"
    "converter_failure_in_cluster": ("accept", "typed metadata of a filter that is not supported"),
    "ValidateClusterWithSecurityConfig/transport-socket-without-validation-context": (
        "accept",
        "nothing is verified then, as in Envoy",
    ),
    **{
        f"ValidateClusterWithSecurityConfig/{name}": ("nack", _TLS)
        for name in (
            "happy-case-with-no-identity-certs-using-deprecated-fields",
            "happy-case-with-no-identity-certs-using-new-fields",
            "happy-case-with-validation-context-provider-instance-using-new-fields",
            "happy-case-with-combined-validation-context-using-new-fields-and-system-root-certs",
            "happy-case-with-sni-flag-enabled",
            "sni-env-variable-disabled-should-not-be-populated-in-update",
        )
    },
}

# Set aside as a whole: lds_server.json and tls_context_errors.json (the listeners of servers and
# TLS are not decoded yet), rds_hash_policies.json, auto_host_rewrite.json (accepted with a warning,
# as by an untrusted server).


def cases(name: str) -> list[Any]:
    path = require_data("envoy/grpc_go_resource_validation") / f"{name}.json"
    found = json.loads(path.read_text())
    assert isinstance(found, list)
    return found


def expected(case: Any) -> str:
    verdict, _reason = DIFFERENT.get(case["id"], (case["expect"], ""))
    return verdict


def named(url: str, type_url: str, raw: bytes, case: str) -> tuple[bytes, str]:
    """The bytes and the resource name; where the case left out the name, it is given one.

    Several cases call grpc-go's validation below the level that looks at the name.
    """
    decoder = DECODERS[url]
    try:
        payload = discovery_pb2.Resource.FromString(raw).resource.value
        message = decoder.parse(payload if type_url == _WRAPPER else raw)
    except Exception:
        return raw, "x"
    name = getattr(message, decoder.name_field)
    if name or type_url != url or "empty" in case.rpartition("/")[2]:
        return raw, name or "x"
    setattr(message, decoder.name_field, "x")
    return message.SerializeToString(), "x"


def receive(url: str, type_url: str, raw: bytes, name: str) -> tuple[Received, ResourceState]:
    machine = AdsMachine(base_pb2.Node(id="n"), DECODERS)
    machine.subscribe(url, {name}, 0.0)
    machine.connected(0.0)
    response = discovery_pb2.DiscoveryResponse(type_url=url, version_info="1", nonce="1")
    response.resources.add(type_url=type_url, value=raw)
    result = machine.received(response, 1.0)
    state = machine.resource(url, name)
    assert state is not None
    return result, state


@pytest.mark.parametrize(
    ("file", "url", "kind"),
    [
        ("lds_client", LISTENER, Listener),
        ("rds", ROUTE, RouteConfiguration),
        ("cds", CLUSTER, Cluster),
        ("eds", ENDPOINT, Assignment),
    ],
)
def test_verdicts_on_resources(file: str, url: str, kind: type) -> None:
    wrong = []
    for case in cases(file):
        item = case["resource"]
        raw, name = named(url, item["type_url"], base64.b64decode(item["value_b64"]), case["id"])
        result, state = receive(url, item["type_url"], raw, name)
        verdict = "nack" if result.rejected else "accept"
        if verdict != expected(case):
            wrong.append((case["id"], verdict, [str(error) for error in result.rejected]))
        assert isinstance(state.value, kind) == (verdict == "accept")
        assert result.requests[0].HasField("error_detail") == (verdict == "nack")
    assert wrong == []


def test_verdicts_on_routes() -> None:
    wrong = []
    for case in cases("rds_routes"):
        config = route_pb2.RouteConfiguration(name="r")
        host = config.virtual_hosts.add(name="v", domains=["*"])
        for item in case["routes"]:
            host.routes.add().MergeFromString(base64.b64decode(item["value_b64"]))
        try:
            DECODERS[ROUTE].decode(config, [])
            verdict, why = "accept", ""
        except InvalidResource as error:
            verdict, why = "nack", str(error)
        if verdict != expected(case):
            wrong.append((case["id"], verdict, why))
    assert wrong == []


def test_every_difference_is_of_a_case_that_exists() -> None:
    known = {
        case["id"]
        for file in ("lds_client", "rds", "rds_routes", "cds", "eds")
        for case in cases(file)
    }
    assert set(DIFFERENT) <= known


def test_meaning_of_some_accepted_ones() -> None:
    """What grpc-go reads out of its good cases, as far as both have a word for it."""
    by_id = {case["id"]: case for case in [*cases("eds"), *cases("rds")]}

    def value(case: str, url: str) -> Any:
        item = by_id[case]["resource"]
        raw, name = named(url, item["type_url"], base64.b64decode(item["value_b64"]), case)
        return receive(url, item["type_url"], raw, name)[1].value

    assert value("EDSParseRespProto/missing locality weight", ENDPOINT).localities == ()
    prefix = "RDSGenerateRDSUpdateFromRouteConfiguration/good-route-config"
    config = value(f"{prefix}-with-weighted_clusters", ROUTE)
    action = config.virtual_hosts[0].routes[0].action
    assert [(c.cluster, c.weight) for c in action.clusters] == [("a", 2), ("b", 3), ("c", 5)]
    config = value(f"{prefix}-with-grpc-timeout-header-max", ROUTE)
    assert config.virtual_hosts[0].routes[0].action.max_grpc_timeout == 1.0
    config = value(f"{prefix}-with-both-timeouts", ROUTE)
    assert config.virtual_hosts[0].routes[0].action.max_grpc_timeout is None
    config = value(f"{prefix}-with-retry-policy", ROUTE)
    assert config.virtual_hosts[0].routes[0].action.retry.num_retries == 2
    config = value(f"{prefix}-with-retry-backoff", ROUTE)
    assert config.virtual_hosts[0].routes[0].action.retry.max_interval == pytest.approx(0.1)
    config = value(f"{prefix}-but-with-casesensitive-false", ROUTE)
    assert config.virtual_hosts[0].routes[0].match.path.ignore_case


def test_whole_responses() -> None:
    """Which resources of a response apply, and whether it is rejected."""
    for case in cases("sotw_responses"):
        raw = base64.b64decode(case["response"]["value_b64"])
        response = discovery_pb2.DiscoveryResponse.FromString(raw)
        machine = AdsMachine(base_pb2.Node(id="n"), DECODERS)
        machine.subscribe(LISTENER, case["resource_names_to_request"], 0.0)
        machine.connected(0.0)
        result = machine.received(response, 1.0)
        assert bool(result.rejected) == bool(case["want_metadata"]["ErrState"]), case["id"]
        for name, update in (case["want_updates"] or {}).items():
            state = machine.resource(LISTENER, name)
            assert state is not None
            good = update["Err"] is None
            assert state.status is (Status.ACKED if good else Status.NACKED), case["id"]
            assert (LISTENER, name) in result.changed, case["id"]


# --- RouteConfigurations of Envoy's own tests ------------------------------------------------

_NOT_LOOKED_AT = "of a field that this SDK does not look at or notes only"
_CANNOT = "a condition that this SDK cannot evaluate: rejected, never misrouted"
ENVOY_DIFFERENT: dict[str, tuple[str, str]] = {
    "RouteMatcherTest.TestRoutes": ("nack", _CANNOT),
    "RouteMatcherTest.DynamicMetadataMatchedRouting": ("nack", _CANNOT),
    "RouteMatcherTest.TlsContextMatching": ("nack", _CANNOT),
    "RouteMatchOverrideTest.SslRedirectRouteOnRequireTlsAll": ("nack", "require_tls: " + _CANNOT),
    "RouteMatchOverrideTest.SslRedirectRouteOnRequireTlsInternal": (
        "nack",
        "require_tls: " + _CANNOT,
    ),
    "RouteMatcherTest.TestRoutesWithInvalidPathRewriteFormatter": (
        "accept",
        "becomes an action that fails its calls",
    ),
    "RouteMatcherTest.ShadowClusterNotFound": ("accept", "the cluster may come later"),
    "RouteMatcherTest.TestWeightedClusterInvalidClusterName": (
        "accept",
        "the cluster may come later",
    ),
    "RouteMatcherTest.RequestMirrorPoliciesWithBothClusterAndClusterHeader": (
        "accept",
        _NOT_LOOKED_AT,
    ),
    "RouteMatcherTest.RequestMirrorPoliciesWithNoClusterSpecifier": ("accept", _NOT_LOOKED_AT),
    "RouteMatcherTest.RequestMirrorPoliciesWithInvalidHttpHeader": ("accept", _NOT_LOOKED_AT),
    "RouteMatcherTest.WeightedClusterInvalidConfigWithInvalidHttpHeader": (
        "accept",
        "becomes an action that fails its calls",
    ),
    "RouteConfigurationV2.BrokenTypedMetadata": ("accept", _NOT_LOOKED_AT),
    "RouteConfigurationV2.BadConnectConfig": ("accept", _NOT_LOOKED_AT),
}


def test_verdicts_of_envoy_on_route_configurations() -> None:
    path = require_data("envoy/route_config") / "accept_nack.json"
    wrong, judged = [], 0
    for case in json.loads(path.read_text()):
        try:
            config = yaml.safe_load(case["config_yaml"])
            message = json_format.ParseDict(config, route_pb2.RouteConfiguration())
        except (json_format.ParseError, KeyError):
            continue  # newer fields, or extensions that only Envoy's tests know
        judged += 1
        message.name = message.name or "r"
        verdict, _reason = ENVOY_DIFFERENT.get(case["id"], (case["expect"], ""))
        try:
            DECODERS[ROUTE].decode(message, [])
            found, why = "accept", ""
        except InvalidResource as error:
            found, why = "nack", str(error)
        if found != verdict:
            wrong.append((case["id"], found, why))
    assert wrong == []
    assert judged > 70


def test_unsupported_is_never_a_forward() -> None:
    """A route of the Envoy cases that needs more than the SDK can do is not sent anywhere."""
    config = route_pb2.RouteConfiguration(name="r")
    host = config.virtual_hosts.add(name="v", domains=["*"])
    route = host.routes.add()
    route.match.prefix = "/"
    route.route.cluster_header = "x-cluster"
    found = DECODERS[ROUTE].decode(config, [])
    assert not isinstance(found.virtual_hosts[0].routes[0].action, ForwardAction)
