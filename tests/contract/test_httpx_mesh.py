"""What the mesh does to an httpx call: routes, answers, limits, failures."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trustme

from meshsdk import propagation
from meshsdk.errors import (
    ConnectFailure,
    ListenerNotFound,
    MeshClosed,
    NoHealthyUpstream,
    NotReady,
    RouteTimeout,
)
from meshsdk.matching import (
    Fraction,
    HeaderMatch,
    PathKind,
    PathMatch,
    StringKind,
    StringMatch,
)
from meshsdk.model import (
    AppendAction,
    DirectResponseAction,
    Fault,
    FaultAbort,
    FaultDelay,
    HeaderMutations,
    HeaderOption,
    ListenerView,
    RedirectAction,
    Route,
    RouteMatch,
)
from tests.support.http_api import NAME, URL, Api, OpenMesh, WaitingMesh, mesh_of
from tests.support.http_backend import Backend
from tests.support.static_mesh import ANY, PASSTHROUGH, StaticMesh, forward

SIDES = [
    ("httpx", "sync"),
    ("httpx", "asyncio"),
    ("httpx", "trio"),
    ("httpx2", "sync"),
    ("httpx2", "asyncio"),
]
ALWAYS = Fraction(100)
DEAD = "127.0.0.1:1"  # nobody listens there


@pytest.fixture
def one() -> Iterator[Backend]:
    with Backend("one") as backend:
        yield backend


@pytest.fixture
def two() -> Iterator[Backend]:
    with Backend("two") as backend:
        yield backend


@pytest.fixture
def mesh(one: Backend) -> OpenMesh:
    return mesh_of(one)


@pytest.fixture(params=SIDES, ids="-".join)
def api(request: pytest.FixtureRequest, mesh: StaticMesh) -> Iterator[Api]:
    library, side = request.param
    api = Api("mesh", library, side, mesh, URL)
    yield api
    api.close()
    api.assert_released()


def when(header: str, value: str) -> RouteMatch:
    match = HeaderMatch(header, StringMatch(StringKind.EXACT, value))
    return RouteMatch(PathMatch(PathKind.PREFIX, "/"), headers=(match,))


def info(response: Any) -> Any:
    return response.extensions["meshsdk"]


# --- routing ---------------------------------------------------------------------------------


def test_header_match_weights_and_round_robin(
    api: Api, mesh: OpenMesh, one: Backend, two: Backend
) -> None:
    mesh.endpoints("v1", one.target)
    mesh.endpoints("v2", two.target)
    mesh.endpoints("both", one.target, two.target)
    mesh.listen(
        NAME,
        forward("v2", match=when("end-user", "jason")),
        forward(("v1", 100), ("v2", 0), match=when("end-user", "jane")),
        forward("both"),
    )
    with api.client() as client:
        assert client.get(URL, headers={"End-User": "jason"}).text == "two"
        assert client.get(URL, headers={"End-User": "jane"}).text == "one"
        assert sorted(client.get(URL).text for _ in range(10)) == ["one"] * 5 + ["two"] * 5
        answer = client.get(URL, headers={"end-user": "jason"})
    assert (info(answer).flag, info(answer).cluster, info(answer).route) == ("-", "v2", "to-v2")
    assert (info(answer).endpoint, info(answer).local) == (two.target, False)


def test_rewrites_and_header_changes(api: Api, mesh: OpenMesh) -> None:
    over = AppendAction.OVERWRITE_OR_ADD
    mutations = HeaderMutations(
        request_set=(
            HeaderOption("x-added", "yes", over),
            HeaderOption("x-copy", "%REQ(x-own)%", over),
        ),
        request_remove=("x-secret",),
        response_set=(HeaderOption("x-late", "ä", over),),
        response_remove=("x-backend",),
    )
    mesh.listen(
        NAME,
        forward(
            "reviews",
            match=RouteMatch(PathMatch(PathKind.PREFIX, "/old/")),
            prefix_rewrite="/echo/",
            host_rewrite="elsewhere.example",
            mutations=mutations,
        ),
    )
    headers = {"X-Own": "mine", "X-Secret": "1", "X-Kept": "Ä".encode()}
    with api.client() as client:
        response = client.post(f"{URL}/old/thing?a=b%20c", headers=headers, content=b"body")
    seen = response.json()
    names = dict(seen["headers"])
    assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/echo/thing?a=b%20c", "body")
    assert names["host"] == "elsewhere.example"
    assert (names["x-added"], names["x-copy"]) == ("yes", "mine")
    assert names["x-kept"].encode("latin-1") == "Ä".encode()
    assert "x-secret" not in names
    assert "x-backend" not in response.headers
    assert response.headers["x-late"] == "ä"


def test_host_header_of_the_caller_stays(api: Api) -> None:
    with api.client() as client:
        seen = client.get(f"{URL}/echo", headers={"host": "virtual"}).json()
        assert ["host", "virtual"] in seen["headers"]
        seen = client.get(f"{URL}/echo").json()
        assert ["host", NAME] in seen["headers"]


def test_a_change_applies_to_the_next_request(
    api: Api, mesh: OpenMesh, one: Backend, two: Backend
) -> None:
    with api.client() as client:
        assert client.get(URL).text == "one"
        mesh.endpoints("reviews", two.target)
        mesh.listen(NAME, forward("reviews"))
        assert client.get(URL).text == "two"
        # The async side may close only in its loop: with the request just made.
        one.wait_for(lambda: one.open == 0)


def test_endpoint_that_leaves_lets_calls_finish(
    api: Api, mesh: OpenMesh, one: Backend, two: Backend
) -> None:
    with api.client() as client:
        with client.stream("GET", f"{URL}/stall") as response:
            mesh.endpoints("reviews", two.target)
            mesh.listen(NAME, forward("reviews"))
            one.release.set()
            assert b"".join(response.iter_bytes()) == b"firstafter"
        one.wait_for(lambda: one.open == 0)
        assert client.get(URL).text == "two"


def test_trace_headers_are_carried(api: Api) -> None:
    carried = [("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"), ("x-request-id", "abc")]
    with api.client() as client, propagation.serving(carried):
        # A portal carries the caller's context into its loop.
        names = dict(client.get(f"{URL}/echo").json()["headers"])
        assert (names["traceparent"], names["x-request-id"]) == (carried[0][1], "abc")
        own = client.get(f"{URL}/echo", headers={"X-Request-Id": "own"}).json()["headers"]
        assert [value for name, value in own if name == "x-request-id"] == ["own"]


def test_carried_headers_take_part_in_routing(
    api: Api, mesh: OpenMesh, one: Backend, two: Backend
) -> None:
    mesh.endpoints("v2", two.target)
    mesh.listen(NAME, forward("v2", match=when("end-user", "jason")), forward("reviews"))
    with api.client() as client:
        with propagation.serving([("end-user", "jason")], {"end-user"}):
            assert client.get(URL).text == "two"
        assert client.get(URL).text == "one"


# --- answers of the mesh ---------------------------------------------------------------------


def test_redirect(api: Api, mesh: OpenMesh, one: Backend) -> None:
    redirect = Route(
        "moved",
        RouteMatch(PathMatch(PathKind.EXACT, "/from")),
        RedirectAction(status=308, path="/echo"),
    )
    mesh.listen(NAME, redirect, forward("reviews"))
    with api.client() as client:
        response = client.get(f"{URL}/from")
        assert (response.status_code, response.headers["location"]) == (308, f"{URL}/echo")
        assert (info(response).local, info(response).route, info(response).error) == (
            True,
            "moved",
            None,
        )
        assert one.requests == []
        response = client.post(f"{URL}/from", content=b"again", follow_redirects=True)
        assert (response.json()["body"], len(response.history)) == ("again", 1)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 503])
def test_direct_response(api: Api, mesh: OpenMesh, method: str, status: int) -> None:
    mesh.listen(NAME, Route("direct", ANY, DirectResponseAction(status, b"from the mesh")))
    with api.client() as client:
        response = client.request(method, URL)
        with client.stream(method, URL) as streamed:
            body = b"".join(streamed.iter_bytes())
    want = b"" if method == "HEAD" or status == 204 else b"from the mesh"
    assert (response.status_code, response.content, body) == (status, want, want)
    assert isinstance(response, api.m.Response)
    if want:
        assert response.headers["content-length"] == "13"
        assert response.headers["content-type"] == "text/plain"


def test_abort(api: Api, mesh: OpenMesh, one: Backend) -> None:
    mesh.listen(NAME, forward("reviews", fault=Fault(abort=FaultAbort(ALWAYS, http_status=418))))
    with api.client() as client:
        response = client.post(URL, content=api.parts([b"never", b"read"]))
    assert (response.status_code, response.text) == (418, "fault filter abort")
    assert (info(response).flag, one.requests) == ("FI", [])


def test_no_route_no_listener_no_endpoint(api: Api, mesh: OpenMesh) -> None:
    mesh.listen("empty:80", forward("empty"))
    mesh.endpoints("empty")
    mesh.listen("empty:80", forward("empty"))
    mesh.listen("routeless:80", forward("reviews", match=when("never", "sent")))
    mesh.listen("missing:80", forward("no-such-cluster"))
    gone = ListenerView("gone:80", absent="the control plane does not know gone:80")
    mesh.publish({**mesh.snapshot.listeners, "gone:80": gone})
    want = {
        "empty": (503, "UH", "no healthy upstream", NoHealthyUpstream),
        "routeless": (404, "NR", "", None),
        "missing": (503, "NC", "", None),
        "gone": (503, "NR", "the control plane does not know gone:80", ListenerNotFound),
    }
    with api.client() as client:
        for host, (status, flag, body, error) in want.items():
            response = client.get(f"http://{host}/")
            assert (response.status_code, response.text) == (status, body)
            assert info(response).flag == flag
            assert info(response).local
            if error is not None:
                assert isinstance(info(response).error, error)


def test_block_all(api: Api, mesh: OpenMesh) -> None:
    for port in (80, 443):
        mesh.listen(f"unknown:{port}", Route("block_all", ANY, DirectResponseAction(502)))
    with api.client() as client:
        assert client.get("http://unknown/").status_code == 502
        with pytest.raises(api.m.ConnectError, match="registry"):
            client.get("https://unknown/")


# --- what cannot be reached ------------------------------------------------------------------


def test_refused_connection_goes_to_another_endpoint(
    api: Api, mesh: OpenMesh, one: Backend
) -> None:
    mesh.endpoints("reviews", DEAD, one.target)
    mesh.listen(NAME, forward("reviews"))
    with api.client() as client:
        for _ in range(6):
            body = api.parts([b"one", b"two"])
            assert client.post(f"{URL}/echo", content=body).json()["body"] == "onetwo"


def test_no_endpoint_can_be_reached(api: Api, mesh: OpenMesh) -> None:
    mesh.endpoints("reviews", DEAD, "127.0.0.1:2")
    mesh.listen(NAME, forward("reviews"))
    with api.client() as client:
        response = client.get(URL)
    assert response.status_code == 503
    assert response.text.startswith("upstream connect error or disconnect/reset before headers")
    error = info(response).error
    assert isinstance(error, ConnectFailure)
    assert not error.sent
    assert (info(response).flag, info(response).cluster) == ("UF", "reviews")
    assert info(response).endpoint in (DEAD, "127.0.0.1:2")


def test_retries_of_the_client(api: Api, mesh: OpenMesh) -> None:
    """Where no other endpoint is left, `HTTPTransport(retries=...)` tries the same again."""
    late = Backend("late")
    mesh.endpoints("reviews", late.target)
    mesh.listen(NAME, forward("reviews"))
    late.shut()
    kind = api.m.Client if api.is_sync else api.m.AsyncClient
    client = kind(transport=api.transport(retries=2))
    try:
        began = time.monotonic()
        get = client.get if api.portal is None else partial(api.portal.call, client.get)
        assert get(URL).status_code == 503
        assert time.monotonic() - began >= 0.5
    finally:
        client.close() if api.portal is None else api.portal.call(client.aclose)


def test_connect_timeouts_are_whose_they_are(api: Api, mesh: OpenMesh) -> None:
    with _deaf_listener() as target:
        mesh.endpoints("reviews", target, connect_timeout=0.1)
        mesh.listen(NAME, forward("reviews"))
        mesh.endpoints("patient", target, connect_timeout=30)
        mesh.listen("patient:80", forward("patient"))
        mesh.listen("limited:80", forward("patient", timeout=0.1))
        with api.client(timeout=5) as client:
            response = client.get(URL)
            assert (response.status_code, info(response).flag) == (503, "UF")
            response = client.get("http://limited/")
            assert (response.status_code, info(response).flag) == (504, "UT")
            with pytest.raises(api.m.ConnectTimeout):
                client.get("http://patient/", timeout=api.m.Timeout(5, connect=0.1))


@contextlib.contextmanager
def _deaf_listener() -> Iterator[str]:
    """A listener whose queue is full, so that connecting to it takes for ever."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.05)
            if client.connect_ex(server.getsockname()):
                break
        yield "{}:{}".format(*server.getsockname())


