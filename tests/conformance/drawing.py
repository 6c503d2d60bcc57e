"""Drawn route configurations and requests: every field that an Istio HTTPRoute becomes.

`configurations` draws a RouteConfiguration with several virtual hosts; the hosts' domains are put
in by the test, which knows how many there are. What is drawn is small on purpose: few words, so
that requests meet conditions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from tests.support.envoy import FAULT, typed

Json = dict[str, Any]

CLUSTERS = ("alpha", "beta")
HASHED = ("ring", "maglev")
MISSING = "gone"
CORS = "envoy.extensions.filters.http.cors.v3.CorsPolicy"
_TEMPLATE = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
_TEMPLATE_REWRITE = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig"

words = st.sampled_from(["a", "b", "Ab", "x1"])
paths = st.sampled_from(
    ["/", "/a", "/A", "/a/", "/a/b", "/ab", "/b/a", "/x1/y", "/a;p=1", "/a/b;v/c", "/x1"]
)
queries = st.sampled_from(["", "?q=a", "?q=b&r=1", "?r", "?q=a&q=b", "?q=A%20b", "?q"])


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """A mapping with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def merged(*parts: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.tuples(*parts).map(lambda found: {k: v for part in found for k, v in part.items()})


def flags(*names: str) -> dict[str, st.SearchStrategy[Any]]:
    return {name: st.booleans() for name in names}


# --- match -----------------------------------------------------------------------------------

regexes = st.sampled_from(["[ab].*", "x\\d", "A?b", ".*", "(?i)ab"])
string_match = st.one_of(
    *(
        st.fixed_dictionaries({kind: words}, optional=flags("ignore_case"))
        for kind in ("exact", "prefix", "suffix", "contains")
    ),
    regexes.map(lambda regex: {"safe_regex": {"regex": regex}}),
)
header_match = st.one_of(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["x-m", "X-M"]), "string_match": string_match},
        optional=flags("invert_match", "treat_missing_header_as_empty"),
    ),
    st.fixed_dictionaries(
        {"name": st.just("x-m"), "present_match": st.booleans()},
        optional=flags("invert_match", "treat_missing_header_as_empty"),
    ),
    st.fixed_dictionaries(
        {
            "name": st.just("x-n"),
            "range_match": st.sampled_from(
                [{"start": "1", "end": "5"}, {"start": "-5", "end": "3"}]
            ),
        },
        optional=flags("invert_match", "treat_missing_header_as_empty"),
    ),
    st.fixed_dictionaries(
        {"name": st.sampled_from([":method", ":authority", ":path", ":scheme"])},
        optional={"string_match": string_match, "invert_match": st.booleans()},
    ),
    st.just({"name": ":method", "string_match": {"exact": "GET"}}),
)
query_match = st.one_of(
    st.fixed_dictionaries({"name": st.sampled_from(["q", "r"]), "string_match": string_match}),
    st.fixed_dictionaries({"name": st.sampled_from(["q", "r"]), "present_match": st.booleans()}),
    st.just({"name": "r"}),
)
cookie_match = st.fixed_dictionaries(
    {"name": st.sampled_from(["c", "d"]), "string_match": string_match},
    optional=flags("invert_match"),
)


def template(pattern: str) -> Json:
    config = typed(_TEMPLATE, path_template=pattern)
    return {"path_match_policy": {"name": "template", "typed_config": config}}


plain_path = st.one_of(
    paths.map(lambda p: {"prefix": p}),
    paths.map(lambda p: {"path": p}),
    st.sampled_from(["/a", "/A", "/x1"]).map(lambda p: {"path_separated_prefix": p}),
    st.sampled_from(["/a.*", "/(a|b)/.*", "/x\\d/y", ".*"]).map(
        lambda regex: {"safe_regex": {"regex": regex}}
    ),
)
template_path = st.sampled_from(["/a/{x}", "/{x}/{y=*}", "/a/{x=**}", "/{x=**}", "/x{x}/y"]).map(
    template
)
nothing = {"numerator": 0, "denominator": "HUNDRED"}
everything = {"numerator": 100, "denominator": "HUNDRED"}
shares = st.sampled_from([nothing, everything, everything])
conditions = optional(
    case_sensitive=st.booleans(),
    headers=st.lists(header_match, min_size=1, max_size=2),
    query_parameters=st.lists(query_match, min_size=1, max_size=2),
    cookies=st.lists(cookie_match, min_size=1, max_size=2),
    grpc=st.just({}),
    runtime_fraction=shares.map(lambda share: {"default_value": share}),
    tls_context=optional(presented=st.booleans(), validated=st.booleans()),
)
# One at a time, too: of many at once hardly a request meets all, and then none is really asked.
one_condition = st.one_of(
    *(
        st.fixed_dictionaries({"headers": st.lists(header_match, min_size=1, max_size=1)})
        for _ in range(4)
    ),
    st.fixed_dictionaries({"query_parameters": st.lists(query_match, min_size=1, max_size=1)}),
    st.fixed_dictionaries({"cookies": st.lists(cookie_match, min_size=1, max_size=1)}),
    st.just({"case_sensitive": False}),
)
deciding = st.one_of(
    one_condition, st.builds(lambda path: {**path, "case_sensitive": False}, plain_path)
)
few_conditions = st.one_of(st.just({}), one_condition, one_condition, one_condition, conditions)

