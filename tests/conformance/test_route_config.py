"""Route configurations of Envoy's own tests: which are accepted, and where requests go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from controlplane.routecheck import Input, Outcome, outcome
from meshsdk.errors import InvalidResource
from meshsdk.model import ForwardAction, Route, RouteConfiguration
from meshsdk.routing import Draw, Request, select, virtual_host
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.document import message_of
from meshsdk.xds.resources import ROUTE
from tests.support.cases import Case, each_case

_ONLY_IN_TESTS = {
    "RouteMatcherTest.ShadowClusterNotFound": "accept",
    "RouteMatcherTest.TestWeightedClusterInvalidClusterName": "accept",
    "RouteConfigurationV2.BrokenTypedMetadata": "accept",
    "RouteMatcherTest.InlineClusterSpecifierPlugin": "nack",
    "RouteMatcherTest.RetryVirtualHostLevel": "accept",
    "RouteConfigurationV2.RetryPluginsAreNotReused": "nack",
}
"""Where the verdict of Envoy's unit test hangs on what only the test has (clusters that it knows,
extensions that it registers): the verdict of a running Envoy, or ours where that knows less."""


def config_of(case: Case) -> RouteConfiguration:
    """Raises InvalidResource or ValueError where the configuration is refused."""
    message = message_of(yaml.safe_load(case["config_yaml"]), ROUTE.rpartition("/")[2])
    message.name = message.name or "r"
    found: RouteConfiguration = DECODERS[ROUTE].decode(message, [])
    return found


@each_case("envoy/route_config", "accept_nack")
def test_verdicts(case: Case) -> None:
    try:
        config_of(case)
    except (InvalidResource, ValueError) as error:
        verdict, why = "nack", str(error)
    else:
        verdict, why = "accept", ""
    assert verdict == _ONLY_IN_TESTS.get(case["id"], case["expect"]), why


# --- where requests go -------------------------------------------------------------------------

_LOST: dict[tuple[str, int], dict[str, Any]] = {
    **{
        ("RouteMatcherTest.TestConnectRoutes", index): {"request_headers": (("x-safe", "safe"),)}
        for index in (8, 9)
    },
    **{
        ("RouteMatcherTest.PatternMatchRewriteCaseSensitive", index): {"path": "/REST/one/two"}
        for index in (2, 3)
    },
    **{
        ("RouteMatcherTest.TestRoutes", index): {
            "request_headers": (("host-from-header", "test.com.cn"),)
        }
        for index in (52, 53)
    },
    ("RouteMatcherTest.DynamicMetadataMatchedRouting", 0): {"metadata": {"example": {"k1": "foo"}}},
    ("RouteMatcherTest.DynamicMetadataMatchedRouting", 1): {
        "metadata": {"example": {"k2": "bar", "k3": "bar"}}
    },
    ("RouteConfigurationV2.RedirectPathRewriteDownstreamAddress", 0): {"address": "1.2.3.4"},
}
"""Parts of requests that Envoy's test has and the data lost."""


_UNSEEN = {("RouteMatcherTest.TestRoutes", 68)}
"""The test's filter state decides, which no call of an application has."""


def without_its_mocks(case: Case) -> str | None:
    if case["id"] != "RouteMatcherTest.TlsContextMatching":
        return None
    return "a test double of the origin: the TLS connection that a mock was"


def request_of(case: Case, index: int, check: Case) -> Input:
    asked = check["request"]
    headers = [(name.lower(), value) for name, value in asked["headers"]]
    named = dict(headers)
    inner = [pair for pair in headers if pair[0] not in ("x-forwarded-proto", "x-envoy-internal")]
    found = Input(
        asked["authority"],
        asked["path"] or "",
        asked["method"] or "GET",
        check["random"],
        (asked["scheme"] or named.get("x-forwarded-proto", "http")) == "https",
        named.get("x-envoy-internal") == "true",
        tuple(inner),
    )
    return replace(found, **_LOST.get((case["id"], index), {}))


def route_of(config: RouteConfiguration, asked: Input) -> Route | None:
    scheme = "https" if asked.ssl else "http"
    request = Request(
        asked.method,
        asked.path,
        authority=asked.authority,
        scheme=scheme,
        headers=asked.request_headers,
        metadata=asked.metadata,
    )
    host = virtual_host(config, request)
    if host is None:
        return None
    return select(config, host, request, Draw(lambda: asked.random_value / 2**53))


def with_router_headers(asked: Input, route: Route | None) -> Input:
    """With the headers that Envoy's router sets before those of the route."""
    action = route.action if route is not None else None
    if not isinstance(action, ForwardAction) or action.timeout is None:
        return asked
    timeout = ("x-envoy-expected-rq-timeout-ms", str(round(action.timeout * 1000)))
    more = (timeout, ("x-envoy-attempt-count", "1"))
    return replace(asked, request_headers=(*asked.request_headers, *more))


_STATUS = {"TemporaryRedirect": 307, "NotFound": 404, "InternalServerError": 500}