def test_worn_connection_is_replaced_when_that_is_safe(
    api: Api, mesh: OpenMesh, one: Backend
) -> None:
    """The server hangs up on the second request of a connection, without an answer."""
    with api.client() as client:
        for method in ("GET", "PUT", "DELETE", "HEAD"):
            client.get(f"{URL}/last")
            assert client.request(method, f"{URL}/who", content=b"x").status_code == 200
        broken = (api.m.RemoteProtocolError, api.m.NetworkError)
        client.get(f"{URL}/last")
        with pytest.raises(broken):
            client.post(f"{URL}/who", content=b"x")
        client.get(f"{URL}/last")
        with pytest.raises(broken):
            client.put(f"{URL}/who", content=api.parts([b"x"]))
        assert client.get(f"{URL}/who").text == "one"


# --- time ------------------------------------------------------------------------------------


def test_route_timeout_before_the_head(api: Api, mesh: OpenMesh, one: Backend) -> None:
    mesh.listen(NAME, forward("reviews", timeout=0.15))
    with api.client() as client:
        began = time.monotonic()
        response = client.get(f"{URL}/slow")
        assert 0.14 < time.monotonic() - began < 2
        assert (response.status_code, response.text) == (504, "upstream request timeout")
        assert isinstance(info(response).error, RouteTimeout)
        assert (info(response).flag, info(response).error.sent) == ("UT", True)
        with pytest.raises(api.m.ReadTimeout):
            client.get(f"{URL}/slow", timeout=api.m.Timeout(5, read=0.05))
        one.release.set()
        assert client.get(URL).text == "one"


