"""Listener into a frozen value."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401
    http_connection_manager_pb2,
)
from google.protobuf import any_pb2, json_format

from meshsdk.errors import InvalidResource
from meshsdk.matching import Fraction
from meshsdk.model import Fault, FaultAbort, Listener
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import LISTENER
from tests.support.resources import listener, route

Json = dict[str, Any]
_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
HCM = (
    "type.googleapis.com/"
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
RDS: Json = {"rds": {"route_config_name": "r", "config_source": {"ads": {}}}}
ROUTER: Json = {"name": "router", "typed_config": {"@type": f"{_HTTP}.router.v3.Router"}}


def decode(message: listener_pb2.Listener) -> Listener:
    found = DECODERS[LISTENER].decode(message, [])
    assert isinstance(found, Listener)
    return found


def manager(fields: Json) -> listener_pb2.Listener:
    config = {"name": "l", "api_listener": {"api_listener": {"@type": HCM, **fields}}}
    return json_format.ParseDict(config, listener_pb2.Listener())


def other_filter(name: str = "other", **fields: Any) -> Json:
    return {
        "name": name,
        "typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}},
        **fields,
    }


def fault_filter(**fields: Any) -> Json:
    config = {"@type": f"{_HTTP}.fault.v3.HTTPFault", "abort": {"http_status": 500}}
    return {"name": "fault", "typed_config": config, **fields}


def test_routes_by_name() -> None:
    found = decode(
        manager(
            {
                "rds": {"route_config_name": "r", "config_source": {"self": {}}},
                "common_http_protocol_options": {"max_stream_duration": "3s"},
                "http_filters": [fault_filter(), other_filter(is_optional=True), ROUTER],
            }
        )
    )
    fault = Fault(abort=FaultAbort(Fraction(0), http_status=500))
    assert found == Listener("l", None, "r", 3.0, fault)


def test_routes_inline() -> None:
    found = decode(listener("l", [route("c")]))
    assert found.route_config is not None
    assert found.route_config.cluster_names == {"c"}
    assert (found.fault, found.max_stream_duration, found.address) == (None, None, "")


def test_no_limit_is_none() -> None:
    options = {"common_http_protocol_options": {"max_stream_duration": "0s"}}
    assert decode(manager({**RDS, **options})).max_stream_duration is None


def test_a_filter_that_is_switched_off_does_nothing() -> None:
    off = [fault_filter(disabled=True), other_filter(disabled=True), ROUTER]
    assert decode(manager({**RDS, "http_filters": off})).fault is None


def test_discovered_filters_must_be_optional() -> None:
    found: Json = {"name": "x", "config_discovery": {}, "is_optional": True}
    assert decode(manager({**RDS, "http_filters": [found, ROUTER]})).fault is None


def test_server_listener() -> None:
    address = {"socket_address": {"address": "10.0.0.1", "port_value": 9080}}
    message = json_format.ParseDict({"name": "s", "address": address}, listener_pb2.Listener())
    assert decode(message) == Listener("s", address="10.0.0.1:9080")


def test_of_two_fault_filters_the_first_counts() -> None:
    two = [fault_filter(), {**fault_filter(), "name": "second"}, ROUTER]
    assert decode(manager({**RDS, "http_filters": two})).fault is not None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, ""),
        ({"scoped_routes": {"name": "x"}}, "scoped_routes"),
        ({"rds": {"route_config_name": "r"}}, "rds.config_source"),
        ({"rds": {"config_source": {"path": "/x"}}}, "rds.config_source"),
        ({"rds": {"config_source": {"ads": {}}}}, "rds.route_config_name"),
        ({"route_config": {"virtual_hosts": [{}]}}, "route_config.virtual_hosts[0].domains"),
        ({**RDS, "xff_num_trusted_hops": 1}, "xff_num_trusted_hops"),
        (
            {**RDS, "original_ip_detection_extensions": [{"name": "x"}]},
            "original_ip_detection_extensions",
        ),
        (
            {**RDS, "common_http_protocol_options": {"max_stream_duration": "-1s"}},
            "common_http_protocol_options.max_stream_duration",
        ),
        ({**RDS, "http_filters": [{}]}, "http_filters[0].name"),
        ({**RDS, "http_filters": [{"name": "x"}, ROUTER]}, "http_filters[0].typed_config"),
        ({**RDS, "http_filters": [other_filter(), ROUTER]}, "http_filters[0].typed_config"),
        (
            {**RDS, "http_filters": [{"name": "x", "config_discovery": {}}, ROUTER]},
            "http_filters[0].config_discovery",
        ),
        ({**RDS, "http_filters": [fault_filter()]}, "http_filters[0]"),
        ({**RDS, "http_filters": [ROUTER, fault_filter()]}, "http_filters[0]"),
        (
            {**RDS, "http_filters": [other_filter(is_optional=True)] * 2 + [ROUTER]},
            "http_filters[1].name",
        ),
    ],
)
def test_what_is_refused(fields: Json, field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        decode(manager(fields))
    assert caught.value.field == "api_listener.api_listener" + (f".{field}" if field else "")
    assert caught.value.resource == "Listener l"


def test_an_api_listener_must_hold_a_connection_manager() -> None:
    message = listener_pb2.Listener(name="l")
    message.api_listener.SetInParent()
    with pytest.raises(InvalidResource, match="is empty, HttpConnectionManager is needed"):
        decode(message)
    garbage = any_pb2.Any(type_url=HCM, value=b"\xff")
    message.api_listener.api_listener.CopyFrom(garbage)
    with pytest.raises(InvalidResource, match="the bytes are not"):
        decode(message)


def test_a_listener_is_for_a_client_or_for_a_server() -> None:
    with pytest.raises(InvalidResource, match=r"api_listener .* or address"):
        decode(listener_pb2.Listener(name="l"))
