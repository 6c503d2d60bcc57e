"""One request asked of real Envoy and of the decision core, answered in the same words.

`Echoes` are the endpoints behind Envoy: each says as JSON what arrived. `Answer`s are tuples that
are equal when both did the same:

    ("forward", cluster, path, host, request headers, response headers, port or None)
    ("reply", status or gRPC status, location, body or message, response headers)
"""

from __future__ import annotations

import http.client
import json
import platform
import random
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from meshsdk.balancing import ClusterPool
from meshsdk.call import Forward, Reply, Request, decide
from meshsdk.formats import Caller
from meshsdk.model import ListenerView, RouteConfiguration
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.document import message_of
from meshsdk.xds.resources import CLUSTER, ROUTE
from tests.support.envoy import FAULT, HCM, ROUTER, typed

Json = dict[str, Any]
Pairs = Sequence[tuple[str, str]]

WATCHED = frozenset(
    {
        "x-m", "x-n", "x-extra", "x-add", "x-echo", "x-forwarded-host", "set-cookie",
        "access-control-allow-origin", "access-control-allow-methods",
        "access-control-allow-headers", "access-control-allow-credentials",
        "access-control-expose-headers", "access-control-max-age",
        "access-control-allow-private-network",
    }
)  # fmt: skip
_BACK = [("x-echo", "yes"), ("x-add", "upstream")]
_ID = "x-id"
_GENERATED = re.compile('="[0-9a-f]{1,16}"')


