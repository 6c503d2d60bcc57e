"""Texts with Envoy's command operators: `%REQ(x-user?x-name):10%`, `%PROTOCOL%`, `100%%`.

A text is compiled once; what no operator can be, is refused as Envoy refuses it. What an operator
gives nothing for, is empty here (Envoy's header formatters), or `-` where `missing` says so.

Source: Envoy "Access log command operators"; which operators exist, which parameters they take and
what they give on a plain connection was asked of Envoy 1.40.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from meshsdk.formats.context import CALLER, Caller, Context, Ended, Exchange
from meshsdk.formats.endings import AT_END, FLAGS, is_number
from meshsdk.formats.operators import (
    LENGTHS,
    NO_PARAMETERS,
    OPTIONAL_PARAMETERS,
    PARAMETERS,
    compile_operator,
)

__all__ = [
    "CALLER",
    "FLAGS",
    "Caller",
    "Context",
    "Ended",
    "Exchange",
    "Format",
    "is_computed",
    "is_known_at_end",
]

_OPERATOR: Final = re.compile(r"%([A-Z0-9_]+)(?:\((.*?)\))?(?::([0-9]+))?%")
_Part = Callable[[Context], str | None]


@dataclass(frozen=True, slots=True)
class Format:
    """A text to be filled in. `plain` is the text itself where nothing is to be filled in.

    Raises:
        ValueError: an operator does not exist, or its parameters are wrong.
    """

    text: str
    missing: str = ""
    plain: str | None = field(init=False, compare=False)
    operators: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Names of the operators in it."""
    _parts: tuple[str | _Part, ...] = field(init=False, repr=False, compare=False)
    _number: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts: list[str | _Part] = []
        names: list[str] = []
        number = False
        position = 0
        while position < len(self.text):
            literal, percent, rest = self.text[position:].partition("%")
            if literal:
                parts.append(literal)
            position += len(literal)
            if not percent:
                break
            if rest.startswith("%"):
                parts.append("%")
                position += 2
                continue
            found = _OPERATOR.match(self.text, position)
            if found is None:
                raise ValueError(
                    f"{self.text!r}: no operator stands at position {position};"
                    " a literal percent sign is written %%"
                )
            names.append(found[1])
            parts.append(_operator(found[1], found[2], found[3]))
            number = is_number(found[1], found[2] or "")
            position = found.end()
        plain = "".join(p for p in parts if isinstance(p, str)) if not names else None
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "operators", tuple(names))
        object.__setattr__(self, "_parts", tuple(parts))
        object.__setattr__(self, "_number", number)

    def fill(self, context: Context) -> str:
        if self.plain is not None:
            return self.plain
        filled = (part if isinstance(part, str) else part(context) for part in self._parts)
        return "".join(self.missing if text is None else text for text in filled)

    def value(self, context: Context) -> str | int | None:
        """As `fill`; of an operator that stands alone what it gives: a number, a text or None."""
        part = self._parts[0] if len(self._parts) == 1 else None
        if part is None or isinstance(part, str):
            return self.fill(context)
        found = part(context)
        return int(found) if self._number and found is not None else found


def is_known_at_end(name: str) -> bool:
    """Whether an operator of that name gives what Envoy gives, in an access log."""
    return name in AT_END or name in _EMPTY_FOR_CALLS or is_computed(name)


# Of a call over plain HTTP they have nothing to say in Envoy either.
_EMPTY_FOR_CALLS: Final = (
    "CONNECTION_TERMINATION_DETAILS",
    "CUSTOM_FLAGS",
    "REQUESTED_SERVER_NAME",
)


def is_computed(name: str) -> bool:
    """Whether an operator of that name gives what Envoy gives on the side of a client."""
    if name in ("CEL", "TYPED_CEL", "COMMON_DURATION"):
        return False
    return name not in NO_PARAMETERS or NO_PARAMETERS[name] is not None


def _operator(name: str, parameters: str | None, length: str | None) -> _Part:
    known = name in NO_PARAMETERS or name in OPTIONAL_PARAMETERS or name in PARAMETERS
    if not known:
        raise ValueError(f"%{name}% is not an operator")
    if name in PARAMETERS and not parameters:
        raise ValueError(f"%{name}% needs parameters: %{name}(...)%")
    if name in NO_PARAMETERS and parameters:
        raise ValueError(f"%{name}% takes no parameters")
    if length is not None and name not in LENGTHS:
        raise ValueError(f"%{name}% takes no length")
    value = compile_operator(name, parameters or "")
    if length is None:
        return value
    limit = int(length)

    def cut(context: Context) -> str | None:
        whole = value(context)
        return None if whole is None else whole[:limit]

    return cut
