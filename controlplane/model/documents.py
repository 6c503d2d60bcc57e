"""Text of YAML or JSON → plain documents, with the line of every field.

Scalars are read as Kubernetes reads them (sigs.k8s.io/yaml): `on` and `yes` are booleans, but
timestamps and `12:30` stay text. A key that occurs twice is an error: one of the two would be lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

_MARKER = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_DIRECTIVES = re.compile(r"(?:(?:[%#][^\n]*|[ \t\r]*)\n)*")
_MAX_NODES = 1_000_000
_MAX_DEPTH = 100
"""No kind nests half as deep; libyaml overflows the stack of the process at some thousands."""
_TOO_DEEP = f"is nested too deeply: more than {_MAX_DEPTH} levels"
_TAG = "tag:yaml.org,2002:"


class DocumentError(Exception):
    """Text that is not a document; `line` is 1-based within the file."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


@dataclass(frozen=True)
class Chunk:
    """The text of one document and the number of lines before it."""

    text: str
    offset: int

    def load(self) -> Any:
        """The document as plain values; None when there is nothing but comments.

        Raises:
            DocumentError: not YAML, or a duplicate key.
        """
        stripped = self.text.lstrip()
        if stripped.startswith(("{", "[")):
            try:
                return self._json()
            except json.JSONDecodeError:
                pass  # YAML in flow style
        node = _compose(self)
        return None if node is None else _Builder(self.offset, "*" in self.text).build(node)

    @cached_property
    def lines(self) -> Mapping[str, int]:
        """The line of every field by its path; computed only when an error needs it."""
        try:
            node = _compose(self)
        except DocumentError:
            return {}
        found: dict[str, int] = {}
        if node is not None:
            _record(node, "", self.offset, found)
        return found

    def _json(self) -> Any:
        try:
            value = json.loads(
                self.text,
                object_pairs_hook=self._unique,
                parse_float=_float,
                parse_constant=_float,
            )
            if "\\u" in self.text:
                _check_encodable(value)
            brackets = self.text.count("[") + self.text.count("{")
            if brackets > _MAX_DEPTH and _is_deep(value):
                raise RecursionError
        except RecursionError:
            raise DocumentError(self.offset + 1, _TOO_DEEP) from None
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise DocumentError(self.offset + 1, _words(error)) from None
        return value

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DocumentError(self.offset + 1, f"key {twice!r} occurs twice in one object")
        return result


def split(text: str) -> Iterator[Chunk]:
    """Cuts a file at its `---` lines. Source: YAML 1.2, 9.1.4 (a marker ends any scalar)."""
    start, lines = 0, 0
    for marker in _MARKER.finditer(text):
        head = text[start : marker.start()]
        if "%" in head and _DIRECTIVES.fullmatch(head):
            continue  # they belong to the document behind the marker
        if head.strip():
            yield Chunk(head, lines)
        lines += head.count("\n")
        start = marker.end()
    if (tail := text[start:]).strip():
        yield Chunk(tail, lines)


class _Loader(yaml.CSafeLoader):
    """Knows the scalars of Kubernetes and no others."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as PyYAML declares it
    depth = 0

    def descend_resolver(self, _parent: Any, _index: Any) -> None:
        """Called at every node on the way down, from C code that recurses without a limit."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise RecursionError

    def ascend_resolver(self) -> None:
        """Called at every node on the way up."""
        self.depth -= 1