# --- header changes --------------------------------------------------------------------------

append = st.sampled_from(
    [
        "APPEND_IF_EXISTS_OR_ADD",
        "ADD_IF_ABSENT",
        "OVERWRITE_IF_EXISTS_OR_ADD",
        "OVERWRITE_IF_EXISTS",
    ]
)
values = st.sampled_from(
    [
        "one", "two", "", "100%%", "%REQ(x-m)%", "%REQ(none?:path)%", "%REQ(X-M?x-n):2%",
        "%REQ(:authority)%", "%PROTOCOL%", "%ROUTE_NAME%", "%UPSTREAM_CLUSTER%", "%PATH(NQ)%",
        "%PATH%", "%QUERY_PARAM(q)%", "%RESP(x-echo)%", "%RESP(none?x-add):3%",
        "%CLUSTER_METADATA(ns:k)%", "%VIRTUAL_CLUSTER_NAME%", "%ENVIRONMENT(NOT_SET_ANYWHERE)%",
        "a-%REQ(none)%-%REQ(x-m)%", "%UPSTREAM_HOST%", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%METADATA(ROUTE:ns:k)%", "%RESPONSE_CODE%", "%HOSTNAME%", "%REQ(cookie)%",
    ]
)  # fmt: skip
option = st.builds(
    lambda key, value, action, more: {
        "header": {"key": key, "value": value},
        "append_action": action,
        **more,
    },
    st.sampled_from(["x-add", "x-m", "X-Extra", "x-echo"]),
    values,
    append,
    optional(keep_empty_value=st.booleans()),
)
options = st.lists(option, min_size=1, max_size=3)
removed = st.sampled_from([["x-extra"], ["X-M"], ["x-echo", "x-add"]])
mutations = optional(
    request_headers_to_add=options,
    request_headers_to_remove=removed,
    response_headers_to_add=options,
    response_headers_to_remove=removed,
)
few_mutations = st.one_of(st.just({}), mutations)

# --- filters ---------------------------------------------------------------------------------

fault = st.one_of(
    st.builds(
        lambda abort, share, more: typed(FAULT, abort={**abort, "percentage": share}, **more),
        st.sampled_from([{"http_status": 418}, {"http_status": 503}, {"grpc_status": 5}]),
        shares,
        st.one_of(
            st.just({}),
            st.builds(lambda match: {"headers": [match]}, header_match),
            st.sampled_from(["alpha", "beta"]).map(lambda name: {"upstream_cluster": name}),
            st.just({"delay": {"fixed_delay": "0.001s", "percentage": everything}}),
            st.just({"downstream_nodes": ["n1"]}),
        ),
    ),
    st.just(typed(FAULT, abort={"header_abort": {}, "percentage": everything})),
    st.just(typed(FAULT)),
)
cors = optional(
    allow_origin_string_match=st.lists(
        st.sampled_from([{"exact": "http://a"}, {"prefix": "http://"}, {"exact": "*"}]),
        min_size=1,
        max_size=2,
    ),
    allow_methods=st.sampled_from(["GET,POST", "*"]),
    allow_headers=st.sampled_from(["x-m", "*"]),
    expose_headers=st.just("x-echo"),
    max_age=st.just("60"),
    allow_credentials=st.booleans(),
    allow_private_network_access=st.booleans(),
    forward_not_matching_preflights=st.booleans(),
    filter_enabled=shares.map(lambda share: {"default_value": share}),
).map(lambda fields: typed(CORS, **fields))
overrides = st.one_of(
    st.just({}),
    st.just({}),
    st.just({}),
    optional(**{"envoy.filters.http.fault": fault}),
    optional(**{"envoy.filters.http.cors": cors}),
    optional(**{"envoy.filters.http.fault": fault, "envoy.filters.http.cors": cors}),
).map(lambda found: {"typed_per_filter_config": found} if found else {})