def test_route_timeout_in_the_body(api: Api, mesh: OpenMesh, one: Backend) -> None:
    mesh.listen(NAME, forward("reviews", timeout=0.2))
    with api.client() as client:
        with client.stream("GET", f"{URL}/stall") as response:
            assert response.status_code == 200
            with pytest.raises(api.m.RemoteProtocolError, match="upstream request timeout"):
                list(response.iter_bytes())
        one.release.set()


def test_route_timeout_does_not_count_the_upload(api: Api, mesh: OpenMesh) -> None:
    mesh.listen(NAME, forward("reviews", timeout=0.3))

    def slowly() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x"
            time.sleep(0.1)

    with api.client() as client:
        assert client.post(f"{URL}/echo", content=api.parts(slowly())).json()["body"] == "xxxxx"


def test_delay_lies_outside_the_route_timeout(api: Api, mesh: OpenMesh) -> None:
    fault = Fault(delay=FaultDelay(0.3, ALWAYS))
    mesh.listen(NAME, forward("reviews", timeout=0.2, fault=fault))
    with api.client() as client:
        began = time.monotonic()
        assert client.get(URL).text == "one"
        assert time.monotonic() - began >= 0.3


def test_delay_counts_for_the_callers_patience(api: Api, mesh: OpenMesh) -> None:
    mesh.listen(NAME, forward("reviews", fault=Fault(delay=FaultDelay(30.0, ALWAYS))))
    mesh.listen("short:80", forward("reviews", fault=Fault(delay=FaultDelay(0.3, ALWAYS))))
    with api.client(timeout=api.m.Timeout(5, read=0.5)) as client:
        began = time.monotonic()
        with pytest.raises(api.m.ReadTimeout):
            client.get(URL)
        assert 0.45 < time.monotonic() - began < 3
        began = time.monotonic()
        with pytest.raises(api.m.ReadTimeout):
            client.get("http://short/slow")
        assert 0.45 < time.monotonic() - began < 0.78
        assert client.get("http://short/who").text == "one"


