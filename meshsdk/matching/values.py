"""Conditions on metadata: values nested in mappings and lists, as `google.protobuf.Value`.

Source: Envoy `type/matcher/v3/metadata.proto` and `value.proto`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshsdk.matching.strings import StringMatch


class ValueKind(enum.Enum):
    NULL = "null_match"
    DOUBLE = "double_match"
    STRING = "string_match"
    BOOL = "bool_match"
    PRESENT = "present_match"
    LIST = "list_match"
    OR = "or_match"


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """One condition on a value; an absent one is None inside `_ABSENT`.

    Attributes:
        string, number, flag: what STRING, DOUBLE (a range, or both ends the same for a value),
            BOOL and PRESENT compare with.
        parts: the conditions of OR, the one of LIST (which any element may fulfil).
    """

    kind: ValueKind
    string: StringMatch | None = None
    number: tuple[float, float] | None = None
    exact: bool = False
    flag: bool = True
    parts: tuple[ValueMatch, ...] = ()

    def matches(self, value: Any) -> bool:
        match self.kind:
            case ValueKind.NULL:
                return value is None
            case ValueKind.PRESENT:
                return (value is not ABSENT) == self.flag
            case ValueKind.BOOL:
                return isinstance(value, bool) and value == self.flag
            case ValueKind.STRING:
                assert self.string is not None
                return isinstance(value, str) and self.string.matches(value)
            case ValueKind.OR:
                return any(part.matches(value) for part in self.parts)
            case ValueKind.LIST:
                return isinstance(value, list) and any(map(self.parts[0].matches, value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        assert self.number is not None
        low, high = self.number
        return value == low if self.exact else low <= value < high


ABSENT: Any = object()


@dataclass(frozen=True, slots=True)
class MetadataMatch:
    """One condition on the dynamic metadata of a request: the value at `path` of a namespace."""

    namespace: str
    path: tuple[str, ...]
    value: ValueMatch
    invert: bool = False

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        value: Any = metadata.get(self.namespace, ABSENT)
        for key in self.path:
            value = value.get(key, ABSENT) if isinstance(value, Mapping) else ABSENT
        return self.value.matches(value) != self.invert
