"""Calls by http:// and plain gRPC to clusters whose endpoints want TLS: the mesh begins it."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from meshsdk.errors import ConnectFailure
from meshsdk.matching import StringKind, StringMatch
from meshsdk.model import (
    SYSTEM_ROOTS,
    ClusterKind,
    NameKind,
    PeerName,
    Pem,
    SocketMatch,
    UpstreamTls,
)
from tests.support.echo_grpc import EchoServer
from tests.support.grpc_clients import NAME as GRPC_NAME
from tests.support.grpc_clients import Client
from tests.support.http_api import NAME, URL, Api, OpenMesh
from tests.support.http_backend import Backend
from tests.support.static_mesh import forward

SERVER = "reviews.example"
SIDES = [("httpx", "sync"), ("httpx", "asyncio"), ("httpx2", "sync"), ("httpx2", "asyncio")]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.pem`, and `client.pem` with `client.key`."""
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    mine = authority.issue_cert("client.example")
    mine.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    mine.private_key_pem.write_to_path(str(folder / "client.key"))
    return folder


@pytest.fixture
def tls(files: Path) -> UpstreamTls:
    return UpstreamTls(sni=SERVER, roots=Pem(str(files / "ca.pem")), names=(exactly(SERVER),))


def exactly(name: str, kind: NameKind = NameKind.DNS) -> PeerName:
    return PeerName(kind, StringMatch(StringKind.EXACT, name))


def server_context(
    authority: trustme.CA, *names: str, ask: bool = False, seen: list[Any] | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    if seen is not None:
        context.sni_callback = lambda _socket, name, _context: seen.append(name)
    return context


# --- HTTP ------------------------------------------------------------------------------------


@pytest.fixture(params=SIDES, ids="-".join)
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    library, side = request.param
    api = Api("mesh", library, side, OpenMesh(), URL)
    yield api
    api.close()
    api.assert_released()


def listen(api: Api, backend: Backend, **cluster: Any) -> None:
    api.mesh.endpoints("secure", backend.target, **cluster)
    api.mesh.listen(NAME, forward("secure"))


def test_http_goes_out_in_tls(api: Api, authority: trustme.CA, tls: UpstreamTls) -> None:
    names: list[Any] = []
    with Backend("one", context=server_context(authority, SERVER, seen=names)) as one:
        listen(api, one, tls=tls)
        with api.client() as client:
            seen = client.get(f"{URL}/echo").json()
            assert client.get(f"{URL}/who").text == "one"
        assert ["host", NAME] in seen["headers"]
        assert (names, one.accepted) == ([SERVER], 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"names": (exactly("other.example"),)}, "is for reviews.example, not for other.example"),
        ({"roots": SYSTEM_ROOTS, "names": ()}, "(?i)certificate verify failed"),
        ({"roots": Pem("/no/such/file.pem")}, "/no/such/file.pem"),
        ({"sni": "other.example", "names": (), "verify_sni": True}, "not for other.example"),
    ],
)
def test_an_endpoint_that_is_not_who_it_should_be_gets_nothing(
    api: Api, authority: trustme.CA, tls: UpstreamTls, change: dict[str, Any], problem: str
) -> None:
    fields = {name: getattr(tls, name) for name in ("sni", "roots", "names")} | change
    with Backend("one", context=server_context(authority, SERVER)) as one:
        listen(api, one, tls=UpstreamTls(**fields))
        with api.client() as client:
            answer = client.get(URL)
        error = answer.extensions["meshsdk"].error
        assert (answer.status_code, type(error), one.requests) == (503, ConnectFailure, [])
        assert error.cluster == "secure"
        with pytest.raises(ConnectFailure, match=problem):
            raise error


def test_plain_text_is_no_way_out(api: Api, tls: UpstreamTls) -> None:
    with Backend("plain") as plain:
        listen(api, plain, tls=tls)
        with api.client() as client:
            assert client.get(URL).status_code == 503
        assert plain.requests == []


