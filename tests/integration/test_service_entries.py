"""Services outside the mesh, from Istio's YAML to a call: names, wildcards, TLS, TCP."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from meshsdk.mesh import Mesh
from meshsdk.model import DnsFamily
from tests.support.ads import wait_until
from tests.support.controlplane import ServedWorld
from tests.support.echo_grpc import EchoRequest, EchoServer, EchoStub
from tests.support.http_backend import Backend


class Names:
    """A resolver whose answers the test sets."""

    def __init__(self, **known: str) -> None:
        self.known: dict[str, tuple[str, ...] | OSError] = {}
        self.asked: list[str] = []
        self.threads: set[str] = set()

    def set(self, host: str, *addresses: str) -> None:
        self.known[host] = addresses

    def __call__(self, host: str, family: DnsFamily) -> tuple[tuple[str, ...], float | None]:
        self.asked.append(host)
        self.threads.add(threading.current_thread().name)
        found = self.known.get(host, ())
        if isinstance(found, OSError):
            raise found
        return found, 0.02


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def one() -> Iterator[Backend]:
    with Backend("one") as backend:
        yield backend


class World:
    """A control plane that serves these texts, and a mesh that asks it."""

    def __init__(self, names: Names, *texts: str) -> None:
        self.served = ServedWorld(*texts)
        self.names = names

    def __enter__(self) -> Mesh:
        self.served.__enter__()
        address = f"127.0.0.1:{self.served.port}"
        self.mesh = Mesh(control_plane=address, namespace="default", resolve=self.names)
        return self.mesh

    def __exit__(self, *_exc: object) -> None:
        self.mesh.close()
        self.served.__exit__(None, None, None)


def entry(
    host: str, resolution: str, port: int, *, number: int = 80, protocol: str = "HTTP", **more: Any
) -> str:
    lines = "\n".join(f"  {name}: {value}" for name, value in more.items())
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: entry-{number}, namespace: default}}
spec:
  hosts: ["{host}"]
  location: MESH_EXTERNAL
  resolution: {resolution}
  ports: [{{number: {number}, name: port, protocol: {protocol}, targetPort: {port}}}]
{lines}
---
"""


def rule(host: str, tls: str) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: tls, namespace: default}}
spec:
  host: "{host}"
  trafficPolicy:
    tls: {tls}