class Echoes:
    """Servers by cluster; those of `shadow` keep what arrived, by the request's `x-id`."""

    def __init__(self, clusters: Mapping[str, int]) -> None:
        self.copies: dict[str, list[Any]] = defaultdict(list)
        self.ports: dict[str, list[int]] = {}
        self._servers: list[ThreadingHTTPServer] = []
        for name, count in clusters.items():
            made = [self._serve(name) for _ in range(count)]
            self.ports[name] = [server.server_port for server in made]

    def _serve(self, name: str) -> ThreadingHTTPServer:
        copies = self.copies if name == "shadow" else None

        class Echo(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                headers = self.headers.items()
                path = self.requestline.split()[1]  # `self.path` joins slashes in front
                if copies is not None:
                    arrived = (self.headers["host"], path, watched(headers))
                    copies[self.headers[_ID]].append(arrived)
                port = self.server.server_port  # type: ignore[attr-defined]
                seen = {"cluster": name, "path": path, "headers": headers, "port": port}
                body = json.dumps(seen).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                for header, value in _BACK:
                    self.send_header(header, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_OPTIONS = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                """Envoy ends with its connections open."""

        server = Server(("127.0.0.1", 0), Echo)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._servers.append(server)
        return server

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def watched(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that rules may touch; several of one name count as their joined value.

    Values of generated cookies are not compared: each proxy makes its own.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    names = sorted({name for name, _ in pairs} & WATCHED)
    found = [(name, ",".join(v for k, v in pairs if k == name)) for name in names]
    return [
        (n, re.sub('="[0-9a-f]{1,16}"', '="…"', v) if n == "set-cookie" else v) for n, v in found
    ]


# --- Envoy -----------------------------------------------------------------------------------


def listener(name: str, route_config: Json) -> Json:
    """A listener with fault, CORS and router filters, in Istio's order."""
    cors = typed("envoy.extensions.filters.http.cors.v3.Cors")
    hcm = typed(
        HCM,
        stat_prefix=name,
        route_config=route_config,
        generate_request_id=False,
        http_filters=[
            {"name": "envoy.filters.http.fault", "typed_config": typed(FAULT)},
            {"name": "envoy.filters.http.cors", "typed_config": cors},
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed(ROUTER, suppress_envoy_headers=True),
            },
        ],
    )
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": hcm}]}],
    }


class Envoys:
    """Asks one Envoy; keeps a connection per listener."""

    def __init__(self) -> None:
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def ask(self, port: int, number: str, asked: Asked) -> tuple[Any, ...]:
        connection = self._connections.get(port)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            self._connections[port] = connection
        try:
            return self._ask(connection, number, asked)
        except (http.client.HTTPException, OSError):
            connection.close()
            return self._ask(connection, number, asked)

    def _ask(
        self, connection: http.client.HTTPConnection, number: str, asked: Asked
    ) -> tuple[Any, ...]:
        connection.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("host", asked.host)
        for name, value in (*asked.headers, (_ID, number)):
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        back = watched(answer.getheaders())
        if body.startswith(b'{"cluster"'):
            seen = json.loads(body)
            arrived = [tuple(pair) for pair in seen["headers"]]
            host = next(value for name, value in arrived if name.lower() == "host")
            port = seen["port"]
            return ("forward", seen["cluster"], seen["path"], host, watched(arrived), back, port)
        location = answer.headers.get("location")
        if answer.headers.get("grpc-status") is not None:
            status = int(answer.headers["grpc-status"])
            message = unquote(answer.headers.get("grpc-message", ""))
            return ("reply", f"grpc {status}", location, message, back)
        kind = answer.headers.get("content-type") if body else None
        return ("reply", answer.status, location, (body.decode(), kind), back)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


# --- the decision core -------------------------------------------------------------------------


class Asked:
    """A request: as drawn, but of a header that Envoy keeps one line of the first only."""

    _SEVERAL = frozenset({"x-m", "x-n", "x-extra"})

    def __init__(self, host: str, method: str, path: str, headers: Pairs) -> None:
        self.host = host
        self.method = method
        self.path = path
        self.headers: list[tuple[str, str]] = []
        for name, value in headers:
            if method == "OPTIONS" and name == "content-type":
                continue  # no gRPC call is one
            if name in self._SEVERAL or name not in dict(self.headers):
                self.headers.append((name, value))
        if "x-draw" not in dict(self.headers):
            self.headers.append(("x-draw", "2"))  # chance would choose among clusters without it

    def __repr__(self) -> str:
        return f"{self.method} {self.host}{self.path} {self.headers}"

    @property
    def grpc(self) -> bool:
        return ("content-type", "application/grpc") in self.headers


def view_of(route_config: Json, clusters: Iterable[Json]) -> ListenerView:
    message = message_of(route_config, ROUTE.rpartition("/")[2])
    config: RouteConfiguration = DECODERS[ROUTE].decode(message, [])
    pool = ClusterPool(random.random)
    views = {}
    for item in clusters:
        found = DECODERS[CLUSTER].decode(message_of(item, CLUSTER.rpartition("/")[2]), [])
        views[found.name] = pool.view(found, None)
    caller = Caller(address="127.0.0.1", hostname=platform.node())
    return ListenerView("l", config, views, caller=caller)


def ask_us(
    view: ListenerView, number: str, asked: Asked
) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
    """(the answer, the copies sent)"""
    headers = [*asked.headers, (_ID, number)]
    request = Request(
        asked.method, asked.path, authority=asked.host, headers=headers, grpc=asked.grpc, start=0.0
    )
    answer, copies = _words(decide(view, request, random.random), asked, headers)
    return (at_http1(answer), at_http1(copies)) if asked.grpc else (answer, copies)


def _words(
    decision: Any, asked: Asked, headers: list[tuple[str, str]]
) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
    if isinstance(decision, Forward):
        chosen = decision.pick(random.random)
        chosen.release()
        sent = decision.request_headers(headers)
        copies = [
            (mirror.authority, mirror.path, watched(mirror.request_headers(sent)))
            for mirror in decision.mirrors
        ]
        back = decision.response_headers(_BACK, status=200, endpoint=chosen)
        unsure = decision.key is None or decision.set_cookies
        port = None if unsure else chosen.endpoint.port
        cluster = decision.cluster.cluster.name
        host = decision.authority_at(chosen)
        return (
            ("forward", cluster, decision.path, host, watched(sent), watched(back), port),
            copies,
        )
    assert isinstance(decision, Reply)
    location = dict(decision.headers).get("location")
    back = watched(decision.headers)
    if asked.grpc:
        message = decision.grpc_message
        return ("reply", f"grpc {decision.grpc_code}", location, message, back), []
    kind = dict(decision.headers).get("content-type") if decision.body else None
    return ("reply", decision.status, location, (decision.body.decode(), kind), back), []


def at_http1(answer: Any) -> Any:
    """The drawn gRPC calls come over HTTP/1.1; ours are HTTP/2, as gRPC is."""
    if isinstance(answer, str):
        return answer.replace("HTTP/2", "HTTP/1.1")
    if isinstance(answer, tuple | list):
        return type(answer)(at_http1(part) for part in answer)
    return answer


def same(theirs: tuple[Any, ...], ours: tuple[Any, ...]) -> bool:
    """Whether both did the same; which of several equal hosts chance chose is no matter."""
    if ours[0] == "forward" and ours[-1] is None:
        return _any_port(theirs[:-1]) == _any_port(ours[:-1])
    return theirs == ours


def _any_port(answer: tuple[Any, ...]) -> str:
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:…", repr(answer))
