"""What routes say beside match and action, and what they get from their virtual host."""

from __future__ import annotations

from envoy.extensions.filters.http.cors.v3 import cors_pb2

from meshsdk.formats import Format
from meshsdk.matching import CookieMatch, StringKind, StringMatch
from meshsdk.model import (
    CorsPolicy,
    ForwardAction,
    HashKind,
    HashPolicy,
    HedgePolicy,
    MirrorPolicy,
    RedirectAction,
)
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.document import message_of
from meshsdk.xds.resources import ROUTE
from tests.unit.test_decode_rds import PREFIX, decode, forward, host

CORS = f"type.googleapis.com/{cors_pb2.CorsPolicy.DESCRIPTOR.full_name}"


def test_what_a_route_forwards_by() -> None:
    notes: list[str] = []
    header = {"header": {"header_name": "X-User"}, "terminal": True}
    cookie = {
        "cookie": {"name": "c", "ttl": "60s", "path": "/", "attributes": [{"name": "Secure"}]}
    }
    found = forward(
        {
            "auto_host_rewrite": True,
            "append_x_forwarded_host": True,
            "cluster_not_found_response_code": "NOT_FOUND",
            "request_mirror_policies": [
                {"cluster": "m", "disable_shadow_host_suffix_append": True}
            ],
            "hash_policy": [header, cookie, {"connection_properties": {}}],
            "metadata_match": {"filter_metadata": {"envoy.lb": {"version": "v1"}}},
            "priority": "HIGH",
        },
        notes,
    )
    assert (found.host_of_endpoint, found.forwarded_host, found.not_found_status) == (
        True,
        True,
        404,
    )
    assert found.mirrors == (MirrorPolicy("m", suffix=False),)
    assert found.hash_policy == (
        HashPolicy(HashKind.HEADER, "x-user", terminal=True),
        HashPolicy(HashKind.COOKIE, "c", False, None, 60, "/", (("Secure", ""),)),
    )
    assert found.subset == {"version": "v1"}
    assert found.high_priority
    assert notes == []


def test_policies_come_from_the_virtual_host_where_the_route_has_none() -> None:
    mirrors = {"request_mirror_policies": [{"cluster": "m"}]}
    hedge = {"hedge_policy": {"initial_requests": 3}}
    own = {"match": PREFIX, "route": {"cluster": "c", "hedge_policy": {}}}
    config = host({"match": PREFIX, "route": {"cluster": "c"}}, own, **mirrors, **hedge)
    first, second = (route.action for route in decode(config).virtual_hosts[0].routes)
    assert isinstance(first, ForwardAction)
    assert isinstance(second, ForwardAction)
    assert first.mirrors == second.mirrors == (MirrorPolicy("m"),)
    assert (first.hedge, second.hedge) == (HedgePolicy(3), HedgePolicy())
    assert decode(config).cluster_names == {"c", "m"}


def test_cors_of_the_filter_stands_before_that_of_fields() -> None:
    origin = {"allow_origin_string_match": [{"exact": "https://a"}]}
    plain = {"match": PREFIX, "route": {"cluster": "c", "cors": origin}}
    policy = {"@type": CORS, "max_age": "60"}
    typed = {"typed_per_filter_config": {"envoy.filters.http.cors": policy}}
    off = {"typed_per_filter_config": {"envoy.filters.http.cors": {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
        "disabled": True, "config": {"@type": CORS}}}}  # fmt: skip
    allowed = CorsPolicy(allow_origins=(StringMatch(StringKind.EXACT, "https://a"),))
    routes = decode(host(plain, cors={"max_age": "5"})).virtual_hosts[0].routes
    assert routes[0].cors == (allowed, CorsPolicy(max_age="5"))
    routes = decode(host(plain, {**plain, **off}, **typed)).virtual_hosts[0].routes
    assert [route.cors for route in routes] == [(CorsPolicy(max_age="60"),), ()]


def test_newer_fields_are_read() -> None:
    cookie = {"name": "c", "string_match": {"exact": "v"}, "invert_match": True}
    config = {
        "name": "r",
        "virtual_hosts": [
            {
                "name": "v",
                "domains": ["*"],
                "routes": [
                    {
                        "match": {**PREFIX, "cookies": [cookie]},
                        "redirect": {"path_rewrite": "/%REQ(x)%"},
                    }
                ],
            }
        ],
    }
    message = message_of(config, "envoy.config.route.v3.RouteConfiguration")
    found = DECODERS[ROUTE].decode(DECODERS[ROUTE].parse(message.SerializeToString()), [])
    (route,) = found.virtual_hosts[0].routes
    assert route.match.cookies == (CookieMatch("c", StringMatch(StringKind.EXACT, "v"), True),)
    assert isinstance(route.action, RedirectAction)
    assert route.action.path_format == Format("/%REQ(x)%")