---
"""


def get(mesh: Mesh, url: str, side: str = "sync", **options: Any) -> httpx.Response:
    if side == "sync":
        with httpx.Client(transport=mesh.transport(**options), timeout=20) as client:
            return client.get(url)

    async def call() -> httpx.Response:
        transport = mesh.async_transport(**options)
        async with httpx.AsyncClient(transport=transport, timeout=20) as client:
            return await client.get(url)

    return asyncio.run(call())


BOTH = pytest.mark.parametrize("side", ["sync", "async"])


# --- names -----------------------------------------------------------------------------------


@BOTH
def test_dns(names: Names, one: Backend, side: str) -> None:
    names.set("api.example", "127.0.0.1")
    with World(names, entry("api.example", "DNS", one.port)) as mesh:
        answer = get(mesh, "http://api.example/who", side)
        assert (answer.text, answer.extensions["meshsdk"].endpoint) == ("one", one.target)
        assert answer.extensions["meshsdk"].cluster == "outbound|80||api.example"
    assert names.threads == {"meshsdk-dns"}
    count = len(names.asked)
    wait_until(lambda: not any(t.name == "meshsdk-dns" for t in threading.enumerate()))
    assert len(names.asked) == count


def test_every_address_of_every_endpoint(names: Names) -> None:
    endpoints = "[{address: a.example}, {address: b.example}, {address: 127.0.0.4}]"
    names.set("a.example", "127.0.0.1", "127.0.0.2")
    names.set("b.example", "127.0.0.3")
    with World(names, entry("api.example", "DNS", 1, endpoints=endpoints)) as mesh:
        get(mesh, "http://api.example/")
        assert _targets(mesh) == {f"127.0.0.{n}:1" for n in (1, 2, 3, 4)}


def _targets(mesh: Mesh) -> set[str]:
    view = mesh.snapshot.view("api.example:80")
    assert view is not None
    return {state.target for made in view.clusters.values() for state in made.endpoints}


def test_addresses_follow_the_name_and_outlive_a_failure(names: Names) -> None:
    names.set("api.example", "127.0.0.1")
    with World(names, entry("api.example", "DNS", 1)) as mesh:
        get(mesh, "http://api.example/")
        names.set("api.example", "127.0.0.2", "127.0.0.3")
        wait_until(lambda: _targets(mesh) == {"127.0.0.2:1", "127.0.0.3:1"})
        names.known["api.example"] = OSError(5, "no answer")
        count = len(names.asked)
        wait_until(lambda: len(names.asked) > count)
        assert _targets(mesh) == {"127.0.0.2:1", "127.0.0.3:1"}


def test_one_address_at_a_time(names: Names) -> None:
    names.set("api.example", "127.0.0.2", "127.0.0.1")
    with World(names, entry("api.example", "DNS_ROUND_ROBIN", 1)) as mesh:
        get(mesh, "http://api.example/")
        assert _targets(mesh) == {"127.0.0.2:1"}


def test_a_host_without_address_is_no_healthy_upstream(names: Names) -> None:
    with World(names, entry("api.example", "DNS", 1)) as mesh:
        answer = get(mesh, "http://api.example/")
        assert (answer.status_code, answer.text) == (503, "no healthy upstream")


@BOTH
def test_a_wildcard_is_looked_up_for_each_host(names: Names, one: Backend, side: str) -> None:
    names.set("a.wild.example", "127.0.0.1")
    names.set("b.wild.example", "127.0.0.1")
    number = one.port  # such a cluster goes to the port that is called
    text = entry("*.wild.example", "DYNAMIC_DNS", number, number=number)
    with World(names, text) as mesh:
        for host in ("a", "b"):
            answer = get(mesh, f"http://{host}.wild.example:{number}/echo", side)
            seen = answer.json()
            assert ["host", f"{host}.wild.example:{number}"] in seen["headers"]
        answer = get(mesh, f"http://c.wild.example:{number}/", side)
        assert (answer.status_code, answer.text) == (503, "DNS resolution failure")
        assert answer.extensions["meshsdk"].flag == "DF"
    assert set(names.asked) == {"a.wild.example", "b.wild.example", "c.wild.example"}


def test_rules_apply_where_the_caller_was_going(names: Names, one: Backend) -> None:
    names.set("api.example", "127.0.0.1")
    number = one.port
    rules = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api, namespace: default}
spec:
  hosts: [api.example]
  http:
  - headers: {request: {set: {x-rule: "yes"}}}
    route: [{destination: {host: api.example}}]
---
"""
    text = entry("api.example", "NONE", number, number=number)
    with World(names, text, rules) as mesh:
        answer = get(mesh, f"http://api.example:{number}/echo")
        assert ["x-rule", "yes"] in answer.json()["headers"]
        assert answer.extensions["meshsdk"].endpoint == one.target


# --- TLS -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def roots(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Backend]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.example").configure_cert(context)
    with Backend("secure", context=context) as backend:
        yield backend


@BOTH
def test_http_to_a_host_that_wants_tls(
    names: Names, secure: Backend, roots: Path, side: str
) -> None:
    names.set("api.example", "127.0.0.1")
    text = entry("api.example", "DNS", secure.port)
    with World(names, text, rule("api.example", f"{{mode: SIMPLE, caCertificates: {roots}}}")) as m:
        assert get(m, "http://api.example/who", side).text == "secure"
    with World(names, text, rule("api.example", "{mode: SIMPLE}")) as mesh:
        assert get(mesh, "http://api.example/who", side).status_code == 503
    wrong = f"{{mode: SIMPLE, caCertificates: {roots}, subjectAltNames: [other.example]}}"
    with World(names, text, rule("api.example", wrong)) as mesh:
        assert get(mesh, "http://api.example/who", side).status_code == 503
    assert secure.requests == ["GET /who"]


def test_tls_by_a_secret_that_clients_do_not_have_is_refused(names: Names, one: Backend) -> None:
    names.set("api.example", "127.0.0.1")
    text = entry("api.example", "DNS", one.port)
    secret = rule("api.example", "{mode: SIMPLE, credentialName: secret}")
    with World(names, text, secret) as mesh:
        answer = get(mesh, "http://api.example/who")
        assert (answer.status_code, one.requests) == (503, [])