def test_delayed_abort(api: Api, mesh: OpenMesh) -> None:
    fault = Fault(delay=FaultDelay(0.1, ALWAYS), abort=FaultAbort(ALWAYS, http_status=500))
    mesh.listen(NAME, forward("reviews", fault=fault))
    with api.client() as client:
        began = time.monotonic()
        assert client.get(URL).status_code == 500
        assert time.monotonic() - began >= 0.1


def test_not_ready_is_a_connect_timeout() -> None:
    mesh = WaitingMesh()
    for library, side in SIDES:
        api = Api("mesh", library, side, mesh, URL)
        timeout = api.m.Timeout(5, connect=0.1)
        with api.client(timeout=timeout) as client, pytest.raises(api.m.ConnectTimeout) as raised:
            client.get(URL)
        api.close()
        causes = []
        error: BaseException | None = raised.value
        while error is not None:
            causes.append(type(error))
            error = error.__cause__
        assert NotReady in causes


def test_waits_for_configuration(one: Backend) -> None:
    for library, side in SIDES:
        mesh = WaitingMesh()
        mesh.endpoints("reviews", one.target)
        api = Api("mesh", library, side, mesh, URL)
        timer = threading.Timer(0.1, lambda m=mesh: m.listen(NAME, forward("reviews")))
        timer.start()
        with api.client(timeout=api.m.Timeout(5)) as client:
            assert client.get(URL).text == "one"
        api.close()
        timer.join()