def test_without_authorities_nothing_is_verified(api: Api, authority: trustme.CA) -> None:
    """As Envoy does without a validation context."""
    with Backend("one", context=server_context(authority, "whoever")) as one:
        listen(api, one, tls=UpstreamTls())
        with api.client() as client:
            assert client.get(f"{URL}/who").text == "one"


@pytest.mark.parametrize(
    ("tls", "host", "name"),
    [
        (UpstreamTls(sni_of_host=True, sni="other"), "called.example:9080", "called.example"),
        (UpstreamTls(sni_of_host=True, sni="other"), "10.0.0.1", "other"),
        (UpstreamTls(), "called.example", None),
    ],
)
def test_server_name(
    api: Api, authority: trustme.CA, tls: UpstreamTls, host: str, name: str | None
) -> None:
    names: list[Any] = []
    with Backend("one", context=server_context(authority, SERVER, seen=names)) as one:
        listen(api, one, tls=tls)
        with api.client() as client:
            client.get(URL, headers={"host": host})
    assert names == [name]


def test_connections_are_not_shared_by_names(api: Api, authority: trustme.CA) -> None:
    names: list[Any] = []
    with Backend("one", context=server_context(authority, SERVER, seen=names)) as one:
        listen(api, one, tls=UpstreamTls(sni_of_host=True))
        with api.client() as client:
            for host in ("a.example", "b.example", "a.example"):
                client.get(URL, headers={"host": host})
    assert names == ["a.example", "b.example"]


def test_both_sides_show_certificates(
    api: Api, authority: trustme.CA, files: Path, tls: UpstreamTls
) -> None:
    chain, key = files / "client.pem", files / "client.key"
    inline = Pem(content=chain.read_bytes()), Pem(content=key.read_bytes())
    by_file = Pem(str(chain)), Pem(str(key))
    with Backend("one", context=server_context(authority, SERVER, ask=True)) as one:
        for certificate, private in (by_file, inline):
            mutual = UpstreamTls(SERVER, roots=tls.roots, certificate=certificate, key=private)
            listen(api, one, tls=mutual)
            with api.client() as client:
                assert client.get(f"{URL}/who").text == "one"


def test_only_matching_endpoints(api: Api, authority: trustme.CA, tls: UpstreamTls) -> None:
    """Envoy `transport_socket_matches`: none of the endpoints here has the label."""
    matches = (SocketMatch({"tlsMode": "istio"}, tls), SocketMatch({}, None))
    with Backend("plain") as plain:
        listen(api, plain, sockets=matches, tls=tls)
        with api.client() as client:
            assert client.get(f"{URL}/who").text == "plain"


def test_a_cluster_that_begins_tls_leaves_its_plain_connections(
    api: Api, authority: trustme.CA, tls: UpstreamTls
) -> None:
    with Backend("plain") as plain:
        listen(api, plain)
        with api.client() as client:
            assert client.get(f"{URL}/who").text == "plain"
            listen(api, plain, tls=tls)
            assert client.get(f"{URL}/who").status_code == 503
        assert plain.requests == ["GET /who"]


def test_an_original_destination_that_wants_tls_is_never_passed_through(
    api: Api, tls: UpstreamTls
) -> None:
    api.mesh.endpoints("secure", tls=tls, kind=ClusterKind.ORIGINAL_DST)
    api.mesh.listen(NAME, forward("secure"))
    with api.client() as client:
        assert client.get(URL).extensions["meshsdk"].flag == "UH"


def test_the_tls_of_the_application_is_the_only_one(
    api: Api, authority: trustme.CA, tls: UpstreamTls
) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with Backend("one", context=server_context(authority, SERVER)) as one:
        api.mesh.endpoints("secure", one.target, tls=tls)
        api.mesh.listen(f"{SERVER}:443", forward("secure"))
        with api.client(verify=trusting) as client:
            assert client.get(f"https://{SERVER}/who").text == "one"


