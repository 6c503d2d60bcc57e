"""`meshctl validate`: schema and semantic validation of files, without a control plane."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from controlplane.cli import files
from controlplane.cli.output import Failure, Format, complain, data, say
from controlplane.model.parse import Parsed
from controlplane.world import Finding, Level, Origin, Resource


def register(app: typer.Typer) -> None:
    app.command("validate", help=_HELP)(validate)


_HELP = """\
Validate Istio and Kubernetes YAML: unknown fields, types, ranges, meaning.

Exit code 65 when a resource is invalid.

[bold]Examples[/]

  meshctl validate -f reviews.yaml

  meshctl validate -f config/ -o json

  kubectl get virtualservice -o yaml | meshctl validate -f -
"""


def validate(
    filename: files.Files,
    more: files.MoreFiles = [],  # noqa: B006 - typer copies it
    output: Annotated[Format, typer.Option("-o", "--output", help="Form of the answer.")] = (
        Format.SHORT
    ),
) -> None:
    found = [
        entry
        for file, parsed in _read([*filename, *more], output)
        for entry in _entries(file, parsed)
    ]
    invalid = [entry for entry in found if not entry["valid"]]
    if output is not Format.SHORT:
        data([_without_lines(entry) for entry in found], output)
    else:
        _print(found)
    if invalid:
        raise typer.Exit(65)


def _read(names: list[str], output: Format) -> list[tuple[str, Parsed]]:
    """`files.read`; as data, a file that is not there is an entry like any other mistake."""
    if output is Format.SHORT:
        return files.read(names)
    found: list[tuple[str, Parsed]] = []
    for name in names:
        try:
            found += files.read([name])
        except Failure as failure:
            problem = str(failure).removeprefix(f"{name}: ")
            mistake = Finding(Level.ERROR, "", "file", problem, "", Origin(name))
            found.append((name, Parsed((), (mistake,))))
    return found


def _print(found: Iterable[dict[str, Any]]) -> None:
    for entry in found:
        for error in entry["errors"]:
            complain(f"{_place(entry, error)}{error['message']}")
        for warning in entry["warnings"]:
            complain(f"{_place(entry, warning, 'warning: ')}{warning['message']}")
        if entry["valid"]:
            say(f"{entry['file']}:{entry['line']}: {entry['resource']} is valid")


def _place(entry: dict[str, Any], problem: dict[str, Any], level: str = "") -> str:
    path = f"{problem['path']}: " if problem["path"] else ""
    place = Origin(entry["file"], problem["line"])
    return f"{place}: {level}{entry['resource']}: {path}"


def _without_lines(entry: dict[str, Any]) -> dict[str, Any]:
    """As data, an entry has one line, and its problems have paths."""
    problems = ("errors", "warnings")
    short = {k: [{"path": p["path"], "message": p["message"]} for p in entry[k]] for k in problems}
    return entry | short


def _entries(file: str, parsed: Parsed) -> list[dict[str, Any]]:
    """One entry per document, and one per finding that belongs to none."""
    entries = [_entry(str(r), file, r.origin.line) for r in parsed.resources]
    for finding in parsed.findings:
        entry = _home(finding, parsed.resources, entries)
        if entry is None:
            entry = _entry(finding.resource, file, finding.origin.line)
            entries.append(entry)
        line = finding.origin.line
        problem = {"path": finding.path, "message": finding.message, "line": line}
        if finding.level is Level.ERROR:
            entry["errors"].append(problem)
            entry["valid"] = False
            entry["line"] = min(entry["line"], line)
        else:
            entry["warnings"].append(problem)
    return sorted(entries, key=lambda entry: entry["line"])


def _entry(resource: str, file: str, line: int) -> dict[str, Any]:
    return {
        "resource": resource, "file": file, "line": line,
        "valid": True, "errors": [], "warnings": [],
    }  # fmt: skip


def _home(
    finding: Finding, resources: Iterable[Resource], entries: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The entry of the document that a finding speaks of: same name, nearest line above."""
    same = [entry for entry in entries if entry["resource"] == finding.resource]
    above = [entry for entry in same if entry["line"] <= finding.origin.line]
    return max(above or same, key=lambda entry: entry["line"], default=None)