@each_case("envoy/route_config", "routing_checks", aside=without_its_mocks)
def test_routing(case: Case) -> None:
    config = config_of(case)
    for index, check in enumerate(case["checks"]):
        where = f"check {index}: {check}"
        if (case["id"], index) in _UNSEEN:
            continue
        if case["id"] == "RouteMatcherTest.WeightedClusters":
            check = runtime_weights(check)
        if check is not None:
            judge(config, case, check, request_of(case, index, check), where)


def runtime_weights(check: Case) -> Case | None:
    """None where the test's mock of the runtime gave other weights: `www3` and `www4`.

    The SDK has no runtime that could change weights behind the control plane's back.
    """
    authority = check["request"]["authority"]
    return None if authority.startswith(("www3", "www4")) else check


def judge(config: RouteConfiguration, case: Case, check: Case, asked: Input, where: str) -> None:
    route = route_of(config, asked)
    seen = outcome(config, with_router_headers(asked, route))
    action = route.action if route is not None else None
    (kind,) = check.keys() - {"request", "random"}
    wanted = check[kind]
    match kind:
        case "expect_cluster":
            assert seen.cluster_name == wanted, where
        case "expect_no_route":
            assert route is None, where
        case "expect_no_route_entry":
            assert not isinstance(action, ForwardAction), where
        case "expect_no_direct_response":
            assert isinstance(action, ForwardAction), where
        case "expect_redirect_uri":
            assert seen.path_redirect == wanted, where
        case "expect_route_name":
            assert route is not None, where
            assert route.name == wanted, where
        case "expect_response_code":
            code = seen.code_redirect or getattr(action, "not_found_status", 0)
            assert code == _STATUS[wanted], where
        case "expect_header_after_finalize":
            compare_headers(case, check, seen, where)
        case _:
            compare_policies(case["id"], route, wanted, where)


def compare_headers(case: Case, check: Case, seen: Outcome, where: str) -> None:
    found = dict(reversed(seen.request_headers))  # of several the first
    for name, value in check["expect_header_after_finalize"].items():
        if name == ":authority" and value == f"{check['request']['authority']}:10":
            continue  # the test's filter state held the port of a CONNECT
        assert found.get(name, "") == value, where


_MILLISECONDS = {
    "perTryTimeout": lambda a: (a.retry.per_try_timeout or 0) if a.retry else 0,
    "perTryIdleTimeout": lambda a: (a.retry.per_try_idle_timeout or 0) if a.retry else 0,
    "resetMaxInterval": lambda a: (
        a.retry.rate_limited.max_interval if a.retry and a.retry.rate_limited else 300
    ),
    "timeout": lambda a: a.timeout or 0,
    "idleTimeout": lambda a: a.idle_timeout or 0,
    "maxStreamDuration": lambda a: a.max_stream_duration or 0,
    "grpcTimeoutHeaderMax": lambda a: a.max_grpc_timeout or 0,
    "grpcTimeoutHeaderOffset": lambda a: a.grpc_timeout_offset or 0,
    "baseInterval": lambda a: a.retry.base_interval if a.retry else 0,
    "maxInterval": lambda a: a.retry.max_interval if a.retry else 0,
}
_BITS = {
    "5xx": 0x1, "gateway-error": 0x2, "connect-failure": 0x4, "retriable-4xx": 0x8,
    "refused-stream": 0x10, "cancelled": 0x20, "deadline-exceeded": 0x40,
    "resource-exhausted": 0x80, "unavailable": 0x100, "internal": 0x200,
    "retriable-status-codes": 0x400, "reset": 0x800, "retriable-headers": 0x1000,
}  # fmt: skip
_VALUES: dict[str, Any] = {
    "numRetries": lambda a: a.retry.num_retries if a.retry else 1,
    "retryOn": lambda a: sum(_BITS[name] for name in a.retry.retry_on) if a.retry else 0,
    "resetHeaders().size": lambda a: (
        len(a.retry.rate_limited.headers) if a.retry and a.retry.rate_limited else 0
    ),
    "initialRequests": lambda a: a.hedge.initial_requests if a.hedge else 1,
    "shadowPolicies().size": lambda a: len(a.mirrors),
}
# Limits of buffers that a library without buffers has not, doubles of the origin, and a clock.
_NOT_OURS = ("requestBodyBufferLimit", "retryOptionsPredicates", "parseInterval")


def compare_policies(case: str, route: Route | None, wanted: dict[str, Any], where: str) -> None:
    assert route is not None, where
    action = route.action
    assert isinstance(action, ForwardAction), where
    for getter, value in wanted.items():
        if any(name in getter for name in _NOT_OURS):
            continue
        known = [(name, read, 1) for name, read in _VALUES.items()]
        known += [(name, read, 1000) for name, read in _MILLISECONDS.items()]
        reads = [(read, factor) for name, read, factor in known if _names(getter, name)]
        assert reads, f"{getter} is not compared: {where}"
        read, factor = reads[0]
        assert read(action) * factor == pytest.approx(value), f"{getter}: {where}"


def _names(getter: str, name: str) -> bool:
    """Whether a C++ getter such as `retryPolicy()->numRetries()` reads that."""
    return getter.removesuffix("()").endswith(name)
