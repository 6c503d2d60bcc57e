"""The validation rules that Envoy's API carries (`validate.rules`), checked as Envoy checks them.

A checker is compiled once per message type and then looks at what is set, and at what must be.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import re2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from validate import validate_pb2

from meshsdk.xds.decode.common import Bad

Problem = tuple[str, str]
"""(path, what is wrong)"""

Check = Callable[[Any], "str | None"]
"""Value → what is wrong with it."""


def check_rules(message: Any) -> None:
    """Raises `Bad` with every rule that a message breaks, in itself or deeper."""
    problems = list(_problems(message))
    if problems:
        raise Bad.of(problems)


# Rules that the control planes of gRPC never kept and that nothing here depends on.
_LENIENT: Final = frozenset(
    {
        "envoy.config.route.v3.VirtualHost.name",
        "envoy.config.route.v3.RouteConfiguration.name",
        "envoy.config.route.v3.RouteAction.HashPolicy.FilterState.key",
    }
)


def _not_an_address(value: str) -> str | None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return f"{value!r} is not an IP address"
    return None


# What Envoy looks at when it makes something of a message.
_FURTHER: Final[dict[str, tuple[Check, ...]]] = {
    "envoy.config.core.v3.CidrRange.address_prefix": (_not_an_address,),
}


def _problems(message: Any) -> Iterator[Problem]:
    plan = _plan(message.DESCRIPTOR)
    yield from plan.required(message)
    for field, value in message.ListFields():
        step = plan.fields.get(field.name)
        if step is not None:
            yield from step(value)


class _Plan:
    """What is to be looked at in messages of one type."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.fields: dict[str, Callable[[Any], Iterator[Problem]]] = {}
        # (name, what is wrong while it is empty; None: it must be there)
        self._absent: list[tuple[str, str | None]] = []
        self._oneofs: list[str] = []
        for field in descriptor.fields:
            self._add(field)
        for oneof in descriptor.oneofs:
            if oneof.GetOptions().Extensions[validate_pb2.required]:
                self._oneofs.append(oneof.name)

    def _add(self, field: FieldDescriptor) -> None:
        rules = field.GetOptions().Extensions[validate_pb2.rules]
        lenient = field.full_name in _LENIENT
        checks = [] if lenient else _checks_of(field, rules)
        checks += _FURTHER.get(field.full_name, ())
        skip = rules.message.skip
        if field.message_type is None or skip:
            step = _scalars(field.name, checks)
        elif field.is_repeated:
            step = _repeated(field, rules, checks)
        else:
            step = _nested(field.name, checks)
        if checks or (field.message_type is not None and not skip):
            self.fields[field.name] = step
        if lenient:
            return
        if field.containing_oneof is not None:
            return
        if rules.message.required or rules.duration.required or rules.any.required:
            self._absent.append((field.name, None))
        elif not field.has_presence and checks and not _ignores_empty(rules):
            empty: Any = {} if field.is_repeated else field.default_value
            problems = (problem for check in checks if (problem := check(empty)) is not None)
            self._absent += [(field.name, problem) for problem in problems]

    def required(self, message: Any) -> Iterator[Problem]:
        """What is wrong with the fields that are not set."""
        for name in self._oneofs:
            if message.WhichOneof(name) is None:
                yield name, "is needed"
        for name, problem in self._absent:
            if problem is None:
                if not message.HasField(name):
                    yield name, "is needed"
            elif not getattr(message, name):
                yield name, problem


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    return _Plan(descriptor)


def _ignores_empty(rules: Any) -> bool:
    which = rules.WhichOneof("type")
    return which is not None and bool(getattr(getattr(rules, which), "ignore_empty", False))


def _scalars(name: str, checks: list[Check]) -> Callable[[Any], Iterator[Problem]]:
    def step(value: Any) -> Iterator[Problem]:
        for check in checks:
            problem = check(value)
            if problem is not None:
                yield name, problem

    return step


def _nested(name: str, checks: list[Check]) -> Callable[[Any], Iterator[Problem]]:
    def step(value: Any) -> Iterator[Problem]:
        for check in checks:
            problem = check(value)
            if problem is not None:
                yield name, problem
        for path, problem in _problems(value):
            yield f"{name}.{path}", problem

    return step


