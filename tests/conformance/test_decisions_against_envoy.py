"""The decision core and real Envoy, given the same route configuration and the same requests.

Hypothesis draws virtual hosts; one Envoy serves all of them, each under a domain of its own, and
an echo server behind it says what arrived. Status, cluster, path, authority, headers and redirect
target must be equal.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from meshsdk.balancing import ClusterPool
from meshsdk.call import Forward, Reply, Request, decide
from meshsdk.model import Assignment, Cluster, Endpoint, ListenerView, LocalityEndpoints
from meshsdk.xds.decode import DECODERS
from tests.support.envoy import FAULT, Envoy, http_listener, static_cluster, typed
from tests.support.resources import RDS

CLUSTERS = ("alpha", "beta")
Case = tuple[dict[str, Any], list[tuple[str, str, list[tuple[str, str]]]]]

words = st.sampled_from(["a", "b", "Ab", "x1"])
paths = st.sampled_from(["/", "/a", "/A", "/a/", "/a/b", "/ab", "/b/a", "/x1/y"])
queries = st.sampled_from(["", "?q=a", "?q=b&r=1", "?r", "?q=a&q=b"])
string_match = st.one_of(
    st.fixed_dictionaries({kind: words}, optional={"ignore_case": st.booleans()})
    for kind in ("exact", "prefix", "suffix", "contains")
) | st.sampled_from(["[ab].*", "x\\d", "A?b"]).map(lambda r: {"safe_regex": {"regex": r}})


def flags(*names: str) -> dict[str, st.SearchStrategy[Any]]:
    return {name: st.booleans() for name in names}


header_match = st.one_of(
    st.fixed_dictionaries(
        {"name": st.just("x-m"), "string_match": string_match},
        optional=flags("invert_match", "treat_missing_header_as_empty"),
    ),
    st.fixed_dictionaries(
        {"name": st.just("x-m"), "present_match": st.booleans()},
        optional=flags("invert_match", "treat_missing_header_as_empty"),
    ),
    st.fixed_dictionaries(
        {"name": st.just("x-n"), "range_match": st.just({"start": "1", "end": "5"})},
        optional=flags("invert_match"),
    ),
    st.just({"name": ":method", "string_match": {"exact": "GET"}}),
)
query_match = st.one_of(
    st.fixed_dictionaries({"name": st.sampled_from(["q", "r"]), "string_match": string_match}),
    st.fixed_dictionaries({"name": st.sampled_from(["q", "r"]), "present_match": st.booleans()}),
)
path_match = st.one_of(
    paths.map(lambda p: {"prefix": p}),
    paths.map(lambda p: {"path": p}),
    st.sampled_from(["/a", "/A", "/x1"]).map(lambda p: {"path_separated_prefix": p}),
    st.sampled_from(["/a.*", "/(a|b)/.*", "/x\\d/y"]).map(lambda r: {"safe_regex": {"regex": r}}),
)
match = st.builds(
    lambda path, more: {**path, **more},
    path_match,
    st.fixed_dictionaries(
        {},
        optional={
            "case_sensitive": st.booleans(),
            "headers": st.lists(header_match, min_size=1, max_size=2),
            "query_parameters": st.lists(query_match, min_size=1, max_size=1),
        },
    ),
)
append = st.sampled_from(
    [
        "APPEND_IF_EXISTS_OR_ADD",
        "ADD_IF_ABSENT",
        "OVERWRITE_IF_EXISTS_OR_ADD",
        "OVERWRITE_IF_EXISTS",
    ]
)
options = st.lists(
    st.builds(
        lambda key, value, action: {
            "header": {"key": key, "value": value},
            "append_action": action,
        },
        st.sampled_from(["x-add", "x-m", "x-extra"]),
        st.sampled_from(["one", "two", "100%%", "%REQ(x-m)%", "%REQ(none?:path)%"]),
        append,
    ),
    min_size=1,
    max_size=3,
)
mutations = st.fixed_dictionaries(
    {},
    optional={
        "request_headers_to_add": options,
        "request_headers_to_remove": st.just(["x-extra"]),
        "response_headers_to_add": options,
        "response_headers_to_remove": st.just(["x-echo"]),
    },
)
rewrites = st.sampled_from(
    [
        {},
        {"prefix_rewrite": "/new"},
        {"prefix_rewrite": "/new/"},
        {"regex_rewrite": {"pattern": {"regex": "/(\\w)(\\w*)"}, "substitution": "/\\2-\\1"}},
        {"host_rewrite_literal": "rewritten:81"},
    ]
)
forward = st.builds(
    lambda cluster, rewrite: {"route": {"cluster": cluster, **rewrite}},
    st.sampled_from(CLUSTERS),
    rewrites,
)
redirect = st.fixed_dictionaries(
    {},
    optional={
        "host_redirect": st.just("else.where"),
        "port_redirect": st.just(8443),
        "strip_query": st.booleans(),
        "response_code": st.sampled_from(["FOUND", "SEE_OTHER", "PERMANENT_REDIRECT"]),
    },
).flatmap(
    lambda base: st.sampled_from(
        [
            base,
            base | {"https_redirect": True},
            base | {"scheme_redirect": "https"},
            base | {"path_redirect": "/p"},
            base | {"path_redirect": "/p?z=1"},
            base | {"prefix_rewrite": "/pre"},
            base | {"regex_rewrite": {"pattern": {"regex": "/a"}, "substitution": "/zz"}},
        ]
    )
)
direct = st.builds(
    lambda status, body: {"status": status} | ({"body": {"inline_string": body}} if body else {}),
    st.sampled_from([200, 404, 503]),
    st.sampled_from(["", "hello"]),
)
action = st.one_of(
    forward,
    forward,
    redirect.map(lambda r: {"redirect": r}),
    direct.map(lambda d: {"direct_response": d}),
)
fault = st.sampled_from([None, None, None, {"http_status": 418}, {"grpc_status": 5}])


def with_fault(route: dict[str, Any], abort: dict[str, Any] | None) -> dict[str, Any]:
    if abort is None:
        return route
    filter_config = typed(FAULT, abort=abort | {"percentage": {"numerator": 100}})
    return route | {"typed_per_filter_config": {"envoy.filters.http.fault": filter_config}}


route = st.builds(
    lambda m, a, mut, f: with_fault({"match": m, **a, **mut}, f), match, action, mutations, fault
)
request = st.tuples(
    st.sampled_from(["GET", "POST"]),
    st.builds(lambda p, q: p + q, paths, queries),
    st.lists(
        st.tuples(
            st.sampled_from(["x-m", "x-n", "x-extra"]), st.sampled_from(["a", "Ab", "3", "x1"])
        ),
        max_size=3,
    ),
)
case = st.tuples(
    st.builds(
        lambda routes, mut: {"routes": routes, **mut},
        st.lists(route, min_size=1, max_size=4),
        mutations,
    ),
    st.lists(request, min_size=3, max_size=3),
)


@pytest.fixture(scope="module")
def echoes() -> Iterator[dict[str, int]]:
    """One echo server per cluster: answers with what arrived, as JSON."""
    servers = []
    for name in CLUSTERS:

        class Echo(BaseHTTPRequestHandler):
            cluster = name
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                seen = {"cluster": self.cluster, "path": self.path, "headers": self.headers.items()}
                body = json.dumps(seen).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.send_header("x-echo", "yes")
                self.send_header("x-add", "upstream")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    yield {name: server.server_port for name, server in zip(CLUSTERS, servers, strict=True)}
    for server in servers:
        server.shutdown()
        server.server_close()


def sample(count: int, seed: int) -> list[Case]:
    """Cases drawn by hypothesis, the same ones for the same seed."""
    drawn: list[Case] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case)
    def collect(value: Case) -> None:
        drawn.append(value)

    from hypothesis import seed as seeded

    seeded(seed)(collect)()
    return drawn


WATCHED = ("x-m", "x-n", "x-extra", "x-add", "x-echo")


def watched(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that rules may touch; several of one name count as their joined value."""
    names = sorted({name.lower() for name, _ in headers} & set(WATCHED))
    return [(n, ",".join(v for k, v in headers if k.lower() == n)) for n in names]


