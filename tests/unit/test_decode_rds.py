"""RouteConfiguration into frozen values: every condition, action and change, and every refusal."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from google.protobuf import any_pb2, json_format
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from meshsdk.errors import InvalidResource
from meshsdk.matching import (
    Fraction,
    HeaderMatch,
    MetadataMatch,
    PathKind,
    QueryMatch,
    StringKind,
    StringMatch,
    ValueKind,
    ValueMatch,
)
from meshsdk.model import (
    AppendAction,
    DirectResponseAction,
    Fault,
    FaultAbort,
    FaultDelay,
    ForwardAction,
    HeaderOption,
    RedirectAction,
    RegexRewrite,
    RetryPolicy,
    Route,
    RouteConfiguration,
    UnsupportedAction,
    WeightedCluster,
)
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import ROUTE

Json = dict[str, Any]
PREFIX: Json = {"prefix": "/"}
FAULT = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
FAULT_ANY: Json = {"@type": FAULT}


def decode(config: Json, notes: list[str] | None = None) -> RouteConfiguration:
    message = json_format.ParseDict({"name": "r", **config}, route_pb2.RouteConfiguration())
    found = DECODERS[ROUTE].decode(message, [] if notes is None else notes)
    assert isinstance(found, RouteConfiguration)
    return found


def host(*routes: Json, **fields: Any) -> Json:
    return {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": list(routes), **fields}]}


def one(route: Json, notes: list[str] | None = None, **fields: Any) -> Route:
    (found,) = decode(host(route, **fields), notes).virtual_hosts[0].routes
    return found


def matched(match: Json) -> Any:
    return one({"match": match, "route": {"cluster": "c"}}).match


def forward(action: Json, notes: list[str] | None = None) -> ForwardAction:
    found = one({"match": PREFIX, "route": {"cluster": "c", **action}}, notes).action
    assert isinstance(found, ForwardAction)
    return found


# --- virtual hosts ---------------------------------------------------------------------------


def test_domains_find_their_host() -> None:
    def vhost(name: str, *domains: str) -> Json:
        return {"name": name, "domains": list(domains)}

    config = decode(
        {
            "virtual_hosts": [
                vhost("any", "*"),
                vhost("exact", "Reviews.default:9080"),
                vhost("suffix", "*.example.com"),
                vhost("prefix", "api.*"),
            ]
        }
    )
    found = {
        name: config.virtual_host(name)
        for name in ("reviews.default:9080", "a.example.com", "api.x", "other")
    }
    assert [h.name for h in found.values() if h] == ["exact", "suffix", "prefix", "any"]
    assert config.cluster_names == frozenset()


def test_port_may_be_ignored_in_finding_the_host() -> None:
    config = decode(
        {
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [{"name": "v", "domains": ["reviews"]}],
        }
    )
    assert config.virtual_host("reviews:9080") is not None
    assert config.virtual_host("reviews") is not None
    assert config.virtual_host("reviews:x") is None


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"virtual_hosts": [{"name": "v"}]}, "virtual_hosts[0].domains"),
        ({"virtual_hosts": [{"domains": [""]}]}, "virtual_hosts[0].domains[0]"),
        ({"virtual_hosts": [{"domains": ["a", "a*b"]}]}, "virtual_hosts[0].domains[1]"),
        ({"virtual_hosts": [{"domains": ["*a*"]}]}, "virtual_hosts[0].domains[0]"),
        (
            {"virtual_hosts": [{"domains": ["a"]}, {"domains": ["b", "A"]}]},
            "virtual_hosts[1].domains[1]",
        ),
        ({"virtual_hosts": [{"domains": ["a"], "matcher": {}}]}, "virtual_hosts[0].matcher"),
        ({"vhds": {"config_source": {"ads": {}}}}, "vhds"),
    ],
)
def test_what_would_find_another_host_is_refused(config: Json, field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        decode(config)
    assert caught.value.field == field
    assert caught.value.resource == "RouteConfiguration r"


def test_every_bad_route_is_named() -> None:
    bad = {"match": PREFIX, "route": {}}
    good = {"match": PREFIX, "route": {"cluster": "c"}}
    with pytest.raises(InvalidResource) as caught:
        decode({"virtual_hosts": [{"domains": ["*"], "routes": [bad, good, bad]}, {"domains": []}]})
    text = str(caught.value)
    assert "virtual_hosts[0].routes[0].route.cluster" in text
    assert "virtual_hosts[0].routes[2].route.cluster" in text
    assert "virtual_hosts[1].domains" in text


# --- match -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "kind", "value", "ignore_case"),
    [
        ({"prefix": "/a"}, PathKind.PREFIX, "/a", False),
        ({"prefix": ""}, PathKind.PREFIX, "", False),
        ({"path": "/A", "case_sensitive": False}, PathKind.EXACT, "/A", True),
        ({"path": "/A", "case_sensitive": True}, PathKind.EXACT, "/A", False),
        ({"path_separated_prefix": "/a"}, PathKind.SEGMENT_PREFIX, "/a", False),
        ({"safe_regex": {"regex": "/a.*"}}, PathKind.REGEX, "/a.*", False),
    ],
)
def test_paths(match: Json, kind: PathKind, value: str, ignore_case: bool) -> None:
    path = matched(match).path
    assert (path.kind, path.value, path.ignore_case) == (kind, value, ignore_case)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({}, HeaderMatch("x")),
        ({"present_match": True}, HeaderMatch("x")),
        ({"present_match": False}, HeaderMatch("x", present=False)),
        ({"invert_match": True}, HeaderMatch("x", invert=True)),
        ({"exact_match": ""}, HeaderMatch("x", StringMatch(StringKind.EXACT, ""))),
        ({"exact_match": "a"}, HeaderMatch("x", StringMatch(StringKind.EXACT, "a"))),
        ({"prefix_match": "a"}, HeaderMatch("x", StringMatch(StringKind.PREFIX, "a"))),
        ({"suffix_match": "a"}, HeaderMatch("x", StringMatch(StringKind.SUFFIX, "a"))),
        ({"contains_match": "a"}, HeaderMatch("x", StringMatch(StringKind.CONTAINS, "a"))),
        ({"range_match": {"start": "-1", "end": "5"}}, HeaderMatch("x", range=(-1, 5))),
        (
            {"safe_regex_match": {"regex": "a+"}},
            HeaderMatch("x", StringMatch(StringKind.REGEX, "a+")),
        ),
        (
            {"string_match": {"exact": "A", "ignore_case": True}},
            HeaderMatch("x", StringMatch(StringKind.EXACT, "A", ignore_case=True)),
        ),
        (
            {"string_match": {"safe_regex": {"regex": "b"}}, "treat_missing_header_as_empty": True},
            HeaderMatch("x", StringMatch(StringKind.REGEX, "b"), missing_as_empty=True),
        ),
    ],
)
def test_headers(header: Json, expected: HeaderMatch) -> None:
    assert matched({**PREFIX, "headers": [{"name": "X", **header}]}).headers == (expected,)


def test_query_parameters_fraction_and_grpc() -> None:
    found = matched(
        {
            **PREFIX,
            "query_parameters": [
                {"name": "a"},
                {"name": "b", "present_match": False},
                {"name": "c", "string_match": {"prefix": "d"}},
            ],
            "runtime_fraction": {
                "default_value": {"numerator": 5, "denominator": "TEN_THOUSAND"},
                "runtime_key": "ignored",
            },
            "grpc": {},
        }
    )
    assert found.queries == (
        QueryMatch("a"),
        QueryMatch("b", present=False),
        QueryMatch("c", StringMatch(StringKind.PREFIX, "d")),
    )
    assert found.fraction == Fraction(5, 10_000)
    assert found.grpc_only


@pytest.mark.parametrize(
    ("match", "field"),
    [
        ({}, "path_specifier"),
        ({"safe_regex": {"regex": "(?=a)"}}, "safe_regex.regex"),
        ({"safe_regex": {}}, "safe_regex.regex"),
        ({"path_separated_prefix": "/a/"}, "path_separated_prefix"),
        ({"path_separated_prefix": "/"}, "path_separated_prefix"),
        ({"path_separated_prefix": "/a?"}, "path_separated_prefix"),
        ({"path_match_policy": {"name": "t"}}, "path_match_policy.typed_config"),
        (
            {"path_match_policy": {"name": "t", "typed_config": FAULT_ANY}},
            "path_match_policy.typed_config",
        ),
        ({**PREFIX, "dynamic_metadata": [{}]}, "dynamic_metadata[0].filter"),
        ({**PREFIX, "filter_state": [{}]}, "filter_state[0].matcher"),
        ({**PREFIX, "headers": [{}]}, "headers[0].name"),
        ({**PREFIX, "headers": [{"name": "x", "prefix_match": ""}]}, "headers[0].prefix_match"),
        (
            {**PREFIX, "headers": [{"name": "x", "string_match": {"suffix": ""}}]},
            "headers[0].string_match.suffix",
        ),
        (
            {**PREFIX, "headers": [{"name": "x", "string_match": {"custom": {}}}]},
            "headers[0].string_match.custom.name",
        ),
        ({**PREFIX, "query_parameters": [{}]}, "query_parameters[0].name"),
        (
            {**PREFIX, "runtime_fraction": {"default_value": {"denominator": 9}}},
            "runtime_fraction.default_value.denominator",
        ),
    ],
)
def test_conditions_that_cannot_be_evaluated_are_refused(match: Json, field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        matched(match)
    assert caught.value.field == f"virtual_hosts[0].routes[0].match.{field}"


def test_a_route_without_match_is_refused() -> None:
    with pytest.raises(InvalidResource, match=r"routes\[0\]\.match: is needed"):
        one({"route": {"cluster": "c"}})


def test_further_conditions() -> None:
    assert matched({"connect_matcher": {}}).path.kind is PathKind.CONNECT
    tls = {"tls_context": {"presented": True, "validated": False}}
    found = matched({**PREFIX, **tls})
    assert (found.presented, found.validated) == (True, False)
    state = {"key": "k", "string_match": {"exact": "v"}}
    assert matched({**PREFIX, "filter_state": [state]}).impossible
    value = {"string_match": {"exact": "v"}}
    metadata = {"filter": "f", "path": [{"key": "a"}], "value": value, "invert": True}
    (condition,) = matched({**PREFIX, "dynamic_metadata": [metadata]}).metadata
    string = StringMatch(StringKind.EXACT, "v")
    assert condition == MetadataMatch("f", ("a",), ValueMatch(ValueKind.STRING, string), True)


# --- forward ---------------------------------------------------------------------------------


def test_one_cluster() -> None:
    action = forward({})
    assert action.clusters == (WeightedCluster("c", 1),)
    assert action == ForwardAction((WeightedCluster("c", 1),), timeout=15.0)


@pytest.mark.parametrize(
    ("action", "timeout", "max_grpc"),
    [
        ({}, 15.0, None),
        ({"timeout": "0s"}, None, None),
        ({"timeout": "2.5s"}, 2.5, None),
        ({"timeout": "0s", "max_grpc_timeout": "3s"}, None, 3.0),
        ({"timeout": "0s", "max_grpc_timeout": "0s"}, None, None),
        ({"max_stream_duration": {"grpc_timeout_header_max": "1s"}}, 15.0, 1.0),
        ({"max_stream_duration": {"grpc_timeout_header_max": "0s"}}, 15.0, None),
        ({"timeout": "0s", "max_stream_duration": {"max_stream_duration": "4s"}}, 4.0, None),
        ({"timeout": "2s", "max_stream_duration": {"max_stream_duration": "4s"}}, 2.0, None),
        ({"timeout": "2s", "max_stream_duration": {"max_stream_duration": "0s"}}, 2.0, None),
    ],
)
def test_timeouts(action: Json, timeout: float | None, max_grpc: float | None) -> None:
    found = forward(action)
    assert (found.timeout, found.max_grpc_timeout) == (timeout, max_grpc)


def test_rewrites() -> None:
    found = forward({"prefix_rewrite": "/v2/", "host_rewrite_literal": "other"})
    assert (found.prefix_rewrite, found.host_rewrite) == ("/v2/", "other")
    rewrite = {"pattern": {"regex": "/(a)"}, "substitution": r"/\1\\x"}
    assert forward({"regex_rewrite": rewrite}).regex_rewrite == RegexRewrite("/(a)", r"/\1\\x")


def weighted(*clusters: Json, **fields: Any) -> Any:
    action = {"weighted_clusters": {"clusters": list(clusters), **fields}}
    return one({"match": PREFIX, "route": action}).action


def test_weighted_clusters() -> None:
    found = weighted(
        {"name": "a", "weight": 90},
        {"name": "zero", "weight": 0},
        {
            "name": "b",
            "weight": 10,
            "host_rewrite_literal": "b.example",
            "request_headers_to_remove": ["X-A"],
            "typed_per_filter_config": {"f": {"@type": FAULT, "abort": {"http_status": 500}}},
        },
    )
    a, b = found.clusters
    assert a == WeightedCluster("a", 90)
    assert (b.cluster, b.weight, b.host_rewrite) == ("b", 10, "b.example")
    assert b.mutations.request_remove == ("x-a",)
    assert b.fault == Fault(abort=FaultAbort(Fraction(0), http_status=500))


def test_retry_policy_of_the_route_stands_before_that_of_the_host() -> None:
    policy = {
        "retry_on": "5xx, reset,",
        "num_retries": 3,
        "per_try_timeout": "1s",
        "retriable_status_codes": [503],
        "retry_back_off": {"base_interval": "0.1s"},
    }
    full = RetryPolicy(("5xx", "reset"), 3, 1.0, (503,), 0.1, 1.0)
    route = {"match": PREFIX, "route": {"cluster": "c"}}
    inherited = one(route, retry_policy=policy).action
    assert isinstance(inherited, ForwardAction)
    assert inherited.retry == full
    own = {"match": PREFIX, "route": {"cluster": "c", "retry_policy": {"num_retries": 0}}}
    overridden = one(own, retry_policy=policy).action
    assert isinstance(overridden, ForwardAction)
    assert overridden.retry == RetryPolicy((), 0)
    back_off = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "0.2s"}}
    limited = forward({"retry_policy": back_off}).retry
    assert limited is not None
    assert limited.max_interval == 0.2


@pytest.mark.parametrize(
    ("action", "field"),
    [
        ({"cluster": ""}, "cluster"),
        ({"timeout": "-1s"}, "timeout"),
        (
            {"max_stream_duration": {"max_stream_duration": "-1s"}},
            "max_stream_duration.max_stream_duration",
        ),
        ({"prefix_rewrite": "/", "regex_rewrite": {"pattern": {"regex": "a"}}}, "regex_rewrite"),
        ({"path_rewrite": "%NOTHING%"}, "path_rewrite"),
        ({"path_rewrite_policy": {"name": "x"}}, "path_rewrite_policy.typed_config"),
        ({"inline_cluster_specifier_plugin": {}}, "inline_cluster_specifier_plugin.extension"),
        ({"cluster_header": "a\r"}, "cluster_header"),
        ({"request_mirror_policies": [{}]}, "request_mirror_policies[0]"),
        ({"hash_policy": [{}]}, "hash_policy[0].policy_specifier"),
        ({"hash_policy": [{"cookie": {}}]}, "hash_policy[0].cookie.name"),
        ({"prefix_rewrite": "/\r\n"}, "prefix_rewrite"),
        ({"host_rewrite_literal": "a\n"}, "host_rewrite_literal"),
        ({"regex_rewrite": {"pattern": {"regex": "("}}}, "regex_rewrite.pattern.regex"),
        (
            {"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": r"\1"}},
            "regex_rewrite.substitution",
        ),
        (
            {"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "x\\"}},
            "regex_rewrite.substitution",
        ),
        (
            {"retry_policy": {"retry_back_off": {"base_interval": "0s"}}},
            "retry_policy.retry_back_off.base_interval",
        ),
        (
            {"retry_policy": {"retry_back_off": {"base_interval": "1s", "max_interval": "0.5s"}}},
            "retry_policy.retry_back_off.max_interval",
        ),
        ({"weighted_clusters": {"clusters": []}}, "weighted_clusters.clusters"),
        (
            {"weighted_clusters": {"clusters": [{"weight": 1}]}},
            "weighted_clusters.clusters[0].name",
        ),
        (
            {"weighted_clusters": {"clusters": [{"name": "a"}]}},
            "weighted_clusters.clusters[0].weight",
        ),
        (
            {"weighted_clusters": {"clusters": [{"name": "a", "cluster_header": "b"}]}},
            "weighted_clusters.clusters[0].cluster_header",
        ),
        ({"cluster_specifier_plugin": "nobody"}, "cluster_specifier_plugin"),
    ],
)
def test_bad_actions_are_refused(action: Json, field: str) -> None:
    named = action.keys() & {
        "cluster",
        "cluster_header",
        "cluster_specifier_plugin",
        "inline_cluster_specifier_plugin",
        "weighted_clusters",
    }
    with pytest.raises(InvalidResource) as caught:
        one({"match": PREFIX, "route": action if named else {"cluster": "c", **action}})
    assert caught.value.field == f"virtual_hosts[0].routes[0].route.{field}"


@pytest.mark.parametrize(
    ("route", "named"),
    [
        ({"filter_action": {}}, "filter_action"),
        (
            {
                "direct_response": {
                    "status": 200,
                    "body_format": {"text_format_source": {"filename": "/x"}},
                }
            },
            "body_format",
        ),
        ({"direct_response": {"status": 200, "body": {"filename": "/x"}}}, "filename"),
    ],
)
def test_actions_beyond_this_sdk_fail_the_calls_that_match(route: Json, named: str) -> None:
    action = one({"match": PREFIX, **route}).action
    assert isinstance(action, UnsupportedAction)
    assert named in action.problem


def test_plugins_that_are_optional_drop_their_routes_others_fail_them() -> None:
    def config(optional: bool) -> Json:
        route = {"match": PREFIX, "route": {"cluster_specifier_plugin": "p"}}
        plugin = {"extension": {"name": "p", "typed_config": FAULT_ANY}, "is_optional": optional}
        return {**host(route), "cluster_specifier_plugins": [plugin]}

    assert decode(config(True)).virtual_hosts[0].routes == ()
    (route,) = decode(config(False)).virtual_hosts[0].routes
    assert isinstance(route.action, UnsupportedAction)


def test_what_is_left_out_is_noted_with_its_path() -> None:
    notes: list[str] = []
    action = {
        "cluster": "c",
        "rate_limits": [{"actions": [{"remote_address": {}}]}],
        "internal_redirect_policy": {},
    }
    assert isinstance(one({"match": PREFIX, "route": action}, notes).action, ForwardAction)
    assert notes == [
        "RouteConfiguration r: virtual_hosts[0].routes[0].route.rate_limits: "
        "is not supported, calls go without it",
        "RouteConfiguration r: virtual_hosts[0].routes[0].route.internal_redirect_policy: "
        "is not supported, redirects go to the caller",
    ]


# --- answers ---------------------------------------------------------------------------------


def test_redirects() -> None:
    def redirect(**fields: Any) -> Any:
        return one({"match": PREFIX, "redirect": fields}).action

    assert redirect() == RedirectAction()
    assert redirect(
        https_redirect=True, host_redirect="h", port_redirect=8443, path_redirect="/p"
    ) == RedirectAction(https=True, host="h", port=8443, path="/p")
    assert redirect(scheme_redirect="ftp", prefix_rewrite="", response_code="SEE_OTHER") == (
        RedirectAction(status=303, scheme="ftp")
    )
    rewrite = {"pattern": {"regex": "a"}, "substitution": "b"}
    assert redirect(
        regex_rewrite=rewrite, strip_query=True, response_code="PERMANENT_REDIRECT"
    ) == RedirectAction(status=308, regex_rewrite=RegexRewrite("a", "b"), strip_query=True)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_code": 9}, "response_code"),
        ({"port_redirect": 70000}, "port_redirect"),
        ({"host_redirect": "a\r\nb"}, "host_redirect"),
        ({"regex_rewrite": {}}, "regex_rewrite.pattern"),
    ],
)
def test_bad_redirects_are_refused(fields: Json, field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        one({"match": PREFIX, "redirect": fields})
    assert caught.value.field == f"virtual_hosts[0].routes[0].redirect.{field}"


def test_direct_responses() -> None:
    def direct(**fields: Any) -> Any:
        return one({"match": PREFIX, "direct_response": fields}).action

    assert direct(status=204) == DirectResponseAction(204)
    assert direct(status=200, body={"inline_string": "é"}) == (
        DirectResponseAction(200, "é".encode())
    )
    assert direct(status=200, body={"inline_bytes": "AAE="}) == DirectResponseAction(200, b"\0\1")
    with pytest.raises(InvalidResource, match=r"direct_response\.status"):
        direct(status=99)
    with pytest.raises(InvalidResource, match="4097 bytes, at most 4096"):
        direct(status=200, body={"inline_string": "x" * 4097})


def test_the_limit_of_direct_responses_may_be_set() -> None:
    route = {"match": PREFIX, "direct_response": {"status": 200, "body": {"inline_string": "xx"}}}
    with pytest.raises(InvalidResource, match="at most 1"):
        decode({**host(route), "max_direct_response_body_size_bytes": 1})


def test_an_action_is_needed() -> None:
    with pytest.raises(InvalidResource, match=r"routes\[0\]\.action"):
        one({"match": PREFIX})


# --- header changes and faults ---------------------------------------------------------------


def test_header_changes_on_all_levels() -> None:
    def level(name: str) -> Json:
        return {
            "request_headers_to_add": [{"header": {"key": f"X-{name}", "value": "v"}}],
            "response_headers_to_remove": [f"r-{name}"],
        }

    route = {"match": PREFIX, "route": {"cluster": "c"}, **level("route")}
    config = decode(
        {
            **host(route, **level("host")),
            **level("config"),
            "most_specific_header_mutations_wins": True,
        }
    )
    found = config.virtual_hosts[0]
    levels = [config.mutations, found.mutations, found.routes[0].mutations]
    assert [m.request_set[0].name for m in levels] == ["x-config", "x-host", "x-route"]
    assert [m.response_remove for m in levels] == [
        ("r-config",),
        ("r-host",),
        ("r-route",),
    ]
    assert config.most_specific_mutations_win


def options(notes: list[str], *items: Json) -> tuple[HeaderOption, ...]:
    route = {"match": PREFIX, "route": {"cluster": "c"}, "response_headers_to_add": list(items)}
    return one(route, notes).mutations.response_set


def test_header_options() -> None:
    def header(value: str) -> Json:
        return {"key": "X-A", "value": value}

    notes: list[str] = []
    found = options(
        notes,
        {"header": header("1")},
        {"header": header("2"), "append_action": "ADD_IF_ABSENT"},
        {"header": header("3"), "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
        {"header": header("4"), "append_action": "OVERWRITE_IF_EXISTS"},
        {"header": header("5"), "append": False},
        {"header": header("6"), "append": True},
        {"header": {"key": "x-a", "raw_value": "/w=="}, "keep_empty_value": True},
        {"header": header("50%% %REQ(a?b)% %PROTOCOL%")},
    )
    assert [option.action for option in found[:6]] == [
        AppendAction.APPEND_OR_ADD,
        AppendAction.ADD_IF_ABSENT,
        AppendAction.OVERWRITE_OR_ADD,
        AppendAction.OVERWRITE,
        AppendAction.OVERWRITE_OR_ADD,
        AppendAction.APPEND_OR_ADD,
    ]
    assert found[6] == HeaderOption("x-a", "\xff", keep_empty=True)
    assert found[7].value == "50%% %REQ(a?b)% %PROTOCOL%"
    assert notes == []


@pytest.mark.parametrize("value", ["%DOWNSTREAM_TLS_CIPHER%", "%CEL(request.path)%"])
def test_command_operators_that_are_not_computed_are_noted(value: str) -> None:
    notes: list[str] = []
    options(notes, {"header": {"key": "x", "value": value}})
    (note,) = notes
    assert "routes[0].response_headers_to_add[0].header.value" in note


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (
            {"request_headers_to_add": [{"header": {"key": ":path"}}]},
            "request_headers_to_add[0].header.key",
        ),
        (
            {"request_headers_to_add": [{"header": {"key": "Host"}}]},
            "request_headers_to_add[0].header.key",
        ),
        (
            {"request_headers_to_add": [{"header": {"key": "a b"}}]},
            "request_headers_to_add[0].header.key",
        ),
        ({"request_headers_to_remove": [""]}, "request_headers_to_remove"),
        (
            {"response_headers_to_add": [{"header": {"key": "a", "value": "%BOGUS%"}}]},
            "response_headers_to_add[0].header.value",
        ),
        (
            {"response_headers_to_add": [{"header": {"key": "a", "value": "b\r\nc: d"}}]},
            "response_headers_to_add[0].header.value",
        ),
        (
            {"response_headers_to_add": [{"header": {"key": "a", "value": "100%"}}]},
            "response_headers_to_add[0].header.value",
        ),
        (
            {"response_headers_to_add": [{"header": {"key": "a"}, "append_action": 9}]},
            "response_headers_to_add[0].append_action",
        ),
    ],
)
def test_bad_header_changes_are_refused(fields: Json, field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        one({"match": PREFIX, "route": {"cluster": "c"}, **fields})
    assert caught.value.field == f"virtual_hosts[0].routes[0].{field}"


def fault_config(**fields: Any) -> Json:
    return {"envoy.filters.http.fault": {"@type": FAULT, **fields}}


def fault_of(config: Json, notes: list[str] | None = None) -> Fault | None:
    route = {"match": PREFIX, "route": {"cluster": "c"}, "typed_per_filter_config": config}
    return one(route, notes).fault


def test_faults() -> None:
    percentage = {"numerator": 7, "denominator": "MILLION"}
    found = fault_of(
        fault_config(
            delay={"fixed_delay": "7s", "percentage": percentage},
            abort={"grpc_status": 14, "percentage": {"numerator": 100}},
            headers=[{"name": "end-user", "string_match": {"exact": "jason"}}],
            upstream_cluster="up",
        )
    )
    assert found == Fault(
        FaultDelay(7.0, Fraction(7, 1_000_000)),
        FaultAbort(Fraction(100), grpc_status=14),
        (HeaderMatch("end-user", StringMatch(StringKind.EXACT, "jason")),),
        "up",
    )
    by_header = fault_of(fault_config(delay={"header_delay": {}}, abort={"header_abort": {}}))
    assert by_header == Fault(FaultDelay(None, Fraction(0)), FaultAbort(Fraction(0)))


def test_faults_of_host_and_configuration() -> None:
    route = {"match": PREFIX, "route": {"cluster": "c"}}
    five, six = fault_config(abort={"http_status": 505}), fault_config(abort={"http_status": 506})
    config = decode({**host(route), "typed_per_filter_config": five})
    assert config.virtual_hosts[0].fault == Fault(abort=FaultAbort(Fraction(0), 505))
    config = decode({**host(route, typed_per_filter_config=six), "typed_per_filter_config": five})
    assert config.virtual_hosts[0].fault == Fault(abort=FaultAbort(Fraction(0), 506))


def wrapper(**fields: Any) -> Json:
    kind = "type.googleapis.com/envoy.config.route.v3.FilterConfig"
    return {"f": {"@type": kind, **fields}}


def test_filter_config_wrapper() -> None:
    inner = fault_config(abort={"http_status": 500})["envoy.filters.http.fault"]
    assert fault_of(wrapper(config=inner)) == Fault(abort=FaultAbort(Fraction(0), 500))
    assert fault_of(wrapper(disabled=True)) == Fault()
    other = {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}}
    assert fault_of(wrapper(config=other, is_optional=True)) is None
    with pytest.raises(InvalidResource, match=r'typed_per_filter_config\["f"\].*Struct'):
        fault_of(wrapper(config=other))
    with pytest.raises(InvalidResource, match="without a name"):
        fault_of(wrapper())


def test_the_wrapper_may_be_garbage() -> None:
    message = json_format.ParseDict(
        host({"match": PREFIX, "route": {"cluster": "c"}}), route_pb2.RouteConfiguration()
    )
    config = message.virtual_hosts[0].typed_per_filter_config["f"]
    config.CopyFrom(any_pb2.Any(type_url=FAULT, value=b"\xff"))
    with pytest.raises(InvalidResource, match=r"not a envoy\.extensions\.filters"):
        DECODERS[ROUTE].decode(message, [])


def test_parts_of_a_fault_that_are_left_out_are_noted() -> None:
    notes: list[str] = []
    fault = fault_of(
        fault_config(max_active_faults=1, downstream_nodes=["n"], response_rate_limit={
            "fixed_limit": {"limit_kbps": 1}}),
        notes,
    )  # fmt: skip
    assert fault == Fault(downstream_nodes=("n",), max_active=1)
    assert len(notes) == 2
    assert all("typed_per_filter_config" in note for note in notes)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"delay": {}}, "delay"),
        ({"delay": {"fixed_delay": "0s"}}, "delay.fixed_delay"),
        ({"delay": {"fixed_delay": "-1s"}}, "delay.fixed_delay"),
        ({"abort": {}}, "abort"),
        ({"abort": {"http_status": 199}}, "abort.http_status"),
        ({"headers": [{}]}, "headers[0].name"),
    ],
)
def test_bad_faults_are_refused(fields: Json, field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        fault_of(fault_config(**fields))
    path = 'virtual_hosts[0].routes[0].typed_per_filter_config["envoy.filters.http.fault"]'
    assert caught.value.field == f"{path}.{field}"


# --- robustness ------------------------------------------------------------------------------


def _full() -> bytes:
    config = {
        **host(
            {
                "match": {**PREFIX, "headers": [{"name": "x", "string_match": {"exact": "y"}}]},
                "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1}]}},
                "typed_per_filter_config": fault_config(abort={"http_status": 500}),
                "request_headers_to_add": [{"header": {"key": "a", "value": "b"}}],
            }
        )
    }
    made = json_format.ParseDict(config, route_pb2.RouteConfiguration(name="r"))
    return made.SerializeToString()


@given(data=st.data())
def test_damaged_bytes_give_a_value_or_a_typed_error(data: st.DataObject) -> None:
    raw = bytearray(_full())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decoder = DECODERS[ROUTE]
    with contextlib.suppress(InvalidResource, DecodeError):
        decoder.decode(decoder.parse(bytes(raw)), [])


def test_protos_are_those_of_the_decoder() -> None:
    # The names of oneofs and fields are used as text; a renamed one would go unnoticed.
    fields = route_components_pb2.RouteAction.DESCRIPTOR.fields_by_name
    assert {"metadata_match", "path_rewrite_policy", "host_rewrite_header"} <= set(fields)
    assert (
        "fault_delay_secifier"
        in fault_pb2.HTTPFault.DESCRIPTOR.fields_by_name["delay"].message_type.oneofs_by_name
    )