def test_grpc_to_a_host_that_wants_tls(names: Names, authority: trustme.CA, roots: Path) -> None:
    cert = authority.issue_cert("api.example")
    pair = cert.private_key_pem.bytes(), cert.cert_chain_pems[0].bytes()
    names.set("api.example", "127.0.0.1")
    with EchoServer("secure", credentials=grpc.ssl_server_credentials([pair])) as server:
        text = entry("api.example", "DNS", server.port, protocol="GRPC")
        tls = rule("api.example", f"{{mode: SIMPLE, caCertificates: {roots}}}")
        with World(names, text, tls) as mesh, mesh.channel("api.example:80") as channel:
            assert EchoStub(channel).Unary(EchoRequest(), timeout=20).server == "secure"


TLS_ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api, namespace: default}
spec:
  hosts: [api.example, other.example]
  tls:
  - match: [{port: 443, sniHosts: [other.example]}]
    route: [{destination: {host: nowhere.example}}]
  - match: [{port: 443, sniHosts: [api.example]}]
    route: [{destination: {host: real.example, port: {number: 8443}}}]
---
"""


@BOTH
def test_https_goes_by_its_server_name(
    names: Names, authority: trustme.CA, secure: Backend, side: str
) -> None:
    names.set("real.example", "127.0.0.1")
    names.set("api.example", "127.0.0.9")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    here = entry("api.example", "DNS", 443, number=443, protocol="TLS")
    real = entry("real.example", "DNS", secure.port, number=8443, protocol="TLS")
    with World(names, here, real, TLS_ROUTES) as mesh:
        assert get(mesh, "https://api.example/who", side, verify=trusting).text == "secure"
    assert secure.requests == ["GET /who"]


REGISTRY_ONLY = """
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: mesh, namespace: istio-system}
spec: {meshConfig: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}}
---
"""


@BOTH
def test_only_registered_hosts(names: Names, one: Backend, side: str) -> None:
    with World(names, REGISTRY_ONLY) as mesh:
        with pytest.raises(httpx.ConnectError, match="not in the registry"):
            get(mesh, f"https://127.0.0.1:{one.port}/", side)
        assert get(mesh, f"http://127.0.0.1:{one.port}/", side).status_code == 502
        with pytest.raises(ConnectionRefusedError, match="not in the registry"):
            mesh.create_connection(("127.0.0.1", one.port), 20)


# --- TCP -------------------------------------------------------------------------------------


def test_tcp(names: Names) -> None:
    names.set("db.example", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with World(names, entry("db.example", "DNS", port, number=5432, protocol="TCP")) as mesh:
            with mesh.create_connection(("db.example", 5432), 20) as made:
                accepted, _ = listening.accept()
                accepted.sendall(b"hello")
                assert made.recv(10) == b"hello"
                accepted.close()

            async def call() -> bytes:
                reader, writer = await mesh.open_connection("db.example", 5432)
                accepted, _ = await asyncio.to_thread(listening.accept)
                accepted.sendall(b"hello")
                found = await reader.read(10)
                accepted.close()
                writer.close()
                await writer.wait_closed()
                return found

            assert asyncio.run(call()) == b"hello"


# --- processes -------------------------------------------------------------------------------

FORKING = """
import os, sys
from meshsdk.mesh import Mesh

asked = []

def resolve(host, family):
    asked.append(os.getpid())
    return ["127.0.0.1"], 0.02

def targets(mesh):
    view = mesh.wait_for("api.example:80", 20)
    return {state.target for made in view.clusters.values() for state in made.endpoints}

mesh = Mesh(control_plane=sys.argv[1], namespace="default", resolve=resolve)
assert targets(mesh) == {"127.0.0.1:1"}
child = os.fork()
if not child:
    assert targets(mesh) == {"127.0.0.1:1"}
    assert os.getpid() in asked
    mesh.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert targets(mesh) == {"127.0.0.1:1"}
mesh.close()
"""


def test_a_child_looks_up_for_itself(names: Names) -> None:
    with ServedWorld(entry("api.example", "DNS", 1)) as served:
        command = [sys.executable, "-c", FORKING, served.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_lookup_that_hangs_keeps_nobody_from_closing(names: Names) -> None:
    go = threading.Event()

    def hang(host: str, family: DnsFamily) -> Any:
        go.wait(60)
        return ["127.0.0.1"], None

    with ServedWorld(entry("api.example", "DNS", 1)) as served:
        mesh = Mesh(control_plane=served.address, namespace="default", resolve=hang)
        with pytest.raises(TimeoutError):
            mesh.wait_for("api.example:80", 0.5)
        mesh.close()
        assert not any(t.name == "meshsdk-xds" for t in threading.enumerate())
    go.set()
    wait_until(lambda: not any(t.name == "meshsdk-dns" for t in threading.enumerate()))
