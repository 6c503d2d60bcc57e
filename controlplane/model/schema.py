"""Validation of a spec against the CRD schema of its kind; every mistake with its path."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jsonschema_rs

from controlplane.model.rules import RULES


class Mistake(NamedTuple):
    """One thing that is wrong, at one field."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class KindSchema:
    """What is known of one kind of Istio's."""

    group: str
    kind: str
    versions: tuple[str, ...]
    plural: str
    short_names: tuple[str, ...]
    schema: Mapping[str, Any]

    def check(self, spec: Any) -> list[Mistake]:
        """All mistakes of a spec, in the order of their paths; empty when it is right."""
        validator, rules = _compiled(self.group, self.kind)
        found = [
            mistake
            for error in validator.iter_errors(spec)
            for mistake in _explain(error, self.schema)
        ]
        if not found and rules is not None:
            found = list(_broken_rules(rules, spec, "spec"))
        return sorted(set(found))


@cache
def kind_schemas() -> Mapping[tuple[str, str], KindSchema]:
    """The schema of every kind of Istio's, by group and kind."""
    text = files("controlplane.model").joinpath("schemas/istio.json").read_text()
    result = {}
    for key, entry in json.loads(text).items():
        group, _, kind = key.partition("/")
        result[group, kind] = KindSchema(
            group=group,
            kind=kind,
            versions=tuple(entry["versions"]),
            plural=entry["plural"],
            short_names=tuple(entry["short"]),
            schema=entry["spec"],
        )
    return result


def suggest(word: str, choices: Iterable[str]) -> str:
    """`, did you mean "x"?` when something close exists, else nothing."""
    options = list(choices)
    by_lower = {option.lower().replace("_", ""): option for option in options}
    close = difflib.get_close_matches(word.lower().replace("_", ""), by_lower, 1, 0.6)
    return f', did you mean "{by_lower[close[0]]}"?' if close else ""


def without_nulls(value: Any, schema: Mapping[str, Any] | None = None) -> Any:
    """A copy in which absent and null are the same, as in proto-JSON.

    With a schema only declared fields lose their nulls: a null in a map of messages is a mistake
    that validation should see.
    """
    if isinstance(value, dict):
        fields = None if schema is None else schema.get("properties", {})
        return {
            key: without_nulls(item, None if schema is None else _below(schema, key))
            for key, item in value.items()
            if item is not None or (fields is not None and key not in fields)
        }
    if isinstance(value, list):
        items = None if schema is None else schema.get("items", {})
        return [without_nulls(item, items) for item in value]
    return value