# --- gRPC ------------------------------------------------------------------------------------


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def echo(authority: trustme.CA) -> Iterator[EchoServer]:
    cert = authority.issue_cert(SERVER)
    pair = cert.private_key_pem.bytes(), cert.cert_chain_pems[0].bytes()
    with EchoServer("secure", credentials=grpc.ssl_server_credentials([pair])) as made:
        yield made


def grpc_listen(client: Client, server: EchoServer, *hosts: str, **cluster: Any) -> None:
    client.mesh.endpoints("secure", server.target, **cluster)
    client.mesh.listen(GRPC_NAME, forward("secure"))


def test_grpc_goes_out_in_tls(client: Client, echo: EchoServer, tls: UpstreamTls) -> None:
    grpc_listen(client, echo, tls=tls)
    reply = client.unary()
    # The core compares the authority with the certificate's names, which have no port.
    assert (reply.server, reply.authority) == ("secure", "reviews")
    for method in ("Down", "Both"):
        assert client.outcome(method, *_arguments(method))[0] is grpc.StatusCode.OK


def _arguments(method: str) -> list[Any]:
    from tests.support.echo_grpc import EchoRequest

    message = EchoRequest(text="x", count=1)
    return [iter([message])] if method == "Both" else [message]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"names": (exactly("other.example"),)}, "checks, other.example, instead of"),
        ({"names": (exactly("spiffe://a/b", NameKind.URI),)}, "only, not spiffe://a/b; calls fail"),
        ({"roots": None, "names": ()}, "cannot leave certificates unverified"),
        ({"roots": Pem("/no/such/file.pem")}, "/no/such/file.pem cannot be read"),
        ({"min_version": "TLSv1_3"}, "cannot insist on TLS 1.3"),
    ],
)
def test_grpc_fails_where_it_cannot_check(
    client: Client,
    echo: EchoServer,
    tls: UpstreamTls,
    change: dict[str, Any],
    problem: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fields = {name: getattr(tls, name) for name in ("sni", "roots", "names")} | change
    calls = echo.calls
    grpc_listen(client, echo, tls=UpstreamTls(**fields))
    with caplog.at_level(logging.WARNING, "meshsdk.grpc"):
        error = client.failure()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error.__cause__, ConnectFailure)
    assert echo.calls == calls
    (message,) = (record.message for record in caplog.records)
    assert message.startswith("cluster secure: TLS: ")
    assert problem in message


def test_grpc_shows_its_certificate(
    client: Client, authority: trustme.CA, files: Path, tls: UpstreamTls
) -> None:
    cert = authority.issue_cert(SERVER)
    pair = cert.private_key_pem.bytes(), cert.cert_chain_pems[0].bytes()
    asking = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), True)
    chain, key = Pem(str(files / "client.pem")), Pem(str(files / "client.key"))
    mutual = UpstreamTls(SERVER, roots=tls.roots, certificate=chain, key=key)
    with EchoServer("asking", credentials=asking) as server:
        grpc_listen(client, server, tls=mutual)
        assert client.unary().server == "asking"


def test_a_grpc_channel_that_begins_tls_leaves_its_plain_connections(
    client: Client, tls: UpstreamTls
) -> None:
    with EchoServer("plain") as plain:
        grpc_listen(client, plain)
        assert client.unary().server == "plain"
        grpc_listen(client, plain, tls=tls)
        if client.kind == "aio":
            client.run(_turn())  # the news is brought to the loop
        assert client.failure().code() is grpc.StatusCode.UNAVAILABLE
        assert plain.calls == 1


async def _turn() -> None:
    pass


def test_grpc_with_credentials_of_its_own_is_opaque(
    client: Client, authority: trustme.CA, echo: EchoServer, tls: UpstreamTls
) -> None:
    """No rule of a route applies, and no TLS of the mesh is put around it."""
    host = f"{SERVER}:9443"
    client.mesh.endpoints("secure", echo.target, tls=tls)
    client.mesh.listen(host, forward("nowhere"), forward("secure", timeout=0.001))
    client.open(host, credentials=grpc.ssl_channel_credentials(authority.cert_pem.bytes()))
    assert client.unary(delay=0.01).server == "secure"
