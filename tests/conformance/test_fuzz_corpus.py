"""Inputs that broke Envoy once: each is refused or routes a request, and nothing else happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.message import DecodeError

from meshsdk.call import decide
from meshsdk.errors import InvalidResource
from meshsdk.model import ListenerView
from meshsdk.routing import Request, mutate
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.decode.common import Bad, header_option
from meshsdk.xds.resources import ROUTE
from tests.support.programs import require_data

TOPIC = "envoy/fuzz_corpus"
pytestmark = pytest.mark.topic(TOPIC)


def files(folder: str) -> list[Any]:
    try:
        found = sorted((require_data(TOPIC) / folder).iterdir())
    except pytest.skip.Exception as reason:
        return [pytest.param(Path(), id=folder, marks=pytest.mark.skip(str(reason)))]
    return [pytest.param(path, id=f"{folder}/{path.name}") for path in found]


def fuzz_classes() -> tuple[Any, Any]:
    """(RouteTestCase, TestCase of header_parser_fuzz.proto)"""
    file = descriptor_pb2.FileDescriptorProto(
        name="fuzz.proto",
        package="fuzz",
        syntax="proto3",
        dependency=[
            "envoy/config/route/v3/route.proto",
            "envoy/config/core/v3/base.proto",
        ],
    )
    value = ".envoy.config.core.v3.HeaderValue"
    fields: dict[str, list[tuple[str, str, bool]]] = {
        "Headers": [("headers", value, True)],
        "RouteTestCase": [
            ("config", ".envoy.config.route.v3.RouteConfiguration", False),
            ("headers", ".fuzz.Headers", False),
        ],
        "TestCase": [("headers_to_add", f"{value}Option", True), ("headers_to_remove", "", True)],
    }
    for message, items in fields.items():
        added = file.message_type.add(name=message)
        for number, (name, kind, repeated) in enumerate(items, 1):
            added.field.add(
                name=name,
                number=number,
                type=Field.TYPE_MESSAGE if kind else Field.TYPE_STRING,
                type_name=kind or None,
                label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName("fuzz.proto")
    except KeyError:
        pool.AddSerializedFile(file.SerializeToString())
    route, headers = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"fuzz.{name}"))
        for name in ("RouteTestCase", "TestCase")
    )
    return route, headers


def parsed(path: Path, kind: Any) -> Any:
    """The message of a file; None where the text is no such message at all."""
    try:
        return text_format.Parse(path.read_bytes(), kind(), allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, DecodeError):
        return None


@pytest.mark.parametrize("path", files("route"))
def test_routes(path: Path) -> None:
    case = parsed(path, fuzz_classes()[0])
    if case is None:
        return
    case.config.name = case.config.name or "r"
    try:
        config = DECODERS[ROUTE].decode(DECODERS[ROUTE].parse(case.config.SerializeToString()), [])
    except InvalidResource:
        return
    headers = [(item.key.lower(), item.value) for item in case.headers.headers]
    named = dict(headers)
    request = Request(
        named.get(":method", "GET"),
        named.get(":path", "/"),
        authority=named.get(":authority", "host"),
        headers=[pair for pair in headers if not pair[0].startswith(":")],
    )
    assert decide(ListenerView("l", config), request, lambda: 0.5) is not None


@pytest.mark.parametrize("path", files("header_parser"))
def test_header_values(path: Path) -> None:
    case = parsed(path, fuzz_classes()[1])
    if case is None:
        return
    options = []
    for item in case.headers_to_add:
        try:
            options.append(header_option(item, []))
        except Bad:
            continue
    request = Request("GET", "/", authority="host", headers=[("a", "b")], start=1e9)
    levels = [(tuple(options), tuple(case.headers_to_remove), "")]
    found = mutate(request.headers, levels, request, of_request=True)
    assert all(isinstance(value, str) for _, value in found)
    # What names itself in its own value grows once, not with every look at it.
    assert sum(len(value) for _, value in found) < 1_000_000