def _repeated(
    field: FieldDescriptor, rules: Any, checks: list[Check]
) -> Callable[[Any], Iterator[Problem]]:
    name = field.name
    item_type = field.message_type
    assert item_type is not None
    entry = item_type.GetOptions().map_entry
    values_are_messages = not entry or item_type.fields_by_name["value"].message_type is not None
    items = [] if entry else _value_checks(field, rules.repeated.items)

    def step(value: Any) -> Iterator[Problem]:
        for check in checks:
            problem = check(value)
            if problem is not None:
                yield name, problem
        if not values_are_messages:
            return
        pairs = value.items() if entry else enumerate(value)
        for key, item in pairs:
            for check in items:
                problem = check(item)
                if problem is not None:
                    yield f"{name}[{key}]", problem
            for path, problem in _problems(item):
                yield f"{name}[{key}].{path}", problem

    return step


# --- the rules of one field -------------------------------------------------------------------


def _checks_of(field: FieldDescriptor, rules: Any) -> list[Check]:
    which = rules.WhichOneof("type")
    if which is None:
        return []
    if which == "repeated":
        return _repeated_checks(field, rules.repeated)
    if which == "map":
        return _map_checks(rules.map)
    return _value_checks(field, rules)


def _value_checks(field: FieldDescriptor, rules: Any) -> list[Check]:
    """Checks of a single value; those of a wrapper look inside it."""
    which = rules.WhichOneof("type")
    if which is None:
        return []
    own = getattr(rules, which)
    if which == "string":
        checks = _string_checks(own)
    elif which == "bytes":
        checks = _length_checks(own, len, "bytes")
    elif which == "enum":
        checks = _enum_checks(field, own)
    elif which in ("duration", "timestamp"):
        return _time_checks(own)
    elif which == "any":
        return []
    else:
        checks = _number_checks(own)
    wrapper = field.message_type
    if wrapper is not None and wrapper.full_name.endswith("Value"):
        return [_inside(check) for check in checks]
    if getattr(own, "ignore_empty", False):
        return [_unless_empty(check) for check in checks]
    return checks


def _inside(check: Check) -> Check:
    return lambda wrapper: check(wrapper.value)


def _unless_empty(check: Check) -> Check:
    return lambda value: check(value) if value else None


def _unless(holds: Callable[[Any], bool], problem: str) -> Check:
    return lambda value: None if holds(value) else problem


def _length_checks(rules: Any, length: Callable[[Any], int], unit: str) -> list[Check]:
    checks: list[Check] = []
    if rules.HasField("min_len"):
        least = rules.min_len
        text = "must not be empty" if least == 1 else f"must have at least {least} {unit}"
        checks.append(_unless(lambda value: length(value) >= least, text))
    if rules.HasField("max_len"):
        most = rules.max_len
        checks.append(_unless(lambda v: length(v) <= most, f"must have at most {most} {unit}"))
    return checks


_HEADER_NAME: Final = re.compile(r":?[0-9a-zA-Z!#$%&'*+\-.^_|~`]+")
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_LENIENT_TEXT: Final = re.compile(r"[^\x00\n\r]*")


def _string_checks(rules: Any) -> list[Check]:
    checks = _length_checks(rules, len, "characters")
    if rules.HasField("min_bytes"):
        least = rules.min_bytes
        text = "must not be empty" if least == 1 else f"must have at least {least} bytes"
        checks.append(_unless(lambda value: len(value.encode()) >= least, text))
    if rules.HasField("max_bytes"):
        most = rules.max_bytes
        checks.append(_unless(lambda v: len(v.encode()) <= most, f"must have at most {most} bytes"))
    if rules.pattern:
        pattern = re2.compile(rules.pattern)
        checks.append(
            _unless(lambda v: pattern.search(v) is not None, f"must match {rules.pattern}")
        )
    if rules.prefix:
        checks.append(
            _unless(lambda v: v.startswith(rules.prefix), f"must start with {rules.prefix!r}")
        )
    if getattr(rules, "in"):
        allowed = tuple(getattr(rules, "in"))
        checks.append(_unless(lambda v: v in allowed, f"must be one of {', '.join(allowed)}"))
    if rules.not_in:
        refused = tuple(rules.not_in)
        checks.append(_unless(lambda v: v not in refused, f"must not be {', '.join(refused)}"))
    if rules.well_known_regex:
        checks.append(_header_check(rules))
    return checks


