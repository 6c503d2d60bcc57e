"""Envoy's configuration as people write it: YAML or JSON documents → messages.

Envoy's reader takes more than proto-JSON: names of enum values in any case, durations as
`{seconds: 30}`, and `"true"` for a flag.
"""

from __future__ import annotations

import re
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from meshsdk.xds.schema import POOL, message_class

_DURATION: Final = "google.protobuf.Duration"
_ANY: Final = "google.protobuf.Any"
_EMPTY: Final = {
    "google.protobuf.BoolValue": False,
    "google.protobuf.Duration": "0s",
    "google.protobuf.StringValue": "",
    "google.protobuf.UInt32Value": 0,
}
"""What stands inside an `Any` of a type of its own JSON form that says nothing; else `{}`."""
_BOOLS: Final = {"true": True, "false": False}
_WELL_KNOWN: Final = "google.protobuf."
# What Python's proto-JSON rounds, proto-JSON itself and Envoy refuse.
_FINER_THAN_NANOSECONDS: Final = re.compile(r"\.[0-9]{10}")


def message_of(document: Any, full_name: str) -> Any:
    """The message of a document.

    Args:
        document: mappings, lists and scalars, as a YAML or JSON reader gives them.
        full_name: of the message type.

    Raises:
        ValueError: an unknown field, or a value of the wrong type; names the place.
    """
    kind = message_class(full_name)
    try:
        return json_format.ParseDict(
            _message(document, kind.DESCRIPTOR), kind(), descriptor_pool=POOL
        )
    except (json_format.ParseError, TypeError, KeyError) as error:
        # What follows the first line lists every field that there is.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{full_name.rpartition('.')[2]}: {reason}") from None


def _message(value: Any, descriptor: Descriptor) -> Any:
    if descriptor.full_name == _DURATION and isinstance(value, dict):
        nanoseconds = int(value.get("seconds", 0)) * 10**9 + int(value.get("nanos", 0))
        return f"{nanoseconds / 10**9:.9f}s"
    if descriptor.full_name == _ANY:
        return _any(value)
    if not isinstance(value, dict) or descriptor.full_name.startswith(_WELL_KNOWN):
        return _bool_of(value) if descriptor.full_name.endswith(".BoolValue") else value
    fields = {field.name: field for field in descriptor.fields}
    fields |= {field.camelcase_name: field for field in descriptor.fields}
    return {
        key: _field(part, fields[key]) if key in fields else part for key, part in value.items()
    }


def _any(value: Any) -> Any:
    if not isinstance(value, dict) or "@type" not in value:
        return value
    name = str(value["@type"]).rpartition("/")[2]
    try:
        descriptor = POOL.FindMessageTypeByName(name)
    except KeyError:
        return value
    if name.startswith(_WELL_KNOWN):
        return value if "value" in value else {**value, "value": _EMPTY.get(name, {})}
    inner = _message({key: part for key, part in value.items() if key != "@type"}, descriptor)
    return {"@type": value["@type"], **inner}


def _field(value: Any, field: FieldDescriptor) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"]
        if not isinstance(value, dict):
            return value
        return {key: _single(part, inner) for key, part in value.items()}
    if field.is_repeated:
        return [_single(part, field) for part in value] if isinstance(value, list) else value
    return _single(value, field)


def _single(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name == _DURATION and isinstance(value, str):
            _check_duration(field.name, value)
        return _message(value, field.message_type)
    if field.enum_type is not None and isinstance(value, str):
        names = {name.lower(): name for name in field.enum_type.values_by_name}
        return names.get(value.lower(), value)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _bool_of(value)
    return value


def _check_duration(field: str, text: str) -> None:
    if _FINER_THAN_NANOSECONDS.search(text):
        raise json_format.ParseError(
            f"Failed to parse {field} field: {text!r} has more than nine digits after the point"
        )


def _bool_of(value: Any) -> Any:
    return _BOOLS.get(value, value) if isinstance(value, str) else value