# --- actions ---------------------------------------------------------------------------------

mirror = st.builds(
    lambda share, more: {
        "cluster": "shadow",
        "runtime_fraction": {"default_value": share},
        **more,
    },
    shares,
    optional(
        disable_shadow_host_suffix_append=st.booleans(),
        host_rewrite_literal=st.just("mirrored.example"),
    ),
)
hash_policy = st.one_of(
    st.builds(
        lambda name, more: {"header": {"header_name": name, **more}},
        st.sampled_from(["x-m", "x-n", ":path", ":authority", "none"]),
        optional(
            regex_rewrite=st.just({"pattern": {"regex": "[a-z]"}, "substitution": "z\\0"}),
        ),
    ),
    st.sampled_from(["c", "d"]).map(lambda name: {"cookie": {"name": name}}),
    st.sampled_from(["q", "r"]).map(lambda name: {"query_parameter": {"name": name}}),
    st.booleans().map(lambda used: {"connection_properties": {"source_ip": used}}),
)
hash_policies = st.lists(
    st.builds(lambda policy, last: {**policy, "terminal": last}, hash_policy, st.booleans()),
    min_size=1,
    max_size=3,
)
generated_cookie = st.builds(
    lambda more: [{"cookie": {"name": "sticky", "ttl": "0s", **more}}],
    optional(
        ttl=st.sampled_from(["0s", "60s"]),
        path=st.just("/p"),
        attributes=st.just([{"name": "SameSite", "value": "Strict"}, {"name": "Secure"}]),
    ),
)
host_rewrites = st.sampled_from(
    [
        {},
        {},
        {"host_rewrite_literal": "rewritten:81"},
        {"host_rewrite_header": "x-m"},
        {"host_rewrite_header": "X-Extra"},
        {
            "host_rewrite_path_regex": {
                "pattern": {"regex": "^/(\\w+).*$"},
                "substitution": "\\1.example",
            }
        },
        {"auto_host_rewrite": True},
        {"host_rewrite": "%REQ(x-m)%.example"},
    ]
)
path_rewrites = st.sampled_from(
    [
        {},
        {},
        {"prefix_rewrite": "/new"},
        {"prefix_rewrite": "/new/"},
        {"prefix_rewrite": "/"},
        {"regex_rewrite": {"pattern": {"regex": "/(\\w)(\\w*)"}, "substitution": "/\\2-\\1"}},
        {"regex_rewrite": {"pattern": {"regex": "^.*$"}, "substitution": ""}},
        {"path_rewrite": "/f/%REQ(x-m)%"},
        {"path_rewrite": "%REQ(none)%"},
    ]
)
template_rewrites = st.sampled_from([{}, {"pattern": "/new/{x}"}, {"pattern": "/{x}{x}/t"}]).map(
    lambda found: (
        {
            "path_rewrite_policy": {
                "name": "rewrite",
                "typed_config": typed(_TEMPLATE_REWRITE, path_template_rewrite=found["pattern"]),
            }
        }
        if found
        else {}
    )
)


def weighted(entries: Iterable[Json], more: Json) -> Json:
    return {"weighted_clusters": {"clusters": list(entries), **more}}


weighted_clusters = st.one_of(
    # One cluster has all the weight, or the request says which: no chance is in it.
    st.builds(
        lambda first, second, winner: weighted(
            [
                {"name": "alpha", "weight": 1 - winner, **first},
                {"name": "beta", "weight": winner, **second},
            ],
            {},
        ),
        merged(few_mutations, optional(host_rewrite_literal=st.just("weighted.example"))),
        merged(few_mutations, overrides),
        st.integers(0, 1),
    ),
    st.builds(
        lambda first, second: weighted(
            [
                {"name": "alpha", "weight": 2, **first},
                {"name": "beta", "weight": 3, **second},
                {"cluster_header": "x-cluster", "weight": 1},
            ],
            {"header_name": "x-draw"},
        ),
        few_mutations,
        few_mutations,
    ),
)
targets = st.one_of(
    st.sampled_from(CLUSTERS).map(lambda name: {"cluster": name}),
    st.sampled_from(CLUSTERS).map(lambda name: {"cluster": name}),
    weighted_clusters,
    st.just({"cluster_header": "x-cluster"}),
    st.builds(
        lambda status: {"cluster": MISSING, "cluster_not_found_response_code": status},
        st.sampled_from(["SERVICE_UNAVAILABLE", "NOT_FOUND", "INTERNAL_SERVER_ERROR"]),
    ),
    st.builds(
        lambda name, policies: {"cluster": name, "hash_policy": policies},
        st.sampled_from(HASHED),
        hash_policies,
    ),
    st.builds(
        lambda name, policies: {"cluster": name, "hash_policy": policies},
        st.sampled_from(HASHED),
        generated_cookie,
    ),
)
route_options = optional(
    append_x_forwarded_host=st.booleans(),
    request_mirror_policies=st.lists(mirror, min_size=1, max_size=2),
)


