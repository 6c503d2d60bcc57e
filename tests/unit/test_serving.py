"""Which ports are registered, and what the environment may say about it."""

from __future__ import annotations

import pytest

from meshsdk.attach.servers import ports_of_sockets
from meshsdk.errors import ConfigurationError
from meshsdk.grpc_server import port_of
from meshsdk.serving import Port, Serving, drain_of, numeric, ports_of


@pytest.mark.parametrize(
    ("environ", "ports"),
    [
        ({}, ()),
        ({"MESHSDK_PORT": "9080"}, (Port(9080, "http", "http"),)),
        (
            {"MESHSDK_PORTS": "http:9080, grpc-ratings:9081,"},
            (Port(9080, "http", "http"), Port(9081, "grpc-ratings", "grpc")),
        ),
        ({"MESHSDK_PORTS": "9000", "MESHSDK_PORT": "1"}, (Port(9000, "http", "http"),)),
    ],
)
def test_ports_of_the_environment(environ: dict[str, str], ports: tuple[Port, ...]) -> None:
    assert ports_of(environ) == ports


@pytest.mark.parametrize("text", ["http", "http:", "http:0", "http:65536", "http:x", "-1", "1:2:x"])
def test_a_wrong_port_is_said(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"MESHSDK_PORTS: .* is not a port; give name:n"):
        ports_of({"MESHSDK_PORTS": text})


def test_the_drain_time() -> None:
    assert drain_of({}) == 1.0
    assert drain_of({"MESHSDK_DRAIN": "0"}) == 0.0
    assert drain_of({"MESHSDK_DRAIN": "2.5"}) == 2.5


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "3600"])
def test_a_wrong_drain_time_is_said(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"MESHSDK_DRAIN is .*; give seconds"):
        drain_of({"MESHSDK_DRAIN": text})


def test_named_ports_leave_the_others_out() -> None:
    serving = Serving(None, {"MESHSDK_PORTS": "http-web:9080"})
    assert serving.wanted(Port(9080, address="10.0.0.1")) == Port(
        9080, "http-web", "http", "10.0.0.1"
    )
    assert serving.wanted(Port(9090)) is None
    assert Serving(None, {}).wanted(Port(9090)) == Port(9090)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.3", "127.0.0.3"),
        ("0.0.0.0", "0.0.0.0"),
        ("[::1]", "::1"),
        ("::", "::"),
        ("localhost", "127.0.0.1"),
        ("web.example.com", ""),
        ("", ""),
    ],
)
def test_the_address_that_a_server_is_bound_to(host: str, address: str) -> None:
    assert numeric(host) == address


@pytest.mark.parametrize(
    ("target", "port"),
    [
        ("127.0.0.2:0", Port(50051, "grpc", "grpc", "127.0.0.2")),
        ("[::]:50051", Port(50051, "grpc", "grpc", "::")),
        ("localhost:50051", Port(50051, "grpc", "grpc", "127.0.0.1")),
        ("dns:///127.0.0.1:50051", Port(50051, "grpc", "grpc", "127.0.0.1")),
        ("ipv4:0.0.0.0:50051", Port(50051, "grpc", "grpc", "0.0.0.0")),
        ("unix:/tmp/x", None),
        ("unix-abstract:x", None),
    ],
)
def test_the_port_of_a_grpc_address(target: str, port: Port | None) -> None:
    assert port_of(target, 50051) == port


def test_unix_sockets_are_not_registered() -> None:
    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        number = tcp.getsockname()[1]
        assert ports_of_sockets([tcp, tcp, unix]) == [Port(number, address="127.0.0.1")]