def _resolver(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(_TAG + tag, re.compile(pattern), list(first))


_resolver("null", r"^(?:~|null|Null|NULL|)$", "~nN")
_Loader.add_implicit_resolver(_TAG + "null", re.compile("^$"), [""])
_resolver(
    "bool",
    r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$",
    "yYnNtTfFoO",
)
_resolver("int", r"^[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$", "-+0123456789")
_resolver(
    "float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN))$",
    "-+0123456789.",
)
_resolver("merge", r"^<<$", "<")

SCALAR_RESOLVERS: Mapping[str, list[Any]] = _Loader.yaml_implicit_resolvers
"""By first character: what makes a plain scalar more than text, for those who write YAML."""

_TRUE = frozenset({"yes", "true", "on"})


def _compose(chunk: Chunk) -> yaml.Node | None:
    loader = _Loader(chunk.text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = chunk.offset + (mark.line + 1 if mark else 1)
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(line, f"not YAML: {problem}") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise DocumentError(chunk.offset + 1, f"not YAML: {problem}") from error
    except RecursionError:
        raise DocumentError(chunk.offset + 1, _TOO_DEEP) from None
    finally:
        loader.dispose()
    return node


class _Builder:
    """Nodes → values. One per document."""

    def __init__(self, offset: int, has_aliases: bool) -> None:
        self.offset = offset
        self.seen: dict[int, Any] | None = {} if has_aliases else None
        self.count = 0

    def build(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, self.offset)
        if self.seen is not None:
            self._check_alias(node, self.seen)
        value: Any
        if isinstance(node, yaml.SequenceNode):
            value = [self.build(item) for item in node.value]
        else:
            value = self._mapping(node)
        if self.seen is not None:
            del self.seen[id(node)]
        return value

    def _check_alias(self, node: yaml.Node, seen: dict[int, Any]) -> None:
        """What the text does not show: how deep and how large it is once aliases are expanded."""
        self.count += 1 + len(node.value)
        if self.count > _MAX_NODES:
            raise DocumentError(self._line(node), "aliases expand to more than a million nodes")
        if seen.get(id(node)) is node:
            raise DocumentError(self._line(node), "an alias refers to itself")
        seen[id(node)] = node
        if len(seen) > _MAX_DEPTH:
            raise DocumentError(self._line(node), _TOO_DEEP)

    def _mapping(self, node: yaml.Node) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                sources = self.build(value_node)
                for source in sources if isinstance(sources, list) else [sources]:
                    merged = {**source, **merged} if isinstance(source, dict) else merged
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise DocumentError(self._line(key_node), "a key must be text")
            key = key_node.value
            if key in result:
                raise DocumentError(
                    self._line(key_node), f"key {key!r} occurs twice in one mapping"
                )
            result[key] = self.build(value_node)
        return {**merged, **result} if merged else result

    def _line(self, node: yaml.Node) -> int:
        return int(self.offset + node.start_mark.line + 1)


def _scalar(node: yaml.ScalarNode, offset: int) -> Any:
    tag, text = node.tag, node.value
    if tag == "tag:yaml.org,2002:str":
        return text
    try:
        return _plain(tag, text)
    except ValueError as error:
        raise DocumentError(offset + node.start_mark.line + 1, _words(error)) from None


def _words(error: ValueError) -> str:
    # Python refuses to read numbers of thousands of digits, in words of its own.
    return "a number has too many digits" if "digits" in str(error) else str(error)


def _check_encodable(value: Any) -> None:
    """Half of a surrogate pair can be escaped in JSON and written nowhere else."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is not a character") from None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for part in level
            if isinstance(part, dict | list)
            for item in (part.values() if isinstance(part, dict) else part)
        ]
    return bool(level)


def _plain(tag: str, text: str) -> Any:
    if tag == "tag:yaml.org,2002:int":
        return _integer(text)
    if tag == "tag:yaml.org,2002:bool":
        return text.lower() in _TRUE
    if tag == "tag:yaml.org,2002:null":
        return None
    if tag == "tag:yaml.org,2002:float":
        return _float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if tag.startswith("tag:yaml.org,2002:"):
        return text  # timestamps, binary: text, as in JSON
    raise ValueError(f"tag {tag!r} means nothing here")


def _integer(text: str) -> int | str:
    digits = text.replace("_", "")
    if digits.isdigit() and (digits[0] != "0" or digits == "0"):
        return int(digits)
    try:
        sign = digits[:1] if digits[:1] in "+-" else ""
        bare = digits[len(sign) :]
        if len(bare) > 1 and bare[0] == "0" and bare[1].isdigit():
            return int(sign + "0o" + bare, 0)
        return int(digits, 0)
    except ValueError:
        return text


def _float(text: str) -> float | int:
    """`90.0` is the whole number 90, as in JSON made by Kubernetes; JSON knows no infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _record(node: yaml.Node, path: str, offset: int, found: dict[str, int]) -> None:
    if len(found) > _MAX_NODES:
        return
    found.setdefault(path, offset + node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            found[name] = offset + key.start_mark.line + 1
            _record(value, name, offset, found)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _record(item, f"{path}[{index}]", offset, found)
