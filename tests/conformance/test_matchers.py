"""Matchers and URI templates against Envoy's and grpc-go's own tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml

from meshsdk.errors import InvalidResource
from meshsdk.matching import (
    HeaderMatch,
    PathKind,
    PathMatch,
    StringKind,
    StringMatch,
    Template,
)
from meshsdk.matching.templates import (
    TemplateRewrite,
    valid_literal,
    valid_rewrite_literal,
    valid_variable_name,
)
from meshsdk.model import RouteConfiguration, VirtualHost
from meshsdk.routing import Request
from meshsdk.xds.decode.common import Bad, header_match, string_match
from meshsdk.xds.document import message_of
from tests.support.cases import Case, each_case

HEADER_MATCHER = "envoy.config.route.v3.HeaderMatcher"
STRING_MATCHER = "envoy.type.matcher.v3.StringMatcher"


def request(pairs: Sequence[Sequence[str]], path: str = "/") -> Request:
    headers = [(name.lower(), value) for name, value in pairs]
    pseudo = dict(headers)
    return Request(
        pseudo.get(":method", "GET"),
        pseudo.get(":path", path),
        authority=pseudo.get(":authority", "svc"),
        headers=[pair for pair in headers if not pair[0].startswith(":")],
    )


class Joined:
    """Headers whose values are asked as one, joined with commas: as gRPC and older Envoys."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values

    def values(self, name: str) -> list[str]:
        found = self._values.get(name)
        return [",".join(found)] if found else []


def joined(pairs: Sequence[Sequence[str]]) -> Joined:
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name.lower(), []).append(value)
    return Joined(values)


@each_case("envoy/matchers", "header_matcher")
def test_headers_as_envoy(case: Case) -> None:
    documents = map(yaml.safe_load, case["header_matchers_yaml"])
    matchers = [header_match(message_of(item, HEADER_MATCHER), []) for item in documents]
    headers: Any = request(case["headers"])
    if case.get("runtime"):
        headers = joined(case["headers"])
    assert all(matcher.matches(headers) for matcher in matchers) == case["want"]


def string_of(matcher: Mapping[str, Any]) -> StringMatch:
    document = dict(matcher)
    if isinstance(document.get("safe_regex"), str):
        document["safe_regex"] = {"regex": document["safe_regex"]}
    return string_match(message_of(document, STRING_MATCHER), [])


@each_case("envoy/matchers", "string_matcher")
def test_strings_as_envoy(case: Case) -> None:
    assert string_of(case["matcher"]).matches(case["input"]) == case["want"]


@each_case("envoy/matchers", "path_matcher")
def test_paths_as_envoy(case: Case) -> None:
    path = request([], case["path"]).path
    assert string_of(case["matcher"]).matches(path) == case["want"]


# --- URI templates ---------------------------------------------------------------------------


def is_valid(make: Any, text: str) -> bool:
    try:
        make(text)
    except ValueError:
        return False
    return True


@each_case("envoy/uri_template", "literal_validity")
def test_text_in_templates(case: Case) -> None:
    judge = {
        "isValidLiteral": valid_literal,
        "isValidRewriteLiteral": valid_rewrite_literal,
        "isValidVariableName": valid_variable_name,
    }[case["function"]]
    assert judge(case["input"]) == case["want"]


@each_case("envoy/uri_template", ["pattern_validity", "match_pattern_validity"])
def test_templates(case: Case) -> None:
    assert is_valid(Template, case["pattern"]) == (case["expect"] == "valid")


@each_case("envoy/uri_template", "variable_validity")
def test_variables(case: Case) -> None:
    assert is_valid(Template, f"/{case['variable']}") == (case["expect"] == "valid")


@each_case("envoy/uri_template", "rewrite_pattern_validity")
def test_rewrites(case: Case) -> None:
    assert is_valid(TemplateRewrite, case["rewrite_pattern"]) == (case["expect"] == "valid")


@each_case("envoy/uri_template", "match_and_rewrite")
def test_a_path_rewritten(case: Case) -> None:
    captures = Template(case["pattern"]).captures(case["path"])
    assert captures is not None
    assert TemplateRewrite(case["rewrite"]).apply(captures) == case["want"]


@each_case("envoy/uri_template", "shared_variables")
def test_a_rewrite_uses_variables_of_its_template(case: Case) -> None:
    known = set(Template(case["pattern"]).variables)
    assert (TemplateRewrite(case["rewrite"]).variables <= known) == case["want"]


