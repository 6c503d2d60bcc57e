"""How calls and servers find the names of their listeners."""

from __future__ import annotations

import pytest

from meshsdk.model import Listener
from meshsdk.xds.naming import ByName, Naming, split_authority

NAMING: Naming = ByName("shop", "cluster.local", "xds.istio.io/grpc/lds/inbound/%s")


@pytest.mark.parametrize(
    ("authority", "port", "name"),
    [
        ("reviews:9080", 80, "reviews.shop.svc.cluster.local:9080"),
        ("Reviews", 80, "reviews.shop.svc.cluster.local:80"),
        ("reviews.default:9080", 80, "reviews.default:9080"),
        ("API.example.com", 443, "api.example.com:443"),
        ("api.example.com.:8443", 443, "api.example.com:8443"),
        ("localhost:1", 80, "localhost:1"),
        ("10.0.0.1", 80, "10.0.0.1:80"),
        ("[::1]:8080", 80, "[::1]:8080"),
        ("[0:0::1]", 80, "[::1]:80"),
        ("::1", 80, "[::1]:80"),
        ("reviews:", 80, "reviews.shop.svc.cluster.local:80"),
    ],
)
def test_listener_of_a_call(authority: str, port: int, name: str) -> None:
    assert NAMING.listener_name(authority, port) == name


@pytest.mark.parametrize(
    "authority",
    [
        "",
        ":80",
        "a:x",
        "a:0",
        "a:65536",
        "[::1",
        "[::1]x",
        "a/b",
        "user@a",
        "a b",
        ".",
        "::zz",
        "a:²",
    ],
)
def test_what_is_no_authority(authority: str) -> None:
    with pytest.raises(ValueError):
        split_authority(authority)


def test_listener_of_a_server() -> None:
    name = NAMING.server_listener_name("10.0.0.1:9080")
    assert name == "xds.istio.io/grpc/lds/inbound/10.0.0.1:9080"
    assert ByName("shop").server_listener_name("10.0.0.1:9080") == ""


def test_what_a_listener_leads_to() -> None:
    assert NAMING.listener_resource("a:80") == "a:80"
    assert NAMING.route_resource("a:80", Listener("a:80", route_config_name="r")) == "r"