def _header_check(rules: Any) -> Check:
    if not rules.strict:
        text = "must not contain CR, LF or NUL"
        return _unless(lambda v: _LENIENT_TEXT.fullmatch(v) is not None, text)
    if rules.well_known_regex == validate_pb2.HTTP_HEADER_NAME:
        return _unless(lambda v: _HEADER_NAME.fullmatch(v) is not None, "is not a header name")
    return _unless(lambda v: _HEADER_VALUE.fullmatch(v) is not None, "is not a header value")


def _enum_checks(field: FieldDescriptor, rules: Any) -> list[Check]:
    checks: list[Check] = []
    enum = field.enum_type
    assert enum is not None
    known = frozenset(value.number for value in enum.values)
    if rules.defined_only:
        checks.append(_unless(lambda value: value in known, "is not a known value"))
    refused = frozenset(rules.not_in)
    if refused:
        checks.append(_unless(lambda value: value not in refused, "is not allowed here"))
    allowed = frozenset(getattr(rules, "in"))
    if allowed:
        checks.append(_unless(lambda value: value in allowed, "is not allowed here"))
    return checks


def _number_checks(rules: Any) -> list[Check]:
    names = {field.name for field, _ in rules.ListFields()}
    checks: list[Check] = []
    if "const" in names:
        checks.append(_unless(lambda v: v == rules.const, f"must be {rules.const}"))
    if "gt" in names:
        checks.append(_unless(lambda v: v > rules.gt, f"must be more than {rules.gt}"))
    if "gte" in names:
        checks.append(_unless(lambda v: v >= rules.gte, f"must be at least {rules.gte}"))
    if "lt" in names:
        checks.append(_unless(lambda v: v < rules.lt, f"must be less than {rules.lt}"))
    if "lte" in names:
        checks.append(_unless(lambda v: v <= rules.lte, f"must be at most {rules.lte}"))
    if "in" in names:
        allowed = frozenset(getattr(rules, "in"))
        checks.append(_unless(lambda v: v in allowed, f"must be one of {sorted(allowed)}"))
    if "not_in" in names:
        refused = frozenset(rules.not_in)
        checks.append(_unless(lambda v: v not in refused, f"must not be {sorted(refused)}"))
    return checks


def _time_checks(rules: Any) -> list[Check]:
    def seconds(value: Any) -> float:
        total: float = value.seconds + value.nanos / 1e9
        return total

    checks: list[Check] = []
    for name, holds, words in (
        ("gt", lambda value, limit: value > limit, "more than"),
        ("gte", lambda value, limit: value >= limit, "at least"),
        ("lt", lambda value, limit: value < limit, "less than"),
        ("lte", lambda value, limit: value <= limit, "at most"),
    ):
        if name in rules.DESCRIPTOR.fields_by_name and rules.HasField(name):
            limit = seconds(getattr(rules, name))
            checks.append(_limited(seconds, holds, limit, f"must be {words} {limit:g} s"))
    return checks


def _limited(
    read: Callable[[Any], float], holds: Callable[[float, float], bool], limit: float, problem: str
) -> Check:
    return _unless(lambda value: holds(read(value), limit), problem)


def _repeated_checks(field: FieldDescriptor, rules: Any) -> list[Check]:
    checks: list[Check] = []
    if rules.min_items:
        text = "must not be empty" if rules.min_items == 1 else f"needs {rules.min_items} entries"
        checks.append(_unless(lambda value: len(value) >= rules.min_items, text))
    if rules.HasField("max_items"):
        most = rules.max_items
        checks.append(_unless(lambda value: len(value) <= most, f"has more than {most} entries"))
    if rules.unique:
        checks.append(_unless(lambda v: len(set(v)) == len(v), "has an entry that comes twice"))
    if field.message_type is None:
        checks += [_every(check) for check in _value_checks(field, rules.items)]
    return checks


def _every(check: Check) -> Check:
    def checked(values: Any) -> str | None:
        return next((problem for problem in map(check, values) if problem is not None), None)

    return checked


def _of_keys(check: Check) -> Check:
    return lambda value: check(value.keys())


def _map_checks(rules: Any) -> list[Check]:
    checks: list[Check] = []
    if rules.min_pairs:
        checks.append(_unless(lambda value: len(value) >= rules.min_pairs, "must not be empty"))
    keys = rules.keys.string
    if rules.keys.WhichOneof("type") == "string":
        inner = _string_checks(keys)
        checks += [_of_keys(_every(check)) for check in inner]
    return checks
