"""The operators: which there are, and what each gives.

`NO_PARAMETERS` maps to None where the SDK has nothing that Envoy would have: connections, TLS,
byte counts and durations belong to the proxy's own sockets. There the value is what Envoy says of
a plain connection before anything was counted.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote_plus

from meshsdk.formats.context import Context
from meshsdk.formats.endings import AT_END, at_end
from meshsdk.formats.times import ISO, ISO_LOCAL, check_time_format, format_time

Value = Callable[[Context], str | None]


def _no(context: Context) -> str | None:
    return None


def _constant(text: str) -> Value:
    return lambda context: text


def _of(text: str) -> str | None:
    return text or None


# --- without parameters ----------------------------------------------------------------------


def _protocol(context: Context) -> str:
    return "HTTP/2" if context.request.grpc else "HTTP/1.1"


def _upstream(read: Callable[[Any], str | None]) -> Value:
    def value(context: Context) -> str | None:
        return None if context.endpoint is None else read(context.endpoint)

    return value


def _port(endpoint: Any) -> str | None:
    return str(endpoint.port) if endpoint.port else None


def _hostname(endpoint: Any) -> str | None:
    return _of(endpoint.hostname) or endpoint.target


def _hostname_alone(endpoint: Any) -> str | None:
    name = str(_hostname(endpoint))
    host, colon, port = name.rpartition(":")
    return host if colon and port.isdigit() else name


def _attempts(context: Context) -> str:
    return "1" if context.exchange.cluster else "0"


def _grpc_status(context: Context) -> str | None:
    return _header(context.response or (), "grpc-status") if context.request.grpc else None


_PLAIN_SIDES: Final = ("DOWNSTREAM", "UPSTREAM")
_ABSENT: Final = (
    "CONNECTION_TERMINATION_DETAILS", "CUSTOM_FLAGS", "FILTER_CHAIN_NAME",
    "REQUESTED_SERVER_NAME", "REQUEST_TX_DURATION", "RESPONSE_DURATION", "RESPONSE_TX_DURATION",
    "ROUNDTRIP_DURATION", "SPAN_ID", "STREAM_ID", "TLS_JA3_FINGERPRINT", "TLS_JA4_FINGERPRINT",
    "TRACE_ID", "DOWNSTREAM_DIRECT_LOCAL_ADDRESS", "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_DIRECT_LOCAL_PORT", "DOWNSTREAM_DIRECT_REMOTE_PORT",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID", "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_REMOTE_PORT", "DOWNSTREAM_LOCAL_EMAIL_SAN", "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT", "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256", "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_EMAIL_SAN", "DOWNSTREAM_PEER_FINGERPRINT_1", "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256", "DOWNSTREAM_PEER_ISSUER_SERIAL",
    "DOWNSTREAM_PEER_OTHERNAME_SAN", "DOWNSTREAM_PEER_SERIAL", "UNIQUE_ID",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED", "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE", "UPSTREAM_LOCAL_ADDRESS", "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", "UPSTREAM_SERVER_NAME",
    *(f"{side}_{what}" for side in _PLAIN_SIDES for what in (
        "LOCAL_CLOSE_REASON", "LOCAL_DNS_SAN", "LOCAL_IP_SAN", "LOCAL_URI_SAN", "PEER_CERT",
        "PEER_DNS_SAN", "PEER_IP_SAN", "PEER_ISSUER", "PEER_SUBJECT", "PEER_URI_SAN", "TLS_CIPHER",
        "TLS_GROUP", "TLS_SESSION_ID", "TLS_VERSION", "TRANSPORT_FAILURE_REASON",
    )),
)  # fmt: skip
_ZERO: Final = (
    "BYTES_RECEIVED", "BYTES_RETRANSMITTED", "BYTES_SENT", "CONNECTION_ID", "DOWNSTREAM_CX_RTT",
    "DURATION", "PACKETS_RETRANSMITTED", "REQUEST_DURATION", "REQUEST_HEADERS_BYTES",
    "RESPONSE_HEADERS_BYTES", "RESPONSE_TRAILERS_BYTES", "ROUTE_RESOLUTION_COUNT",
    "ROUTE_RESOLUTION_TIME_US", "UPSTREAM_CONNECTION_ID",
    *(f"{side}_{what}_BYTES_{way}" for side in _PLAIN_SIDES
      for what in ("DECOMPRESSED_HEADER", "HEADER", "WIRE") for way in ("RECEIVED", "SENT")),
)  # fmt: skip

NO_PARAMETERS: Final[dict[str, Value | None]] = {
    **dict.fromkeys(_ABSENT),
    **dict.fromkeys(_ZERO),
    "ACCESS_LOG_TYPE": _constant("NotSet"),
    "DOWNSTREAM_DETECTED_CLOSE_TYPE": _constant("Normal"),
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS": lambda c: _of(c.exchange.caller.address),
    "DOWNSTREAM_REMOTE_ADDRESS": lambda c: _of(c.exchange.caller.address),
    "GRPC_STATUS_NUMBER": _grpc_status,
    "HOSTNAME": lambda c: _of(c.exchange.caller.hostname),
    "LOCAL_REPLY_BODY": lambda c: c.body,
    "PROTOCOL": _protocol,
    "RESPONSE_CODE": lambda c: str(c.status),
    "RESPONSE_FLAGS": _constant("-"),
    "RESPONSE_FLAGS_LONG": _constant("-"),
    "ROUTE_NAME": lambda c: _of(c.exchange.route),
    "UPSTREAM_CLUSTER": lambda c: _of(c.exchange.observable_cluster or c.exchange.cluster),
    "UPSTREAM_CLUSTER_RAW": lambda c: _of(c.exchange.cluster),
    "UPSTREAM_HOST": _upstream(lambda e: e.target),
    "UPSTREAM_HOSTS_ATTEMPTED": _upstream(lambda e: e.target),
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT": _upstream(lambda e: e.address),
    "UPSTREAM_HOST_NAME": _upstream(_hostname),
    "UPSTREAM_HOST_NAMES_ATTEMPTED": _upstream(_hostname),
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT": _upstream(_hostname_alone),
    "UPSTREAM_HOST_NAME_WITHOUT_PORT": _upstream(_hostname_alone),
    "UPSTREAM_PROTOCOL": lambda c: None if c.endpoint is None else _protocol(c),
    "UPSTREAM_REMOTE_ADDRESS": _upstream(lambda e: e.target),
    "UPSTREAM_REMOTE_PORT": _upstream(_port),
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": _attempts,
    "VIRTUAL_CLUSTER_NAME": lambda c: _of(c.exchange.virtual_cluster),
}


# --- with parameters -------------------------------------------------------------------------

_HEADER_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z:]*")


def _names(parameters: str) -> list[str]:
    names = parameters.split("?")
    if len(names) > 2:
        raise ValueError(f"{parameters!r}: at most one alternative header may be given")
    if not all(map(_HEADER_TOKEN.fullmatch, names)):
        raise ValueError(f"{parameters!r} is not a header name")
    return [name.lower() for name in names if name]


def _header(headers: Any, name: str) -> str | None:
    return next((value for key, value in headers if key.lower() == name), None)


def _request_header(parameters: str) -> Value:
    names = _names(parameters)

    def value(context: Context) -> str | None:
        for name in names:
            values = context.request.values(name)
            if values:
                return values[0]  # of a header that comes twice Envoy takes the first only
        return None

    return value


def _response_header(parameters: str) -> Value:
    names = _names(parameters)

    def value(context: Context) -> str | None:
        headers = context.response or ()
        if ":status" in names and context.status:
            return str(context.status)
        found = (_header(headers, name) for name in names)
        return next((text for text in found if text is not None), None)

    return value


def _no_header(parameters: str) -> Value:
    _names(parameters)
    return _no


def _environment(parameters: str) -> Value:
    return lambda context: context.exchange.caller.environment.get(parameters, "-")


def _metadata(source: Callable[[Context], Mapping[str, Any]]) -> Callable[[str], Value]:
    def build(parameters: str) -> Value:
        keys = parameters.split(":")

        def value(context: Context) -> str | None:
            found: Any = source(context)
            for key in keys:
                found = found.get(key) if isinstance(found, Mapping) else None
            return _text_of(found)

        return value

    return build


def _text_of(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _endpoint_metadata(context: Context) -> Mapping[str, Any]:
    return {} if context.endpoint is None else context.endpoint.metadata


def _upstream_metadata(parameters: str) -> Value:
    if parameters.lstrip().startswith("["):  # the older form: ["namespace", "key", …]
        try:
            keys = json.loads(parameters)
        except ValueError:
            return _no
        if not keys or not all(isinstance(key, str) for key in keys):
            return _no
        parameters = ":".join(keys)
    return _metadata(_endpoint_metadata)(parameters)


_METADATA_OF: Final[dict[str, Callable[[Context], Mapping[str, Any]]]] = {
    "CLUSTER": lambda c: c.exchange.cluster_metadata,
    "DYNAMIC": lambda c: c.request.metadata,
    "LISTENER": lambda c: {},
    "ROUTE": lambda c: c.exchange.route_metadata,
    "UPSTREAM_HOST": _endpoint_metadata,
    "VIRTUAL_HOST": lambda c: c.exchange.host_metadata,
}


def _any_metadata(parameters: str) -> Value:
    kind, _, rest = parameters.partition(":")
    if kind not in _METADATA_OF:
        kinds = ", ".join(_METADATA_OF)
        raise ValueError(f"{kind!r} is not a kind of metadata; one of {kinds} is")
    return _metadata(_METADATA_OF[kind])(rest)


def _filter_state(parameters: str) -> Value:
    key, _, kind = parameters.partition(":")
    if not key or kind.partition(":")[0] not in ("", "PLAIN", "TYPED", "FIELD"):
        raise ValueError(f"{parameters!r}: a key, then PLAIN, TYPED or FIELD is needed")
    return _no


def _path(parameters: str) -> Value:
    query, _, original = parameters.partition(":")
    if query not in ("", "WQ", "NQ") or original not in ("", "ORIG", "PATH", "ORIG_OR_PATH"):
        raise ValueError(f"{parameters!r}: WQ or NQ, then ORIG, PATH or ORIG_OR_PATH are the ways")

    def value(context: Context) -> str | None:
        request = context.request
        text: str | None = request.target
        if original != "PATH":
            before = request.values("x-envoy-original-path")
            text = before[0] if before else (None if original == "ORIG" else text)
        if text is not None and query == "NQ":
            text = re.split("[?#]", text, maxsplit=1)[0]
        return text

    return value


def _query_parameter(parameters: str) -> Value:
    def value(context: Context) -> str | None:
        for item in context.request.query.split("&"):
            key, _, text = item.partition("=")
            if unquote_plus(key.replace("+", "%2B")) == parameters:
                return unquote_plus(text.replace("+", "%2B"))
        return None

    return value


def _query(parameters: str) -> Value:
    if parameters not in ("", "ORIG", "DECODED"):
        raise ValueError(f"{parameters!r}: ORIG and DECODED are the ways")
    return lambda context: _of(context.request.query)


def _time(default: str) -> Callable[[str], Value]:
    def build(parameters: str) -> Value:
        check_time_format(parameters)
        pattern = parameters or default

        def value(context: Context) -> str | None:
            start = context.request.start
            return None if start is None else format_time(pattern, start)

        return value

    return build


def _address(read: Callable[[Context], str | None]) -> Callable[[str], Value]:
    """An address without its port, or with a prefix length the network that it is in."""

    def build(parameters: str) -> Value:
        def value(context: Context) -> str | None:
            address = read(context)
            if not address or not parameters.isdigit():
                return address
            try:
                return str(ipaddress.ip_network(f"{address}/{parameters}", strict=False))
            except ValueError:
                return address

        return value

    return build


def _grpc(parameters: str) -> Value:
    if parameters not in ("", "CAMEL_STRING", "SNAKE_STRING", "NUMBER"):
        raise ValueError(f"{parameters!r}: CAMEL_STRING, SNAKE_STRING and NUMBER are the ways")
    return _grpc_status


_MOMENT: Final = re.compile(r"[A-Z0-9_]+:[A-Z0-9_]+:(ms|us|ns)")


def _duration(parameters: str) -> Value:
    if not _MOMENT.fullmatch(parameters):
        raise ValueError(f"{parameters!r}: START:END:ms, us or ns is needed")
    return _no


def _ignored(parameters: str) -> Value:
    return _no


_CALLER_ADDRESS: Final = _address(lambda c: _of(c.exchange.caller.address))

OPTIONAL_PARAMETERS: Final[dict[str, Callable[[str], Value]]] = {
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT": _ignored,
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": _CALLER_ADDRESS,
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": _ignored,
    "DOWNSTREAM_PEER_CERT_V_END": _ignored,
    "DOWNSTREAM_PEER_CERT_V_START": _ignored,
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": _CALLER_ADDRESS,
    "EMIT_TIME": _time(ISO),
    "EMIT_TIME_LOCAL": _time(ISO_LOCAL),
    "GRPC_STATUS": _grpc,
    "PATH": _path,
    "QUERY_PARAMS": _query,
    "RESPONSE_CODE_DETAILS": lambda parameters: lambda c: _of(_details(c)),
    "START_TIME": _time(ISO),
    "START_TIME_LOCAL": _time(ISO_LOCAL),
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": _ignored,
    "UPSTREAM_PEER_CERT_V_END": _ignored,
    "UPSTREAM_PEER_CERT_V_START": _ignored,
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": _address(_upstream(lambda e: e.address)),
}


def _details(context: Context) -> str:
    return "via_upstream" if context.endpoint is not None else context.exchange.details


PARAMETERS: Final[dict[str, Callable[[str], Value]]] = {
    "CEL": _ignored,
    "CLUSTER_METADATA": _metadata(_METADATA_OF["CLUSTER"]),
    "COMMON_DURATION": _duration,
    "DYNAMIC_METADATA": _metadata(_METADATA_OF["DYNAMIC"]),
    "ENVIRONMENT": _environment,
    "FILTER_STATE": _filter_state,
    "METADATA": _any_metadata,
    "PER_REQUEST_STATE": _ignored,
    "QUERY_PARAM": _query_parameter,
    "REQ": _request_header,
    "REQUEST_HEADER": _request_header,
    "RESP": _response_header,
    "RESPONSE_HEADER": _response_header,
    "RESPONSE_TRAILER": _no_header,
    "STREAM_INFO_REQ": _request_header,
    "TRAILER": _no_header,
    "TYPED_CEL": _ignored,
    "UPSTREAM_FILTER_STATE": _filter_state,
    "UPSTREAM_METADATA": _upstream_metadata,
}

LENGTHS: Final = frozenset(
    {
        "ENVIRONMENT", "PATH", "QUERY_PARAM", "QUERY_PARAMS", "REQ", "REQUEST_HEADER", "RESP",
        "RESPONSE_HEADER", "RESPONSE_TRAILER", "STREAM_INFO_REQ", "TRAILER", "DYNAMIC_METADATA",
        "FILTER_STATE", "UPSTREAM_FILTER_STATE", "CEL", "TYPED_CEL", "METADATA",
    }
)  # fmt: skip


def compile_operator(name: str, parameters: str) -> Value:
    """What an operator gives; it exists, and has parameters where it needs some.

    Raises:
        ValueError: the parameters are wrong.
    """
    if name in NO_PARAMETERS:
        found = NO_PARAMETERS[name]
        value = found if found is not None else (_constant("0") if name in _ZERO else _no)
    else:
        value = (OPTIONAL_PARAMETERS.get(name) or PARAMETERS[name])(parameters)
    return at_end(name, parameters, value) if name in AT_END else value