def _below(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
    return found if isinstance(found, dict) else {}


def join(path: Iterable[str | int], root: str = "spec") -> str:
    """`["http", 0, "route"]` → `spec.http[0].route`."""
    text = root
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


# --- schema errors in words --------------------------------------------------------------------


def _explain(error: jsonschema_rs.ValidationError, schema: Mapping[str, Any]) -> Iterator[Mistake]:
    path = join(error.instance_path)
    parent = _follow(schema, error.schema_path[:-1])
    kind = type(error.kind).__name__
    if kind == "AdditionalProperties":
        for word in getattr(error.kind, "unexpected", ()):
            yield Mistake(f"{path}.{word}", f"unknown field{_place(word, parent, schema)}")
    elif kind == "Required":
        yield Mistake(f"{path}.{getattr(error.kind, 'property', '')}", "is required")
    elif kind in ("OneOfMultipleValid", "OneOfNotValid", "AnyOf", "Not"):
        yield Mistake(path, _choice(error, parent.get(error.schema_path[-1])))
    elif kind == "Enum":
        wanted = ", ".join(map(str, parent["enum"]))
        value = error.instance
        hint = suggest(value, parent["enum"]) if isinstance(value, str) else ""
        yield Mistake(path, f"{value!r} is not one of {wanted}{hint}")
    elif kind == "Type":
        yield Mistake(path, _wrong_type(error.instance, parent.get("type")))
    else:
        yield Mistake(path, error.message)


def _place(word: str, parent: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Where an unknown field might have been meant to be."""
    if hint := suggest(word, parent.get("properties", ())):
        return hint
    elsewhere = min(_places(schema, word, "spec"), key=len, default="")
    return f"; it belongs at {elsewhere}" if elsewhere else ""


def _places(schema: Mapping[str, Any], word: str, path: str) -> Iterator[str]:
    for name, sub in schema.get("properties", {}).items():
        if name == word:
            yield f"{path}.{name}"
        yield from _places(sub, word, f"{path}.{name}")
    if isinstance(items := schema.get("items"), dict):
        yield from _places(items, word, f"{path}[]")


def _choice(error: jsonschema_rs.ValidationError, rule: Any) -> str:
    names = list(dict.fromkeys(_required_names(rule)))
    present = [
        name for name in names if isinstance(error.instance, dict) and name in error.instance
    ]
    if len(present) > 1:
        return f"only one of {', '.join(present)} may be set"
    if names and not present:
        return f"one of {', '.join(names)} must be set"
    return error.message


def _required_names(rule: Any) -> Iterator[str]:
    if isinstance(rule, dict):
        yield from rule.get("required", ())
        for sub in rule.values():
            yield from _required_names(sub)
    elif isinstance(rule, list):
        for sub in rule:
            yield from _required_names(sub)


_TYPE_NAMES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


def _wrong_type(value: Any, wanted: Any) -> str:
    kinds = wanted if isinstance(wanted, list) else [wanted]
    names = " or ".join(_TYPE_NAMES[kind] for kind in kinds if kind != "null")
    got = type_name(value)
    if "string" in kinds and isinstance(value, bool | int | float):
        shown = json.dumps(value)
        return f'must be text, not {got}: write "{shown}" in quotes'
    if "array" in kinds and isinstance(value, str):
        return f"must be a list, not text: write [{value}]"
    return f"must be {names}, not {got}"


def counted(number: int, noun: str) -> str:
    """`1 service`, `2 services`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def type_name(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def _follow(schema: Any, path: Iterable[str | int]) -> Any:
    for part in path:
        schema = schema[part]
    return schema


# --- rules -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RuleNode:
    """The rules of one place of a schema and of the places below it that have any."""

    rules: tuple[tuple[str, str], ...]
    unique: tuple[str, ...]
    fields: Mapping[str, _RuleNode]
    items: _RuleNode | None
    extra: _RuleNode | None


@cache
def _compiled(group: str, kind: str) -> tuple[jsonschema_rs.Validator, _RuleNode | None]:
    schema = kind_schemas()[group, kind].schema
    return jsonschema_rs.Draft202012Validator(dict(schema)), _rule_tree(schema)


def _rule_tree(schema: Any) -> _RuleNode | None:
    if not isinstance(schema, dict):
        return None
    fields = {
        name: node
        for name, sub in schema.get("properties", {}).items()
        if (node := _rule_tree(sub)) is not None
    }
    node = _RuleNode(
        rules=tuple((rule, message) for rule, message in schema.get("x-rules", ())),
        unique=tuple(schema.get("x-unique", ())),
        fields=fields,
        items=_rule_tree(schema.get("items")),
        extra=_rule_tree(schema.get("additionalProperties")),
    )
    if node.rules or node.unique or node.fields or node.items or node.extra:
        return node
    return None


def _broken_rules(node: _RuleNode, value: Any, path: str) -> Iterator[Mistake]:
    if value is None:
        return
    for rule, message in node.rules:
        if not RULES[rule](value):
            yield Mistake(path, message)
    if isinstance(value, dict):
        for name, item in value.items():
            sub = node.fields.get(name, node.extra)
            if sub is not None:
                yield from _broken_rules(sub, item, f"{path}.{name}")
    elif isinstance(value, list):
        if node.unique:
            yield from _repeated(value, node.unique, path)
        if node.items is not None:
            for index, item in enumerate(value):
                yield from _broken_rules(node.items, item, f"{path}[{index}]")


def _repeated(value: list[Any], keys: tuple[str, ...], path: str) -> Iterator[Mistake]:
    seen = set()
    for index, item in enumerate(value):
        key = tuple(item.get(name) for name in keys)
        if key in seen:
            text = ", ".join(f"{name} {item.get(name)!r}" for name in keys)
            yield Mistake(f"{path}[{index}]", f"{text} occurs twice")
        seen.add(key)
