"""What the ledger `tools/fields.yaml` says of the fields of the compiled CRDs.

Kind → pattern of field paths → `tests: [path::name]`, `not honoured: why` or
`not honoured yet: what happens to it now`. In a pattern `*` stands for one name of a path and `**`
for any number of them, also none. Of several patterns the most specific one counts.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "controlplane" / "model" / "schemas" / "istio.json"
LEDGER = ROOT / "tools" / "fields.yaml"

STATUS = "status"
"""The kind under which the ledger and the document keep what the status of every kind holds."""
_TESTS, _NO, _LATER, _NOTE = "tests", "not honoured", "not honoured yet", "note"
_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")


class LedgerError(Exception):
    """The ledger and the schemas do not fit together."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a field: covering tests, or why there are none."""

    tests: tuple[str, ...] = ()
    reason: str = ""
    later: bool = False
    """It is to be honoured: `reason` says what happens to it now."""
    note: str = ""
    """What a reader should know of a field that is honoured."""

    def __str__(self) -> str:
        if self.tests:
            covered = "<br>".join(f"`{test}`" for test in self.tests)
            return f"{self.note}<br>{covered}" if self.note else covered
        return f"not honoured{' yet' if self.later else ''}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of field paths with its verdict."""

    text: str
    verdict: Verdict

    @property
    def rank(self) -> tuple[int, int, int]:
        """More literal names are more specific, then fewer `**`, then fewer `*`."""
        parts = self.text.split(".")
        deep, single = parts.count("**"), parts.count("*")
        return (len(parts) - deep - single, -deep, -single)

    def matches(self, path: str) -> bool:
        return _expression(self.text).fullmatch(path) is not None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind with its fields, judged, in the order of its schema."""

    name: str
    group: str
    versions: tuple[str, ...]
    """The newest first."""
    verdicts: Mapping[str, Verdict]
    folded: tuple[str, ...] = ()

    def count(self) -> tuple[int, int, int]:
        """(honoured, not yet, not)."""
        honoured = sum(bool(verdict.tests) for verdict in self.verdicts.values())
        later = sum(verdict.later for verdict in self.verdicts.values())
        return honoured, later, len(self.verdicts) - honoured - later


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    """A path is matched with a dot in front of each of its names."""
    names = {"*": r"(?:^|\.)[^.]+", "**": r"(?:(?:^|\.)[^.]+)*"}
    return re.compile(
        "".join(names.get(part, rf"(?:^|\.){re.escape(part)}") for part in pattern.split("."))
    )


# --- schemas ---------------------------------------------------------------------------------


def fields_of(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """The paths of all fields below a schema: lists have `[]` behind them, maps `{}`."""
    for name, below in schema.get("properties", {}).items():
        found = f"{path}.{name}"
        while True:
            if isinstance(items := below.get("items"), dict):
                found, below = f"{found}[]", items
            elif isinstance(values := below.get("additionalProperties"), dict):
                found, below = f"{found}{{}}", values
            else:
                break
        yield found
        yield from fields_of(below, found)


def newest_first(versions: Iterable[str]) -> tuple[str, ...]:
    """Versions as Kubernetes ranks them: v1, v1beta1, v1alpha3."""

    def rank(version: str) -> tuple[bool, bool, int, int]:
        match = _VERSION.fullmatch(version)
        if match is None:
            raise LedgerError(f"{version!r} is no version of a CRD")
        major, stage, minor = match.groups()
        return (stage is None, stage == "beta", int(major), int(minor or 0))

    return tuple(sorted(versions, key=rank, reverse=True))


def read_schemas(path: Path = SCHEMAS) -> dict[str, Any]:
    """The compiled CRDs, by `<group>/<kind>`."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# --- ledger ----------------------------------------------------------------------------------


def read_ledger(path: Path = LEDGER) -> dict[str, Any]:
    """The ledger as written; keys that begin with a dot hold anchors only."""
    found = yaml.safe_load(path.read_text())
    return {kind: entries for kind, entries in found.items() if not kind.startswith(".")}