# --- grpc-go ---------------------------------------------------------------------------------

_KINDS = {
    "exactMatch": StringKind.EXACT,
    "prefixMatch": StringKind.PREFIX,
    "suffixMatch": StringKind.SUFFIX,
    "containsMatch": StringKind.CONTAINS,
    "regexMatch": StringKind.REGEX,
}


HEADER_KINDS = ("exact", "prefix", "suffix", "present", "range", "regex", "string")


def of_grpc(matcher: Mapping[str, Any]) -> StringMatch:
    (kind,) = (name for name in _KINDS if matcher[name] is not None)
    return StringMatch(_KINDS[kind], matcher[kind], matcher["ignoreCase"])


@each_case(
    "envoy/grpc_go_matchers",
    [f"header_{kind}" for kind in HEADER_KINDS],
)
def test_headers_as_grpc(case: Case) -> None:
    if "sm" in case:
        matcher = HeaderMatch(case["key"], of_grpc(case["sm"]), invert=case["invert"])
    elif "present" in case:
        matcher = HeaderMatch(case["key"], present=case["present"], invert=case["invert"])
    elif "start" in case:
        span = (case["start"], case["end"])
        matcher = HeaderMatch(case["key"], range=span, invert=case["invert"])
    else:
        kinds = {"exact": "exactMatch", "prefix": "prefixMatch", "suffix": "suffixMatch",
                 "regexStr": "regexMatch"}  # fmt: skip
        (name,) = kinds.keys() & case.keys()
        string = StringMatch(_KINDS[kinds[name]], case[name])
        matcher = HeaderMatch(case["key"], string, invert=case["invert"])
    assert matcher.matches(Joined(case["md"] or {})) == case["want"]


@each_case("envoy/grpc_go_matchers", ["path_exact", "path_prefix", "path_regex"])
def test_paths_as_grpc(case: Case) -> None:
    kinds = {
        "fullPath": PathKind.EXACT,
        "prefix": PathKind.PREFIX,
        "regexPath": PathKind.REGEX,
    }
    (name,) = kinds.keys() & case.keys()
    match = PathMatch(kinds[name], case[name], case.get("caseInsensitive", False))
    assert match.matches(case["path"]) == case["want"]


@each_case("envoy/grpc_go_matchers", "string_match")
def test_strings_as_grpc(case: Case) -> None:
    assert of_grpc(case["matcher"]).matches(case["input"]) == case["want"]


@each_case("envoy/grpc_go_matchers", "string_matcher_from_proto")
def test_string_matchers_decoded_as_grpc(case: Case) -> None:
    document = (case["proto"] or {}).get("json", {})
    try:
        found = string_match(message_of(document, STRING_MATCHER), [])
    except Bad:
        assert case["expect"] == "nack"
        return
    assert case["expect"] == "accept"
    wanted = case.get("want_matcher") or case.get("grpc_go_parsed")
    if wanted:
        assert found == of_grpc(wanted)


def config_of(domain_lists: Sequence[Sequence[str]]) -> RouteConfiguration:
    hosts = [VirtualHost(str(i), tuple(domains), ()) for i, domains in enumerate(domain_lists)]
    return RouteConfiguration("r", tuple(hosts))


@each_case("envoy/grpc_go_matchers", "virtual_host_best_match")
def test_virtual_hosts_as_grpc(case: Case) -> None:
    found = config_of(case["virtual_host_domains"]).virtual_host(case["host"])
    domains = None if found is None else list(found.domains)
    assert domains == case["want_domains"]


@each_case("envoy/grpc_go_matchers", "domain_match")
def test_domains_as_grpc(case: Case) -> None:
    domain = case["domain"]
    found = config_of([[domain]]).virtual_host(case["host"]) is not None
    # A domain that is none is refused when it arrives; finding nothing by it is as good.
    well_formed = re.fullmatch(r"\*?[^*]+|[^*]+\*|\*", domain) is not None
    assert (found and well_formed) == case["want_matched"]


@each_case(
    "envoy/grpc_go_matchers",
    "xds_resource_names",
    awaits=lambda case: "federation of control planes (xdstp:// names)",
)
def test_resource_names_as_grpc(case: Case) -> None:
    pytest.fail("not built")


def test_bad_names_are_refused() -> None:
    with pytest.raises((Bad, InvalidResource)):
        header_match(message_of({"name": ""}, HEADER_MATCHER), [])
