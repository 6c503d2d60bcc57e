"""What all decoders share: errors with field paths, notes, matchers, durations, header changes.

A decoder raises `Bad` where it finds the fault, with the field's name alone; whoever called it for
a sub-message adds the path in front (`sub`, `each`). The good case pays nothing for that. `each`
goes on after a fault, so that one NACK names every bad element.

`notes` is a list to which decoders append what is accepted but not honoured (`field: sentence`);
paths are put in front the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from meshsdk.errors import InvalidResource
from meshsdk.formats import Format, is_computed
from meshsdk.matching import (
    Fraction,
    HeaderMatch,
    StringKind,
    StringMatch,
    compile_regex,
)
from meshsdk.model import AppendAction, HeaderMutations, HeaderOption

T = TypeVar("T")
Notes = list[str]


class Bad(Exception):
    """Faults of one message: (field path, what is wrong and what would be right) pairs."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.problems = [(field, problem)]

    def under(self, prefix: str) -> list[tuple[str, str]]:
        """The faults with their path seen from one level up."""
        return [(f"{prefix}.{path}" if path else prefix, text) for path, text in self.problems]

    @classmethod
    def of(cls, problems: list[tuple[str, str]]) -> Bad:
        bad = cls(*problems[0])
        bad.problems = problems
        return bad


def entry(kind: str, name: str, decode: Callable[[Any, Notes], T], message: Any, notes: Notes) -> T:
    """Decode one resource; put its name in front of the notes.

    Raises:
        InvalidResource: names the resource and the first bad field; the text names all others.
    """
    before = len(notes)
    try:
        value = decode(message, notes)
    except Bad as bad:
        (field, problem), *others = bad.problems
        text = "; ".join([problem, *(f"{path}: {more}" for path, more in others)])
        raise InvalidResource(f"{kind} {name}", field, text) from None
    if len(notes) != before:
        notes[before:] = [f"{kind} {name}: {note}" for note in notes[before:]]
    return value


def sub(field: str, decode: Callable[[Any, Notes], T], message: Any, notes: Notes) -> T:
    """Decode a sub-message of that field name."""
    before = len(notes)
    try:
        value = decode(message, notes)
    except Bad as bad:
        raise Bad.of(bad.under(field)) from None
    if len(notes) != before:
        notes[before:] = [f"{field}.{note}" for note in notes[before:]]
    return value


def each(
    field: str, items: Iterable[Any], decode: Callable[[Any, Notes], T], notes: Notes
) -> list[T]:
    """Decode every element of a repeated field; one fault does not hide the next."""
    result: list[T] = []
    problems: list[tuple[str, str]] = []
    for index, item in enumerate(items):
        before = len(notes)
        try:
            result.append(decode(item, notes))
        except Bad as bad:
            problems += bad.under(f"{field}[{index}]")
        if len(notes) != before:
            notes[before:] = [f"{field}[{index}].{note}" for note in notes[before:]]
    if problems:
        raise Bad.of(problems)
    return result


def unpack(container: Any, message_class: Any) -> Any:
    """The message inside an `Any` whose type URL has been looked at already."""
    try:
        return message_class.FromString(container.value)
    except DecodeError:
        raise Bad("", f"the bytes are not a {message_class.DESCRIPTOR.full_name}") from None


def type_name(container: Any) -> str:
    """Full name of the message type inside an `Any`."""
    name: str = container.type_url.rpartition("/")[2]
    return name


def seconds(field: str, duration: Any) -> float:
    """A `google.protobuf.Duration`, not negative, in seconds."""
    value: float = duration.seconds + duration.nanos / 1e9
    if value < 0 or not -999_999_999 <= duration.nanos <= 999_999_999:
        raise Bad(field, f"is {value} s, must not be negative")
    return value


def optional_seconds(message: Any, field: str) -> float | None:
    """A duration field; None when it is absent."""
    return seconds(field, getattr(message, field)) if message.HasField(field) else None


def regex(field: str, matcher: Any) -> str:
    """The pattern of an `envoy.type.matcher.v3.RegexMatcher`, checked to be RE2."""
    pattern: str = matcher.regex
    if not pattern:
        raise Bad(f"{field}.regex", "must not be empty")
    try:
        compile_regex(pattern)
    except ValueError as error:
        raise Bad(f"{field}.regex", str(error)) from None
    return pattern


# --- matchers --------------------------------------------------------------------------------

_STRING_KINDS: Final = {
    "exact": StringKind.EXACT,
    "prefix": StringKind.PREFIX,
    "suffix": StringKind.SUFFIX,
    "contains": StringKind.CONTAINS,
}


def string_match(message: Any, notes: Notes) -> StringMatch:
    """`envoy.type.matcher.v3.StringMatcher`."""
    which = message.WhichOneof("match_pattern")
    if which == "safe_regex":
        return StringMatch(StringKind.REGEX, regex("safe_regex", message.safe_regex))
    if which not in _STRING_KINDS:
        found = f"{which} is not supported" if which else "no pattern is given"
        raise Bad("", f"{found}; one of {', '.join(_STRING_KINDS)}, safe_regex is needed")
    value = getattr(message, which)
    if not value and which != "exact":
        raise Bad(which, "must not be empty")
    return StringMatch(_STRING_KINDS[which], value, message.ignore_case)