def ask_envoy(
    port: int, domain: str, method: str, path: str, headers: list[tuple[str, str]]
) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("host", domain)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.headers.get("content-type") is None and body.startswith(b'{"cluster"'):
        seen = json.loads(body)
        arrived = [tuple(pair) for pair in seen["headers"]]
        host = next(value for name, value in arrived if name.lower() == "host")
        return ("forward", seen["cluster"], seen["path"], host, watched(arrived),
                watched(answer.getheaders()))  # fmt: skip
    return (
        "reply",
        answer.status,
        answer.headers.get("location"),
        body,
        watched(answer.getheaders()),
    )


def ask_us(view: ListenerView, domain: str, method: str, path: str, headers: Any) -> Any:
    asked = Request(method, path, authority=domain, headers=headers)
    decision = decide(view, asked, random.random)
    if isinstance(decision, Forward):
        back = [("x-echo", "yes"), ("x-add", "upstream")]
        return ("forward", decision.cluster.cluster.name, decision.path, decision.authority,
                watched(decision.request_headers(headers)),
                watched(decision.response_headers(back)))  # fmt: skip
    assert isinstance(decision, Reply)
    location = dict(decision.headers).get("location")
    return ("reply", decision.status, location, decision.body, watched(list(decision.headers)))


def our_view(host: dict[str, Any]) -> ListenerView:
    message = json_format.ParseDict(
        {"name": "rc", "virtual_hosts": [host]}, route_pb2.RouteConfiguration()
    )
    pool = ClusterPool(random.random)
    assignment = Assignment("x", (LocalityEndpoints((Endpoint("127.0.0.1", 1),)),))
    clusters = {name: pool.view(Cluster(name), assignment) for name in CLUSTERS}
    return ListenerView("l", DECODERS[RDS].decode(message, []), clusters)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_decision_is_envoys(echoes: dict[str, int], seed: int) -> None:
    cases = sample(250, seed)
    hosts = [
        {"name": f"h{i}", "domains": [f"case-{i}:80", f"case-{i}"], **host}
        for i, (host, _) in enumerate(cases)
    ]
    clusters = [static_cluster(name, [port]) for name, port in echoes.items()]
    listener = http_listener({"name": "rc", "virtual_hosts": hosts})
    mismatches = []
    with Envoy([listener], clusters) as envoy:
        for i, (_, requests) in enumerate(cases):
            view = our_view(hosts[i])
            for method, path, headers in requests:
                domain = f"case-{i}:80" if i % 2 else f"case-{i}"
                theirs = ask_envoy(envoy.port(), domain, method, path, headers)
                ours = ask_us(view, domain, method, path, headers)
                if ours != theirs:
                    mismatches.append(
                        (hosts[i], method, path, headers, "envoy", theirs, "us", ours)
                    )
    first = json.dumps(mismatches[:1], default=str, indent=1)
    assert not mismatches, f"{len(mismatches)} mismatches, the first: {first}"