def forward(rewrites: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return merged(targets, rewrites, host_rewrites, route_options).map(lambda r: {"route": r})


redirect = merged(
    optional(
        host_redirect=st.sampled_from(["else.where", "[fe80::1]"]),
        port_redirect=st.sampled_from([80, 443, 8443]),
        strip_query=st.booleans(),
        response_code=st.sampled_from(["FOUND", "SEE_OTHER", "PERMANENT_REDIRECT"]),
    ),
    st.sampled_from(
        [{}, {"https_redirect": True}, {"scheme_redirect": "https"}, {"scheme_redirect": "http"}]
    ),
    st.sampled_from(
        [
            {},
            {"path_redirect": "/p"},
            {"path_redirect": "/p?z=1"},
            {"prefix_rewrite": "/pre"},
            {"prefix_rewrite": "/"},
            {"regex_rewrite": {"pattern": {"regex": "/a"}, "substitution": "/zz"}},
            {"path_rewrite": "/f/%REQ(x-m)%"},
            {"path_rewrite": "/f/%REQ(x-m)%?y=1"},
        ]
    ),
).map(lambda fields: {"redirect": fields})
body_format = st.sampled_from(
    [
        {},
        {"body_format": {"text_format": "%LOCAL_REPLY_BODY%:%REQ(x-m)%:%RESPONSE_CODE%"}},
        {"body_format": {"text_format": "%REQ(none)%", "omit_empty_values": True}},
        {"body_format": {"json_format": {"path": "%REQ(:path)%", "b": {"c": "x"}}}},
        {
            "body_format": {
                "text_format_source": {"inline_string": "<%ROUTE_NAME%>"},
                "content_type": "text/html",
            }
        },
    ]
)
direct = st.builds(
    lambda status, body, form: {
        "direct_response": {
            "status": status,
            **({"body": {"inline_string": body}} if body else {}),
            **form,
        }
    },
    st.sampled_from([200, 201, 302, 404, 503]),
    st.sampled_from(["", "hello"]),
    body_format,
)


def named(route: Json, name: str) -> Json:
    metadata = {"filter_metadata": {"ns": {"k": name}}}
    return {**route, "name": name, "metadata": metadata}


def routes_of(path: st.SearchStrategy[Json], action: st.SearchStrategy[Json]) -> Any:
    return st.builds(
        lambda where, more, found, changes, filters, name: named(
            {"match": {**where, **more}, **found, **changes, **filters}, name
        ),
        path,
        few_conditions,
        action,
        few_mutations,
        overrides,
        st.sampled_from(["r1", "r2"]),
    )


_route = st.one_of(
    routes_of(plain_path, forward(path_rewrites)),
    routes_of(plain_path, forward(path_rewrites)),
    routes_of(plain_path, st.one_of(redirect, direct)),
    routes_of(st.just(template("/a/**")), direct),
    routes_of(template_path, forward(template_rewrites)),
)

# Functions, so that no error prints the whole grammar.


@st.composite
def route(draw: Any) -> Any:
    return draw(_route)


# --- virtual hosts and configurations ----------------------------------------------------------

virtual_clusters = st.lists(
    st.builds(
        lambda name, match: {"name": name, "headers": [match]},
        st.sampled_from(["vc1", "vc2"]),
        header_match,
    ),
    min_size=1,
    max_size=2,
)
tree = st.builds(
    lambda first, second: {
        "matcher_tree": {
            "input": {
                "name": "in",
                "typed_config": typed(
                    "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name="x-m"
                ),
            },
            "prefix_match_map": {
                "map": {
                    "a": {"action": _route_action(first)},
                    "Ab": {"action": _route_action(second)},
                }
            },
        }
    },
    route(),
    route(),
)


def _route_action(found: Json) -> Json:
    return {"name": "go", "typed_config": typed("envoy.config.route.v3.Route") | found}


_PATHS = {"prefix", "path", "path_separated_prefix", "safe_regex"}


def _numbered(conditions: list[Json]) -> Json:
    """Routes that say which of them it was."""
    return {
        "routes": [
            {
                "match": found if found.keys() & _PATHS else {"prefix": "/", **found},
                "direct_response": {"status": 200, "body": {"inline_string": str(number)}},
            }
            for number, found in enumerate((*conditions, {}))
        ]
    }


_host = merged(
    st.one_of(
        *[st.lists(route(), min_size=1, max_size=4).map(lambda routes: {"routes": routes})] * 6,
        st.lists(route(), min_size=8, max_size=12).map(lambda routes: {"routes": routes}),
        tree.map(lambda found: {"matcher": found}),
        *[st.lists(deciding, min_size=2, max_size=5).map(_numbered)] * 4,
    ),
    few_mutations,
    overrides,
    st.one_of(
        *[st.just({})] * 5,
        optional(
            require_tls=st.sampled_from(["NONE", "ALL", "EXTERNAL_ONLY"]),
            virtual_clusters=virtual_clusters,
            request_mirror_policies=st.lists(mirror, min_size=1, max_size=1),
            cors=cors.map(lambda found: {k: v for k, v in found.items() if k != "@type"}),
        ),
    ),
)


@st.composite
def host(draw: Any) -> Any:
    return draw(_host)


domains = st.sampled_from(["exact", "port", "suffix", "prefix"])
_configuration = merged(
    few_mutations,
    overrides,
    optional(
        most_specific_header_mutations_wins=st.booleans(),
        ignore_port_in_host_matching=st.booleans(),
        ignore_path_parameters_in_path_matching=st.booleans(),
        request_mirror_policies=st.lists(mirror, min_size=1, max_size=1),
    ),
)


@st.composite
def configuration(draw: Any) -> Any:
    return draw(_configuration)


# --- requests --------------------------------------------------------------------------------

header = st.one_of(
    st.tuples(
        st.sampled_from(["x-m", "x-n", "x-extra"]),
        st.sampled_from(["a", "Ab", "3", "x1", "", "-2", "+4"]),
    ),
    st.tuples(st.just("x-m"), st.sampled_from(["a", "Ab", "ab", "b", "x1", "", "aAb"])),
    st.tuples(st.just("x-n"), st.sampled_from(["5", "1", "3", "-5", "x", "4x"])),
    st.sampled_from(["c=a", "c=b; d=a", "c=Ab; c=a", 'c="a"; d', "c=", "sticky=abc"]).map(
        lambda value: ("cookie", value)
    ),
    st.sampled_from(["http://a", "http://b", "https://c"]).map(lambda value: ("origin", value)),
    st.sampled_from(["0", "1", "3", "4", "5", "17"]).map(lambda value: ("x-draw", value)),
    st.sampled_from([*CLUSTERS, "gone"]).map(lambda value: ("x-cluster", value)),
    st.sampled_from(["418", "99", "404"]).map(lambda v: ("x-envoy-fault-abort-request", v)),
    st.sampled_from(["n1", "n2"]).map(lambda v: ("x-envoy-downstream-service-node", v)),
    st.just(("content-type", "application/grpc")),
)
preflight = st.sampled_from(
    [
        [("access-control-request-method", "PUT"), ("access-control-request-headers", "x-m")],
        [
            ("access-control-request-method", "PUT"),
            ("access-control-request-private-network", "true"),
        ],
        [],
    ]
)
request = st.one_of(
    *[
        st.tuples(
            st.sampled_from(["GET", "POST"]),
            st.builds(lambda p, q: p + q, paths, queries),
            st.lists(header, max_size=4),
        )
    ]
    * 5,
    st.tuples(
        st.just("OPTIONS"),
        st.builds(lambda p, q: p + q, paths, queries),
        st.builds(
            lambda origin, more, others: [("origin", origin), *more, *others],
            st.sampled_from(["http://a", "http://b", "https://c"]),
            preflight,
            st.lists(header, max_size=1),
        ),
    ),
)
_case = st.tuples(host(), domains, st.lists(request, min_size=3, max_size=3))


@st.composite
def case(draw: Any) -> Any:
    return draw(_case)


# --- what was drawn --------------------------------------------------------------------------


def fields(value: Any, path: str = "") -> Counter[str]:
    """How often each field stands in a document; list positions and map keys left out."""
    found: Counter[str] = Counter()
    if isinstance(value, dict):
        kind = str(value.get("@type", "")).rpartition(".")[2]
        for name, part in value.items():
            if name == "@type":
                continue
            inner = f"{kind}.{name}" if kind else f"{path}.{name}" if path else name
            found[inner] += 1
            if name not in ("typed_per_filter_config", "map", "filter_metadata"):
                found += fields(part, name)
            else:
                for entry in part.values():
                    found += fields(entry, name)
    elif isinstance(value, list):
        for part in value:
            found += fields(part, path)
    return found