_OLD_HEADER_KINDS: Final = {
    "exact_match": StringKind.EXACT,
    "prefix_match": StringKind.PREFIX,
    "suffix_match": StringKind.SUFFIX,
    "contains_match": StringKind.CONTAINS,
}


def header_match(message: Any, notes: Notes) -> HeaderMatch:
    """`envoy.config.route.v3.HeaderMatcher`, the deprecated kinds too."""
    if not message.name:
        raise Bad("name", "must not be empty")
    string, span, present = None, None, True
    which = message.WhichOneof("header_match_specifier")
    if which == "string_match":
        string = sub(which, string_match, message.string_match, notes)
    elif which == "safe_regex_match":
        string = StringMatch(StringKind.REGEX, regex(which, message.safe_regex_match))
    elif which == "range_match":
        span = (message.range_match.start, message.range_match.end)
    elif which == "present_match":
        present = message.present_match
    elif which is not None:
        value = getattr(message, which)
        if not value and which != "exact_match":
            raise Bad(which, "must not be empty")
        string = StringMatch(_OLD_HEADER_KINDS[which], value)
    return HeaderMatch(
        message.name.lower(),
        string,
        span,
        present,
        message.invert_match,
        message.treat_missing_header_as_empty,
    )


def fraction(field: str, message: Any) -> Fraction:
    """`envoy.type.v3.FractionalPercent`; an absent one is 0 %, as in Envoy."""
    if message.denominator not in (0, 1, 2):
        raise Bad(f"{field}.denominator", f"{message.denominator} is not known")
    return Fraction(message.numerator, (100, 10_000, 1_000_000)[message.denominator])


# --- header changes --------------------------------------------------------------------------

NO_MUTATIONS: Final = HeaderMutations()
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_ACTIONS: Final = (
    AppendAction.APPEND_OR_ADD,
    AppendAction.ADD_IF_ABSENT,
    AppendAction.OVERWRITE_OR_ADD,
    AppendAction.OVERWRITE,
)


def mutations(message: Any, notes: Notes) -> HeaderMutations:
    """The four header fields of RouteConfiguration, VirtualHost, Route and ClusterWeight."""
    if not (
        message.request_headers_to_add
        or message.request_headers_to_remove
        or message.response_headers_to_add
        or message.response_headers_to_remove
    ):
        return NO_MUTATIONS
    return HeaderMutations(
        _options(message, "request_headers_to_add", notes),
        _removals(message, "request_headers_to_remove", notes),
        _options(message, "response_headers_to_add", notes),
        _removals(message, "response_headers_to_remove", notes),
    )


def _options(message: Any, field: str, notes: Notes) -> tuple[HeaderOption, ...]:
    return tuple(each(field, getattr(message, field), header_option, notes))


def header_option(message: Any, notes: Notes) -> HeaderOption:
    """`envoy.config.core.v3.HeaderValueOption`"""
    name = changeable("header.key", message.header.key)
    value = message.header.value or message.header.raw_value.decode("latin-1")
    if any(c in value for c in "\r\n\0"):
        raise Bad("header.value", "must not contain CR, LF or NUL")
    action = message.append_action
    if not 0 <= action < len(_ACTIONS):
        raise Bad("append_action", f"{action} is not known")
    if message.HasField("append") and action == 0 and not message.append.value:
        action = 2
    try:
        option = HeaderOption(name, value, _ACTIONS[action], message.keep_empty_value)
    except ValueError as error:
        raise Bad("header.value", str(error)) from None
    for operator in option.format.operators:
        if not is_computed(operator):
            notes.append(f"header.value: %{operator}% of the header {name} is not computed")
    return option


def _removals(message: Any, field: str, notes: Notes) -> tuple[str, ...]:
    return tuple(each(field, getattr(message, field), lambda name, _: changeable("", name), notes))


def changeable(field: str, name: str) -> str:
    """A header name that a route may change (Envoy: not `:`-headers, not host)."""
    lower = name.lower()
    if lower.startswith(":") or lower == "host":
        raise Bad(field, f"{name!r}: `:`-prefixed headers and host may not be changed")
    if not _HEADER_NAME.fullmatch(lower):
        raise Bad(field, f"{name!r} is not a header name")
    return lower


def text_format(field: str, text: str, *, missing: str = "") -> Format:
    """A text with command operators."""
    try:
        return Format(text, missing)
    except ValueError as error:
        raise Bad(field, str(error)) from None


# --- metadata --------------------------------------------------------------------------------


def filter_metadata(metadata: Any) -> Mapping[str, Any]:
    """`Metadata.filter_metadata` as plain nested values."""
    return {key: struct(value) for key, value in metadata.filter_metadata.items()}


def struct(message: Any) -> Any:
    """A `google.protobuf.Struct` as plain nested values."""
    return {key: _value(value) for key, value in message.fields.items()}


def _value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "string_value":  # by far the most frequent
        return message.string_value
    if kind == "struct_value":
        return struct(message.struct_value)
    return json_format.MessageToDict(message) if kind else None
