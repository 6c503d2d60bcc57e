"""Decisions in which we once differed from Envoy: (configuration, virtual host, request)."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
Request = tuple[str, str, list[tuple[str, str]]]

_TYPES = "type.googleapis.com/envoy.extensions"
_ALWAYS = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
_MIRROR = {"cluster": "shadow", "runtime_fraction": _ALWAYS}
_CORS = "envoy.filters.http.cors"
_FAULT = "envoy.filters.http.fault"
_NO_PARAMETERS = {"ignore_path_parameters_in_path_matching": True}
_PREFLIGHT = [("origin", "http://a"), ("access-control-request-method", "PUT")]


def _to(cluster: str = "alpha", *, match: Json | None = None, **action: Any) -> Json:
    where = {} if "weighted_clusters" in action else {"cluster": cluster}
    return {"match": match or {"prefix": "/"}, "route": where | action}


def _host(*routes: Json, **more: Any) -> Json:
    return {"routes": list(routes), **more}


def _says(body: str, **match: Any) -> Json:
    return {"match": match, "direct_response": {"status": 200, "body": {"inline_string": body}}}


def _header(name: str, **fields: Any) -> Json:
    return {"name": name, **fields}


def _put(name: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Json:
    return {"header": {"key": name, "value": value}, "append_action": action}


def _regex(pattern: str, substitution: str) -> Json:
    return {"pattern": {"regex": pattern}, "substitution": substitution}


def _template(kind: str, **fields: str) -> Json:
    message = f"{_TYPES}.path.{kind}.uri_template.v3.UriTemplate{kind.title()}Config"
    return {"name": kind, "typed_config": {"@type": message, **fields}}


def _cors(**fields: Any) -> Json:
    return {_CORS: {"@type": f"{_TYPES}.filters.http.cors.v3.CorsPolicy", **fields}}


def _fault(**fields: Any) -> Json:
    return {_FAULT: {"@type": f"{_TYPES}.filters.http.fault.v3.HTTPFault", **fields}}


def _matched(template: str) -> Json:
    return {"path_match_policy": _template("match", path_template=template)}


FIXED: dict[str, tuple[Json, Json, Request]] = {
    # --- paths ---
    "a regex that leaves no path changes nothing": (
        {},
        _host(_to(regex_rewrite=_regex("^.*$", ""))),
        ("GET", "/a/b?q", []),
    ),
    "a substitution with the whole match": (
        {},
        _host(_to(regex_rewrite=_regex("[a-z]+", "<\\0>"))),
        ("GET", "/ab/c?q", []),
    ),
    "a substitution with a group that took no part": (
        {},
        _host(_to(regex_rewrite=_regex("/(a)|/(b)", "/x\\2\\1"))),
        ("GET", "/a/b", []),
    ),
    "a template whose variable is empty": (
        {},
        _host(
            _to(
                match=_matched("/{x=**}"),
                path_rewrite_policy=_template("rewrite", path_template_rewrite="/{x}/t"),
            )
        ),
        ("GET", "/", []),
    ),
    "a prefix that leaves two slashes": (
        {},
        _host(_to(match={"path_separated_prefix": "/a"}, prefix_rewrite="/")),
        ("GET", "/a/b?q", []),
    ),
    "a template does not ignore path parameters": (
        _NO_PARAMETERS,
        _host(
            _to(
                match=_matched("/a/{x}"),
                path_rewrite_policy=_template("rewrite", path_template_rewrite="/{x}"),
            ),
            _to("beta"),
        ),
        ("GET", "/a/b;v", []),
    ),
    "path parameters end at the next slash": (
        _NO_PARAMETERS,
        _host(_says("first", path="/a/b"), _says("second", path="/a/b/c"), _to("beta")),
        ("GET", "/a/b;v/c;w?q", []),
    ),
    "path parameters inside of a prefix prevent its rewriting": (
        _NO_PARAMETERS,
        _host(_to(match={"prefix": "/a/b"}, prefix_rewrite="/new")),
        ("GET", "/a;v/b/c?q", []),
    ),
    "path parameters stay behind a rewritten path": (
        _NO_PARAMETERS,
        _host(_to(match={"path": "/a"}, prefix_rewrite="/new")),
        ("GET", "/a;v?q", []),
    ),
    "path parameters stay in a redirect": (
        _NO_PARAMETERS,
        _host({"match": {"path": "/a"}, "redirect": {"prefix_rewrite": "/new"}}),
        ("GET", "/a;v?q", []),
    ),
    # --- hosts ---
    "the host of an endpoint leaves the former one in x-forwarded-host, but not in copies": (
        {},
        _host(
            _to(
                auto_host_rewrite=True,
                append_x_forwarded_host=True,
                request_mirror_policies=[_MIRROR],
            )
        ),
        ("GET", "/", []),
    ),
    "operators of the response see the host of the endpoint": (
        {},
        _host(
            _to(auto_host_rewrite=True),
            response_headers_to_add=[_put("x-add", "%REQ(:authority)%")],
        ),
        ("GET", "/", []),
    ),
    "a copy to a host with a colon that is no port": (
        {},
        _host(_to(host_rewrite_literal="a:80.b", request_mirror_policies=[_MIRROR])),
        ("GET", "/", []),
    ),
    "a copy to an IPv6 address": (
        {},
        _host(_to(host_rewrite_literal="[::1]", request_mirror_policies=[_MIRROR])),
        ("GET", "/", []),
    ),
    "the headers behind a weighted cluster see its host, its own do not": (
        {},
        _host(
            _to(
                weighted_clusters={
                    "clusters": [
                        {
                            "name": "alpha",
                            "weight": 1,
                            "host_rewrite_literal": "weighted.example",
                            "request_headers_to_add": [_put("x-add", "%REQ(:authority)%")],
                        }
                    ]
                },
                host_rewrite="%REQ(x-m)%.example",
            )
            | {"request_headers_to_add": [_put("x-m", "%REQ(:authority)%")]},
            request_headers_to_add=[_put("x-extra", "%REQ(:authority)%")],
        ),
        ("GET", "/", []),
    ),
    # --- what operators say ---
    "no virtual cluster has no name": (
        {},
        _host(_to(), response_headers_to_add=[_put("x-m", "a%VIRTUAL_CLUSTER_NAME%b")]),
        ("GET", "/", []),
    ),
    "an answer of the mesh counts for no virtual cluster": (
        {},
        _host(
            _says("x", prefix="/"),
            virtual_clusters=[{"name": "vc", "headers": [{"name": "x-none", "invert_match": True,
                                                         "present_match": True}]}],
            response_headers_to_add=[_put("x-m", "a%VIRTUAL_CLUSTER_NAME%b")],
        ),
        ("GET", "/", []),
    ),
    "a cluster that does not exist has no name": (
        {},
        _host(_to("gone"), response_headers_to_add=[_put("x-m", "a%UPSTREAM_CLUSTER%b")]),
        ("GET", "/", []),
    ),
    "the status is not known while a body is made": (
        {},
        _host(
            {
                "match": {"prefix": "/"},
                "direct_response": {
                    "status": 202,
                    "body": {"inline_string": "x"},
                    "body_format": {
                        "text_format": "%RESPONSE_CODE% %LOCAL_REPLY_BODY% %REQ(none)%"
                    },
                },
            }
        ),
        ("GET", "/", []),
    ),
    "a body without text": (
        {},
        _host(
            {
                "match": {"prefix": "/"},
                "direct_response": {
                    "status": 202,
                    "body_format": {"text_format": "<%LOCAL_REPLY_BODY%>"},
                },
            }
        ),
        ("GET", "/", []),
    ),
    # --- TLS, faults, CORS ---
    "TLS is needed from outside only": (
        {},
        _host(_to(), require_tls="EXTERNAL_ONLY"),
        ("GET", "/a?q", []),
    ),
    "a cluster that does not exist is answered with the route's headers and CORS": (
        {},
        _host(
            _to("gone", cluster_not_found_response_code="NOT_FOUND"),
            response_headers_to_add=[_put("x-add", "%ROUTE_NAME%x")],
            typed_per_filter_config=_cors(allow_origin_string_match=[{"exact": "*"}]),
        ),
        ("GET", "/", [("origin", "http://a")]),
    ),
    "an abort in front of the CORS filter has its headers not": (
        {},
        _host(
            _to(),
            response_headers_to_add=[_put("x-add", "x")],
            typed_per_filter_config={
                **_cors(allow_origin_string_match=[{"exact": "*"}]),
                **_fault(abort={"http_status": 503, "percentage": {"numerator": 100}}),
            },
        ),
        ("GET", "/", [("origin", "http://a")]),
    ),
    "a preflight is told of exposed headers": (
        {},
        _host(
            _to(),
            typed_per_filter_config=_cors(
                allow_origin_string_match=[{"exact": "*"}],
                expose_headers="x-echo",
                allow_methods="PUT",
                max_age="60",
            ),
        ),
        ("OPTIONS", "/", _PREFLIGHT),
    ),
    "a preflight that asks for no headers where all are allowed": (
        {},
        _host(
            _to(),
            typed_per_filter_config=_cors(
                allow_origin_string_match=[{"exact": "*"}], allow_headers="*"
            ),
        ),
        ("OPTIONS", "/", _PREFLIGHT),
    ),
}  # fmt: skip


def _hashed(*names: str) -> list[Json]:
    return [{"header": {"header_name": name}} for name in names]


# Edges that drawn requests seldom stand on; asked in every run beside what is drawn.
EDGES: dict[str, tuple[Json, Json, Request]] = {
    "the end of a range": (
        {},
        _host(
            _says("in", prefix="/", headers=[_header("x-n", range_match={"start": 1, "end": 5})]),
            _says("out", prefix="/"),
        ),
        ("GET", "/", [("x-n", "5")]),
    ),
    "an exact string without its case": (
        {},
        _host(
            _says(
                "in",
                prefix="/",
                headers=[_header("x-m", string_match={"exact": "aB", "ignore_case": True})],
            ),
            _says("out", prefix="/"),
        ),
        ("GET", "/", [("x-m", "Ab")]),
    ),
    "a path without its case": (
        {},
        _host(_says("in", prefix="/aB", case_sensitive=False), _says("out", prefix="/")),
        ("GET", "/Ab/c", []),
    ),
    "a prefix that ends within a segment": (
        {},
        _host(_says("in", prefix="/ab"), _says("out", prefix="/")),
        ("GET", "/abc", []),
    ),
    "a header that is not the one": (
        {},
        _host(
            _says(
                "in",
                prefix="/",
                headers=[_header("x-m", string_match={"exact": "a"}, invert_match=True)],
            ),
            _says("out", prefix="/"),
        ),
        ("GET", "/", [("x-m", "b")]),
    ),
    "an absent header that is empty": (
        {},
        _host(
            _says(
                "in",
                prefix="/",
                headers=[
                    _header(
                        "x-m",
                        string_match={"exact": "a"},
                        invert_match=True,
                        treat_missing_header_as_empty=True,
                    )
                ],
            ),
            _says("out", prefix="/"),
        ),
        ("GET", "/", []),
    ),
    "the second parameter of a name": (
        {},
        _host(
            _says(
                "in",
                prefix="/",
                query_parameters=[{"name": "q", "string_match": {"exact": "b"}}],
            ),
            _says("out", prefix="/"),
        ),
        ("GET", "/?q=a&q=b", []),
    ),
    "a cookie that is not the one": (
        {},
        _host(
            _says(
                "in",
                prefix="/",
                cookies=[{"name": "c", "string_match": {"exact": "a"}, "invert_match": True}],
            ),
            _says("out", prefix="/"),
        ),
        ("GET", "/", [("cookie", "c=b")]),
    ),
    **{
        f"a key of two headers, {value}": (
            {},
            _host(_to("ring", hash_policy=_hashed("x-m", "x-n"))),
            ("GET", "/", [("x-m", value), ("x-n", "7")]),
        )
        for value in ("one", "two", "three", "four", "five", "six", "seven", "eight")
    },
}