def test_closed_mesh() -> None:
    class Closed(StaticMesh):
        def wait_for(self, name: str, timeout: float | None = None) -> ListenerView:
            raise MeshClosed("the mesh is closed")

    with Api("mesh", "httpx", "sync", Closed(), URL).client() as client, pytest.raises(MeshClosed):
        client.get(URL)


# --- hosts that the mesh does not know -------------------------------------------------------


def test_unknown_hosts_go_out_unchanged(api: Api, one: Backend) -> None:
    carried = [("x-request-id", "abc")]
    with api.client() as client, propagation.serving(carried):
        response = client.get(f"http://{one.target}/echo")
        names = dict(response.json()["headers"])
        assert names["host"] == one.target
        assert "x-request-id" not in names
        assert "meshsdk" not in response.extensions


def test_bypass_is_plain_httpx(api: Api, mesh: OpenMesh, one: Backend) -> None:
    mesh.publish({}, bypass=True)
    with api.client() as client:
        assert client.get(f"http://{one.target}/who").text == "one"
        with pytest.raises(api.m.ConnectError):
            client.get("http://reviews.invalid/")


def test_delay_before_a_passthrough(api: Api, mesh: OpenMesh, one: Backend) -> None:
    fault = Fault(delay=FaultDelay(0.1, ALWAYS))
    mesh.listen(one.target, forward(PASSTHROUGH.name, fault=fault))
    with api.client() as client:
        began = time.monotonic()
        assert client.get(f"http://{one.target}/who").text == "one"
        assert time.monotonic() - began >= 0.1


def test_client_that_forbids_http1(api: Api) -> None:
    with (
        api.client(http1=False) as client,
        pytest.raises(api.m.UnsupportedProtocol, match="HTTP/1"),
    ):
        client.get(URL)