def verdict(entry: Any, where: str) -> Verdict:
    """The verdict of one entry of the ledger.

    Raises:
        LedgerError: it says nothing, or too much.
    """
    said = [key for key in (_TESTS, _NO, _LATER) if isinstance(entry, dict) and entry.get(key)]
    if len(said) != 1 or not entry.keys() <= {*said, _NOTE}:
        raise LedgerError(f"{where}: must have one of {_TESTS}, {_NO}, {_LATER} (and {_NOTE})")
    if said[0] == _TESTS:
        tests = entry[_TESTS]
        listed = (tests,) if isinstance(tests, str) else tuple(_flat(tests))
        return Verdict(tests=tuple(dict.fromkeys(listed)), note=entry.get(_NOTE, ""))
    return Verdict(reason=entry[said[0]], later=said[0] == _LATER)


def _flat(tests: Iterable[Any]) -> Iterator[str]:
    """Lists inside lists come from anchors."""
    for test in tests:
        if isinstance(test, str):
            yield test
        else:
            yield from _flat(test)


def judge(kind: str, paths: Iterable[str], patterns: Sequence[Pattern]) -> dict[str, Verdict]:
    """Every field with its verdict.

    Raises:
        LedgerError: fields that no pattern lists, fields that two patterns list alike, and patterns
            that decide nothing.
    """
    problems: list[str] = []
    idle = {pattern.text for pattern in patterns}
    found: dict[str, Verdict] = {}
    for path in paths:
        fitting = [pattern for pattern in patterns if pattern.matches(path)]
        best = max((pattern.rank for pattern in fitting), default=None)
        chosen = [pattern for pattern in fitting if pattern.rank == best]
        if not chosen:
            problems.append(f"{kind} {path}: is not listed")
            continue
        if len(chosen) > 1:
            names = " and ".join(pattern.text for pattern in chosen)
            problems.append(f"{kind} {path}: {names} are equally specific")
        idle.discard(chosen[0].text)
        found[path] = chosen[0].verdict
    problems += [f"{kind} {text}: decides no field" for text in sorted(idle)]
    if problems:
        raise LedgerError("\n".join(problems))
    return found


def kinds(schemas: Mapping[str, Any], ledger: Mapping[str, Any]) -> list[Kind]:
    """All kinds judged, in the order of the ledger, and at the end the status that all have.

    Raises:
        LedgerError: schemas and ledger do not fit together; with every mistake.
    """
    problems: list[str] = []
    found: list[Kind] = []
    names = {key.partition("/")[2] for key in schemas} | {STATUS}
    problems += [f"{name}: no such kind" for name in sorted(ledger.keys() - names)]
    status = {tuple(fields_of(schema["status"], STATUS)) for schema in schemas.values()}
    if len(status) != 1:
        raise LedgerError("the status fields of the kinds differ: list them with each kind")
    listed = [
        (key.partition("/"), schema["versions"], fields_of(schema["spec"], "spec"))
        for key, schema in schemas.items()
    ]
    order = {name: index for index, name in enumerate(ledger)}
    listed.sort(key=lambda entry: order.get(entry[0][2], len(order)))
    listed.append((("", "", STATUS), (), iter(status.pop())))
    for (group, _, name), versions, paths in listed:
        entries = dict(ledger.get(name) or {})
        folded = tuple(entries.pop("folded", ()))
        try:
            patterns = [Pattern(text, verdict(entries[text], f"{name} {text}")) for text in entries]
            verdicts = judge(name, paths, patterns)
            found.append(Kind(name, group, newest_first(versions), verdicts, folded))
        except LedgerError as error:
            problems.append(str(error))
    if problems:
        raise LedgerError("\n".join(problems))
    return found


# --- tests -----------------------------------------------------------------------------------


def missing_tests(found: Iterable[Kind], root: Path = ROOT) -> list[str]:
    """Test ids that lead nowhere: no such file, or no such class and function in it."""
    ids = {test for kind in found for verdict in kind.verdicts.values() for test in verdict.tests}
    return sorted(test for test in ids if not _exists(test, root))


def _exists(test: str, root: Path) -> bool:
    path, *names = test.split("::")
    if not names or not (root / path).is_file():
        return False
    body: Sequence[ast.stmt] = _statements(root / path)
    for name in names:
        below = [
            item.body
            for item in body
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and item.name == name
        ]
        if not below:
            return False
        body = below[0]
    return names[-1].startswith("test_")


@cache
def _statements(path: Path) -> Sequence[ast.stmt]:
    return ast.parse(path.read_text()).body
