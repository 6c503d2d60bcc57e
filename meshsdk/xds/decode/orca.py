"""Load reports of servers: `OrcaLoadReport` → `balancing.LoadReport`.

A response carries one in its trailers (gRPC) or headers. Sources: gRFC A51, Envoy
`common/orca/orca_parser.cc`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from xds.data.orca.v3 import orca_load_report_pb2

from meshsdk.balancing import LoadReport

REPORT_BIN: Final = "endpoint-load-metrics-bin"
"""The report as protobuf: bytes in gRPC metadata, base64 in an HTTP header."""

REPORT: Final = "endpoint-load-metrics"
"""The report as text: `JSON {…}`, `TEXT cpu_utilization=0.3,named_metrics.x=1` or `BIN …`."""


def load_report(value: bytes) -> LoadReport | None:
    """The report in `endpoint-load-metrics-bin` of gRPC; None where it is not one."""
    try:
        return _report(orca_load_report_pb2.OrcaLoadReport.FromString(value))
    except DecodeError:
        return None


def load_report_of_headers(get: Callable[[str], str | None]) -> LoadReport | None:
    """The report in the headers of an HTTP response; None where there is none or it is not one.

    Args:
        get: the value of a header, None if it is absent.
    """
    encoded = get(REPORT_BIN)
    if encoded is not None:
        return _of_base64(encoded)
    kind, _, text = (get(REPORT) or "").partition(" ")
    parse = {"BIN": _of_base64, "JSON": _of_json, "TEXT": _of_text}.get(kind)
    return None if parse is None else parse(text)


def _of_base64(text: str) -> LoadReport | None:
    try:
        # Padding may be missing, as in gRPC metadata.
        return load_report(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except binascii.Error:
        return None


def _of_json(text: str) -> LoadReport | None:
    message = orca_load_report_pb2.OrcaLoadReport()
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            return None
        return _report(json_format.ParseDict(content, message, ignore_unknown_fields=True))
    except (ValueError, json_format.ParseError):
        return None


_NAMES: Final = ("application_utilization", "cpu_utilization", "mem_utilization")
_MAPS: Final = ("utilization", "named_metrics", "request_cost")


def _of_text(text: str) -> LoadReport | None:
    """`name=value` pairs; of those with a dot the rest names an entry."""
    message = orca_load_report_pb2.OrcaLoadReport()
    for pair in text.split(","):
        name, equals, number = pair.strip().partition("=")
        kind, _, key = name.partition(".")
        try:
            value = float(number)
        except ValueError:
            return None
        if not equals:
            return None
        if key and kind in _MAPS:
            getattr(message, kind)[key] = value
        elif name in (*_NAMES, "rps_fractional", "eps"):
            setattr(message, name, value)
        else:
            return None
    return _report(message)


def _report(message: Any) -> LoadReport:
    return LoadReport(
        message.application_utilization,
        message.cpu_utilization,
        message.mem_utilization,
        message.rps_fractional,
        message.eps,
        dict(message.utilization),
        dict(message.named_metrics),
        dict(message.request_cost),
    )
