"""Listener → `model.Listener`.

A client listener is an `api_listener` with an HttpConnectionManager (gRFC A27). A server listener
has an address; only name and address are read (its filter chains are no business of a client).
"""

from __future__ import annotations

from typing import Any, Final

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshsdk.model import Endpoint, Listener
from meshsdk.xds.decode import rds
from meshsdk.xds.decode.accesslogs import access_logs
from meshsdk.xds.decode.common import Bad, Notes, entry, optional_seconds, sub, type_name, unpack
from meshsdk.xds.decode.eds import socket_address
from meshsdk.xds.decode.filters import http_filters
from meshsdk.xds.resources import LISTENER, Decoder
from meshsdk.xds.schema import amended

_MANAGER: Final = amended(hcm_pb2.HttpConnectionManager)
_HCM: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def _decode(message: Any, notes: Notes) -> Listener:
    return entry("Listener", message.name, _listener, message, notes)


DECODER: Final = Decoder(
    LISTENER, "Listener", True, listener_pb2.Listener.FromString, "name", _decode
)


def _listener(message: Any, notes: Notes) -> Listener:
    if message.HasField("api_listener"):
        container = message.api_listener.api_listener
        if type_name(container) != _HCM:
            problem = f"is {type_name(container) or 'empty'}, HttpConnectionManager is needed"
            raise Bad("api_listener.api_listener", problem)

        def decode(container: Any, notes: Notes) -> Listener:
            return _manager(message.name, unpack(container, _MANAGER), notes)

        return sub("api_listener.api_listener", decode, container, notes)
    if message.HasField("address"):
        address, port = sub("address", socket_address, message.address, notes)
        return Listener(message.name, address=Endpoint(address, port).target)
    raise Bad("", "api_listener (for a client) or address (for a server) is needed")


def _manager(name: str, manager: Any, notes: Notes) -> Listener:
    # Both would change which address a request is taken to come from (gRFC A41).
    if manager.xff_num_trusted_hops:
        raise Bad("xff_num_trusted_hops", "must be 0")
    if manager.original_ip_detection_extensions:
        raise Bad("original_ip_detection_extensions", "must be empty")
    fault, filters = http_filters(manager.http_filters, notes)
    logs = access_logs(manager.access_log, notes)
    options = manager.common_http_protocol_options
    # 0 is infinite, as absent.
    duration = sub("common_http_protocol_options", _max_stream_duration, options, notes) or None
    which = manager.WhichOneof("route_specifier")
    if which == "rds":
        return Listener(
            name,
            route_config_name=sub("rds", _rds_name, manager.rds, notes),
            max_stream_duration=duration,
            fault=fault,
            filters=filters,
            access_logs=logs,
        )
    if which == "route_config":
        config = sub("route_config", rds.route_configuration, manager.route_config, notes)
        return Listener(
            name,
            config,
            max_stream_duration=duration,
            fault=fault,
            filters=filters,
            access_logs=logs,
        )
    raise Bad(which or "", f"{which or 'no route'} is not supported; rds or route_config is needed")


def _max_stream_duration(options: Any, notes: Notes) -> float | None:
    return optional_seconds(options, "max_stream_duration")


def _rds_name(source: Any, notes: Notes) -> str:
    if source.config_source.WhichOneof("config_source_specifier") not in ("ads", "self"):
        raise Bad("config_source", "must be ads or self")
    name: str = source.route_config_name
    if not name:
        raise Bad("route_config_name", "must not be empty")
    return name