# --- https -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def _trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_https_is_balanced_and_verified_for_the_url(
    api: Api, mesh: OpenMesh, authority: trustme.CA
) -> None:
    server = _context(authority, "secure.example")
    with Backend("one", context=server) as one, Backend("two", context=server) as two:
        mesh.endpoints("secure", one.target, two.target)
        for port in (443, 8443):
            mesh.listen(f"secure.example:{port}", forward("secure"))
            mesh.listen(f"other.example:{port}", forward("secure"))
        with api.client(verify=_trusting(authority)) as client:
            names = {client.get("https://secure.example/who").text for _ in range(4)}
            assert names == {"one", "two"}
            seen = client.get("https://secure.example:8443/echo").json()
            assert ["host", "secure.example:8443"] in seen["headers"]
            with pytest.raises(api.m.ConnectError, match=r"(?i)hostname|certificate"):
                client.get("https://other.example/")
        with api.client() as client, pytest.raises(api.m.ConnectError, match=r"(?i)certificate"):
            client.get("https://secure.example/")
        assert one.accepted + two.accepted >= 3


def test_https_errors(api: Api, mesh: OpenMesh) -> None:
    mesh.endpoints("empty")
    mesh.endpoints("dead", DEAD)
    mesh.listen("empty:443", forward("empty"))
    mesh.listen("dead:443", forward("dead"))
    gone = ListenerView("gone:443", absent="the control plane does not know gone:443")
    mesh.publish({**mesh.snapshot.listeners, "gone:443": gone})
    with api.client() as client:
        for host in ("empty", "dead", "gone"):
            with pytest.raises(api.m.ConnectError):
                client.get(f"https://{host}/")


def test_https_elsewhere_is_plain_httpx(api: Api, authority: trustme.CA) -> None:
    with (
        Backend("one", context=_context(authority, "localhost")) as secure,
        api.client(verify=_trusting(authority)) as client,
    ):
        response = client.get(f"https://localhost:{secure.port}/who")
        assert (response.text, "meshsdk" in response.extensions) == ("one", False)


def test_overridden_verify_is_said_once(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "meshsdk.httpx"):
        for _ in range(2):
            with api.client(verify=False) as client:
                client.get(URL)
                client.get(URL)
        with api.client() as client:
            client.get(URL)
    assert [record.message.split(" do not")[0] for record in caplog.records] == [
        "verify= and cert="
    ]


# --- what is left behind ---------------------------------------------------------------------


def test_response_that_nobody_closes(api: Api, mesh: OpenMesh, one: Backend) -> None:
    """Dropped unread: its place is free again with the next request."""
    limits = api.m.Limits(max_connections=1)
    with api.client(limits=limits, timeout=api.m.Timeout(5, pool=1)) as client:
        response = client.send(client.build_request("GET", f"{URL}/big"), stream=True)
        assert response.status_code == 200
        del response
        gc.collect()
        assert client.get(f"{URL}/who").text == "one"
        assert api.pool_of(client).connections.counts == (0, 1, 0)


def test_counts_while_calls_are_under_way(api: Api, mesh: OpenMesh) -> None:
    view = mesh.snapshot.view(NAME)
    assert view is not None
    (state,) = view.clusters["reviews"].endpoints
    with api.client() as client:
        with client.stream("GET", f"{URL}/chunks") as response:
            assert state.active == 1
            response.read()
        assert state.active == 0
        with pytest.raises(api.m.RemoteProtocolError):
            client.get(f"{URL}/truncate")
        assert state.active == 0


def test_limits_shared_by_endpoints(api: Api, mesh: OpenMesh, one: Backend, two: Backend) -> None:
    """An idle connection to one endpoint makes room for one to another."""
    mesh.endpoints("reviews", one.target, two.target)
    mesh.listen(NAME, forward("reviews"))
    with api.client(limits=api.m.Limits(max_connections=1)) as client:
        assert sorted(client.get(URL).text for _ in range(4)) == ["one", "one", "two", "two"]
        assert api.pool_of(client).connections.counts == (0, 1, 0)
        assert one.open + two.open <= 2
