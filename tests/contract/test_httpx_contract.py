"""What users of httpx rely on: first on plain httpx and httpx2, then through the mesh.

Every test runs unchanged on both libraries, sync, under asyncio and under trio; plain, through
`meshsdk.httpx.Client`, and attached to an unchanged client.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import pytest

from tests.support.http_api import URL, Api, mesh_of
from tests.support.http_backend import BIG, Backend

WAYS = [
    (way, library, side)
    for way in ("raw", "mesh", "attached")
    for library in ("httpx", "httpx2")
    for side in ("sync", "asyncio", "trio")
    if (way, side) != ("attached", "trio")
]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend("one") as backend:
        yield backend


@pytest.fixture(params=WAYS, ids="-".join)
def api(request: pytest.FixtureRequest, backend: Backend) -> Iterator[Api]:
    way, library, side = request.param
    url = f"http://{backend.target}" if way == "raw" else URL
    api = Api(way, library, side, mesh_of(backend), url)
    yield api
    api.close()
    api.assert_released()


# --- requests and responses ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_methods_query_and_headers_arrive(api: Api, method: str) -> None:
    with api.client(headers={"x-client": "yes"}) as client:
        headers = [("X-Own", "a"), ("X-Own", "b"), ("X-Ünï".encode(), "ü".encode())][:2]
        response = client.request(
            method, f"{api.url}/echo", params={"q": "1 2", "ä": "ö"}, headers=headers
        )
    seen = response.json()
    assert response.status_code == 200
    assert response.http_version == "HTTP/1.1"
    assert response.reason_phrase == "OK"
    assert seen["method"] == method
    assert seen["path"].startswith("/echo?q=1")
    assert [v for k, v in seen["headers"] if k == "x-own"] == ["a", "b"]
    assert ["x-client", "yes"] in seen["headers"]
    assert ["host", api.url.removeprefix("http://")] in seen["headers"]


def test_json_form_and_bytes_bodies(api: Api) -> None:
    with api.client() as client:
        assert client.post(f"{api.url}/echo", json={"a": 1}).json()["body"] == '{"a":1}'
        assert client.post(f"{api.url}/echo", data={"a": "1"}).json()["body"] == "a=1"
        assert client.post(f"{api.url}/echo", content=b"raw").json()["body"] == "raw"


def test_response_details(api: Api) -> None:
    with api.client() as client:
        response = client.get(f"{api.url}/echo")
    assert response.headers["X-Backend"] == "one"
    assert (b"x-backend", b"one") in [(k.lower(), v) for k, v in response.headers.raw]
    assert str(response.url) == f"{api.url}/echo"
    assert str(response.request.url) == f"{api.url}/echo"
    assert response.elapsed.total_seconds() > 0
    assert response.is_closed
    assert response.num_bytes_downloaded == len(response.content)


@pytest.mark.parametrize("status", [204, 304, 404, 500, 503])
def test_statuses(api: Api, backend: Backend, status: int) -> None:
    with api.client() as client:
        for _ in range(2):
            response = client.get(f"{api.url}/status/{status}")
            assert (response.status_code, response.content) == (status, b"")
        if status >= 400:
            with pytest.raises(api.m.HTTPStatusError):
                response.raise_for_status()
    assert backend.accepted == 1


def test_head_has_no_body(api: Api, backend: Backend) -> None:
    with api.client() as client:
        response = client.head(f"{api.url}/big")
        assert response.headers["content-length"] == str(BIG)
        assert response.content == b""
        assert client.get(f"{api.url}/who").text == "one"
    assert backend.accepted == 1


def test_informational_responses_are_skipped(api: Api) -> None:
    with api.client() as client:
        assert client.get(f"{api.url}/hints").text == "after the hint"


def test_upgrade_hands_over_the_connection(api: Api) -> None:
    with api.client() as client:
        headers = {"connection": "upgrade", "upgrade": "echo"}
        with client.stream("GET", f"{api.url}/upgrade", headers=headers) as response:
            assert response.status_code == 101
            stream = response.extensions["network_stream"]
            if api.portal is None:
                assert stream.read(1000) == b"hello"
                stream.write(b"words")
                assert stream.read(1000) == b"WORDS"
            else:
                assert api.portal.call(stream.read, 1000) == b"hello"
                api.portal.call(stream.write, b"words")
                assert api.portal.call(stream.read, 1000) == b"WORDS"


def test_cookies_are_kept(api: Api) -> None:
    with api.client() as client:
        client.get(f"{api.url}/set-cookie")
        assert client.cookies["flavour"] == "oat"
        seen = client.get(f"{api.url}/echo").json()
        assert ["cookie", "flavour=oat"] in seen["headers"]


def test_redirects(api: Api) -> None:
    with api.client() as client:
        response = client.get(f"{api.url}/redirect/2")
        assert (response.status_code, response.has_redirect_location) == (302, True)
        assert str(response.next_request.url) == f"{api.url}/redirect/1"
        response = client.get(f"{api.url}/redirect/3", follow_redirects=True)
        assert (response.status_code, len(response.history)) == (200, 3)
        with pytest.raises(api.m.TooManyRedirects):
            client.get(f"{api.url}/redirect/30", follow_redirects=True)


def test_base_url(api: Api) -> None:
    with api.client(base_url=f"{api.url}/echo") as client:
        assert client.get("below?x=1").json()["path"] == "/echo/below?x=1"


# --- what sits above the transport -----------------------------------------------------------


def test_basic_auth(api: Api) -> None:
    with api.client(auth=("user", "secret")) as client:
        assert client.get(f"{api.url}/basic").text == "welcome"
        assert client.get(f"{api.url}/basic", auth=("user", "wrong")).status_code == 401


def test_digest_auth(api: Api) -> None:
    with api.client(auth=api.m.DigestAuth("user", "secret")) as client:
        response = client.get(f"{api.url}/digest")
        assert (response.status_code, len(response.history)) == (200, 1)


def test_auth_flow(api: Api) -> None:
    class Token(api.m.Auth):  # type: ignore[misc,name-defined]
        requires_response_body = True

        def auth_flow(self, request: Any) -> Any:
            response = yield request
            request.headers["x-token"] = response.json()["name"]
            yield request

    with api.client(auth=Token()) as client:
        assert ["x-token", "one"] in client.get(f"{api.url}/echo").json()["headers"]


def test_event_hooks(api: Api) -> None:
    seen: list[Any] = []
    hooks = {
        "request": [api.hook(lambda request: request.headers.__setitem__("x-hook", "1"))],
        "response": [api.hook(lambda response: seen.append(response.status_code))],
    }
    with api.client(event_hooks=hooks) as client:
        assert ["x-hook", "1"] in client.get(f"{api.url}/echo").json()["headers"]
    assert seen == [200]


def test_mounts_are_respected(api: Api) -> None:
    mock = api.m.MockTransport(lambda request: api.m.Response(418))
    with api.client(mounts={"http://elsewhere": mock}) as client:
        assert client.get("http://elsewhere/").status_code == 418
        assert client.get(f"{api.url}/who").text == "one"
    with api.client(mounts={"all://": mock}) as client:
        assert client.get(f"{api.url}/who").status_code == 418


def test_transport_is_respected(api: Api) -> None:
    mock = api.m.MockTransport(lambda request: api.m.Response(418))
    with api.client(transport=mock) as client:
        assert client.get(f"{api.url}/who").status_code == 418


def test_proxy_gets_what_goes_elsewhere(api: Api, backend: Backend) -> None:
    with api.client(proxy=f"http://{backend.target}") as client:
        response = client.get("http://elsewhere.invalid/echo")
    assert response.json()["path"] == "http://elsewhere.invalid/echo"


def test_own_transport(api: Api) -> None:
    kind = api.m.Client if api.is_sync else api.m.AsyncClient
    client = kind(transport=api.transport(retries=1, trust_env=False))
    if api.portal is None:
        with client:
            assert client.get(f"{api.url}/who").text == "one"
    else:
        with api.portal.wrap_async_context_manager(client):
            assert api.portal.call(client.get, f"{api.url}/who").text == "one"


def test_trace_extension(api: Api) -> None:
    events: list[str] = []
    trace = api.hook(lambda name, info: events.append(name))
    with api.client() as client:
        for _ in range(2):
            client.get(f"{api.url}/who", extensions={"trace": trace})
    first = events[: events.index("http11.response_closed.complete") + 1]
    steps = [
        "connection.connect_tcp",
        "http11.send_request_headers",
        "http11.send_request_body",
        "http11.receive_response_headers",
        "http11.receive_response_body",
        "http11.response_closed",
    ]
    assert first == [f"{step}.{state}" for step in steps for state in ("started", "complete")]
    assert "connection.connect_tcp.started" not in events[len(first) :]


def test_network_stream_extension(api: Api, backend: Backend) -> None:
    with api.client() as client, client.stream("GET", f"{api.url}/who") as response:
        stream = response.extensions["network_stream"]
        assert stream.get_extra_info("server_addr")[:2] == ("127.0.0.1", backend.port)
        assert response.extensions["http_version"] == b"HTTP/1.1"
        assert response.extensions["reason_phrase"] == b"OK"


def test_target_extension(api: Api) -> None:
    with api.client() as client:
        response = client.options(f"{api.url}/", extensions={"target": b"/echo/*"})
    assert response.json()["path"] == "/echo/*"


# --- streaming -------------------------------------------------------------------------------


def test_streaming_up(api: Api) -> None:
    with api.client() as client:
        body = api.parts([b"one ", b"", b"two"])
        seen = client.post(f"{api.url}/echo", content=body).json()
        assert seen["body"] == "one two"
        assert ["transfer-encoding", "chunked"] in seen["headers"]
        body = api.parts([b"x" * 100_000] * 10)
        seen = client.post(f"{api.url}/echo", content=body).json()
        assert len(seen["body"]) == 1_000_000


def test_upload_of_a_file(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"from disk")
    with api.client() as client, path.open("rb") as file:
        response = client.post(f"{api.url}/echo", files={"file": file})
        assert "from disk" in response.json()["body"]
        response = client.post(
            f"{api.url}/echo", data={"a": "b"}, files={"f": ("n", io.BytesIO(b"y" * 200_000))}
        )
        assert response.json()["body"].count("y") >= 200_000


def test_streaming_down(api: Api, backend: Backend) -> None:
    with api.client() as client:
        with client.stream("GET", f"{api.url}/chunks?n=5") as response:
            assert b"".join(response.iter_bytes()) == b"".join(b"part-%d" % n for n in range(5))
        with client.stream("GET", f"{api.url}/big") as response:
            assert sum(len(part) for part in response.iter_raw()) == BIG
        with client.stream("GET", f"{api.url}/who") as response:
            assert list(response.iter_lines()) == ["one"]
    assert backend.accepted == 1


def test_gzip(api: Api) -> None:
    with api.client() as client:
        assert client.get(f"{api.url}/gzip").text == "squeezed " * 100


def test_large_bodies_both_ways(api: Api) -> None:
    with api.client() as client:
        assert len(client.get(f"{api.url}/big").content) == BIG
        assert len(client.post(f"{api.url}/echo", content=b"z" * BIG).json()["body"]) == BIG


def test_body_that_ends_with_the_connection(api: Api, backend: Backend) -> None:
    with api.client() as client:
        assert client.get(f"{api.url}/until-close").text == "all there is"
        assert client.get(f"{api.url}/who").text == "one"
    assert backend.accepted == 2


def test_answer_before_the_body_is_read(api: Api) -> None:
    with api.client() as client:
        response = client.post(f"{api.url}/refuse-body", content=b"x" * 100)
        assert response.status_code == 413


def test_body_longer_than_announced(api: Api) -> None:
    with api.client() as client, pytest.raises(h11.LocalProtocolError):
        client.post(f"{api.url}/echo", content=b"too long", headers={"content-length": "3"})


def test_a_body_that_raises(api: Api) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"begun"
        raise KeyError("mine")

    with api.client() as client:
        with pytest.raises(KeyError, match="mine"):
            client.post(f"{api.url}/echo", content=api.parts(chunks()))
        assert client.get(f"{api.url}/who").text == "one"


# --- connections -----------------------------------------------------------------------------


def test_connections_are_reused(api: Api, backend: Backend) -> None:
    with api.client() as client:
        for _ in range(5):
            client.get(f"{api.url}/who")
    assert backend.accepted == 1
    backend.wait_for(lambda: backend.open == 0)


def test_server_that_closes_after_the_answer(api: Api, backend: Backend) -> None:
    with api.client() as client:
        for _ in range(3):
            assert client.get(f"{api.url}/close").text == "bye"
    assert backend.accepted == 3


def test_kept_connection_that_the_server_closed(api: Api, backend: Backend) -> None:
    with api.client() as client:
        client.get(f"{api.url}/who")
        backend.hang_up()
        backend.wait_for(lambda: backend.open == 0)
        assert client.post(f"{api.url}/echo", content=b"again").json()["body"] == "again"
    assert backend.accepted == 2


def test_keepalive_expiry(api: Api, backend: Backend) -> None:
    with api.client(limits=api.m.Limits(keepalive_expiry=0.02)) as client:
        client.get(f"{api.url}/who")
        time.sleep(0.05)
        client.get(f"{api.url}/who")
    assert backend.accepted == 2


def test_no_keepalive(api: Api, backend: Backend) -> None:
    with api.client(limits=api.m.Limits(max_keepalive_connections=0)) as client:
        client.get(f"{api.url}/who")
        backend.wait_for(lambda: backend.open == 0)
        client.get(f"{api.url}/who")
    assert backend.accepted == 2


def test_closing_the_client_closes_connections(api: Api, backend: Backend) -> None:
    with api.client() as client:
        client.get(f"{api.url}/who")
        assert backend.open == 1
    backend.wait_for(lambda: backend.open == 0)
    with pytest.raises(RuntimeError):
        client.get(f"{api.url}/who")


def test_closing_the_client_ends_what_streams(api: Api, backend: Backend) -> None:
    with api.client() as client:
        response = client.send(client.build_request("GET", f"{api.url}/stall"), stream=True)
        assert response.status_code == 200
    backend.release.set()
    backend.wait_for(lambda: backend.open == 0)
    response.close()


def test_unread_response_closes_its_connection(api: Api, backend: Backend) -> None:
    with api.client() as client:
        with client.stream("GET", f"{api.url}/big") as response:
            assert response.status_code == 200
        backend.wait_for(lambda: backend.open == 0)
        assert client.get(f"{api.url}/who").text == "one"


def test_half_read_response(api: Api, backend: Backend) -> None:
    with api.client() as client:
        with client.stream("GET", f"{api.url}/big") as response:
            next(iter(response.iter_bytes()))
        assert client.get(f"{api.url}/who").text == "one"
    assert backend.accepted == 2


def test_many_threads_or_tasks(api: Api, backend: Backend) -> None:
    answers: list[str] = []
    with api.client() as client:

        def work() -> None:
            for number in range(10):
                body = f"{threading.get_ident()}-{number}"
                seen = client.post(f"{api.url}/echo", content=body).json()["body"]
                answers.append("same" if seen == body else seen)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == ["same"] * 80
    assert backend.accepted <= 8


# --- limits and errors -----------------------------------------------------------------------


def test_read_timeout_before_the_head(api: Api, backend: Backend) -> None:
    with api.client(timeout=api.m.Timeout(5, read=0.1)) as client:
        began = time.monotonic()
        with pytest.raises(api.m.ReadTimeout) as raised:
            client.get(f"{api.url}/slow")
        assert 0.08 < time.monotonic() - began < 2
        assert str(raised.value.request.url) == f"{api.url}/slow"
        backend.release.set()
        assert client.get(f"{api.url}/who").text == "one"


def test_read_timeout_in_the_body(api: Api, backend: Backend) -> None:
    with api.client(timeout=api.m.Timeout(5, read=0.1)) as client:
        with pytest.raises(api.m.ReadTimeout):
            client.get(f"{api.url}/stall")
        with client.stream("GET", f"{api.url}/stall") as response, pytest.raises(api.m.ReadTimeout):
            list(response.iter_bytes())
        backend.release.set()
        assert client.get(f"{api.url}/who").text == "one"


def test_write_timeout(api: Api, backend: Backend) -> None:
    with api.client(timeout=api.m.Timeout(5, write=0.1)) as client:
        with pytest.raises(api.m.WriteTimeout):
            client.post(f"{api.url}/deaf", content=b"x" * 50_000_000)
        backend.release.set()
        assert client.get(f"{api.url}/who").text == "one"


def test_pool_timeout(api: Api, backend: Backend) -> None:
    limits = api.m.Limits(max_connections=1)
    timeout = api.m.Timeout(5, pool=0.1)
    with api.client(limits=limits, timeout=timeout) as client:
        with (
            client.stream("GET", f"{api.url}/chunks") as response,
            pytest.raises(api.m.PoolTimeout),
        ):
            client.get(f"{api.url}/who")
        assert response.status_code == 200
        assert client.get(f"{api.url}/who").text == "one"


def test_requests_wait_for_a_connection(api: Api, backend: Backend) -> None:
    with api.client(limits=api.m.Limits(max_connections=2)) as client:
        codes: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: codes.append(client.get(f"{api.url}/chunks").status_code)
            )
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes == [200] * 12
    assert backend.accepted == 2


def test_server_that_gives_no_answer(api: Api) -> None:
    with api.client() as client:
        with pytest.raises(api.m.RemoteProtocolError, match="disconnected"):
            client.get(f"{api.url}/abort")
        assert client.get(f"{api.url}/who").text == "one"


def test_truncated_answer(api: Api) -> None:
    with api.client() as client:
        with pytest.raises(api.m.RemoteProtocolError):
            client.get(f"{api.url}/truncate")
        assert client.get(f"{api.url}/who").text == "one"


def test_answer_that_is_no_http(api: Api) -> None:
    with api.client() as client, pytest.raises(api.m.RemoteProtocolError):
        client.get(f"{api.url}/garbage")


def test_header_that_is_not_allowed(api: Api) -> None:
    with api.client() as client:
        with pytest.raises(api.m.LocalProtocolError):
            client.get(f"{api.url}/who", headers={"x-bad": "a\nb"})
        assert client.get(f"{api.url}/who").text == "one"


def test_unsupported_protocol(api: Api) -> None:
    with api.client() as client, pytest.raises(api.m.UnsupportedProtocol):
        client.get("ftp://elsewhere/")


def test_unknown_name_is_a_connect_error(api: Api) -> None:
    with api.client() as client, pytest.raises(api.m.ConnectError):
        client.get("http://no-such-host.invalid/")


def test_refused_elsewhere_is_a_connect_error(api: Api) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with api.client() as client, pytest.raises(api.m.ConnectError):
            client.get(f"http://127.0.0.1:{port}/")
