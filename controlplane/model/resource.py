"""What every document of configuration is, whatever its kind; and what may be said about one."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from controlplane.model.documents import Chunk

MISSING_TIME = datetime.min
"""Stands in for an absent creationTimestamp when resources are put in order (Go's zero time)."""


class Origin(NamedTuple):
    """Where a document was read from; `line` is 1-based, 0 when there is none."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


NOWHERE = Origin("")


class ResourceRef(NamedTuple):
    """The identity of a resource: no two live documents share one."""

    kind: str
    group: str
    namespace: str
    name: str

    def __str__(self) -> str:
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {name}".rstrip()


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One document of any kind.

    `spec` is its `spec`, or, for kinds without one (ConfigMap, Endpoints, EndpointSlice), the whole
    document. `typed` is the spec decoded to its frozen type (see `traffic`, `policy`, `entries`)
    for the kinds that have one.
    """

    kind: str
    api_version: str
    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: datetime | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = NOWHERE
    typed: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)
    """The whole document as it was read."""
    source: Chunk | None = None
    """The text that it was read from, for the lines of its fields."""
    prefix: str = ""
    """Path of this resource inside its document, for example `items[2].` in a List."""

    @property
    def group(self) -> str:
        group, slash, _ = self.api_version.partition("/")
        return group if slash else ""

    @property
    def ref(self) -> ResourceRef:
        return ResourceRef(self.kind, self.group, self.namespace, self.name)

    @property
    def age_key(self) -> tuple[datetime, str, str]:
        """Order of precedence among equals: oldest first, then by name, then by namespace (H10)."""
        created = self.created.replace(tzinfo=None) if self.created else MISSING_TIME
        return (created, self.name, self.namespace)

    def line_of(self, path: str) -> int:
        """The line of a field, or of its nearest recorded parent."""
        lines = self.source.lines if self.source and path else {}
        path = self.prefix + path
        while path:
            if (line := lines.get(path)) is not None:
                return line
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.origin.line

    def finding(self, level: Level, code: str, message: str, path: str = "") -> Finding:
        """Something said about this resource, at the line of `path`."""
        origin = Origin(self.origin.file, self.line_of(path))
        return Finding(level, code, str(self), message, path, origin)

    def __str__(self) -> str:
        return str(self.ref)


class Level(enum.IntEnum):
    """Severity of a finding, as Istio's analyzers grade them."""

    INFO = 1
    WARNING = 2
    ERROR = 3

    @property
    def label(self) -> str:
        return self.name.capitalize()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the user should know about one resource.

    `code` is Istio's (`IST0101`) where Istio has one, else ours (`MSH0001`); empty for a plain
    schema or validation error. `path` is the field, for example `spec.http[0].route[0]`.
    """

    level: Level
    code: str
    resource: str
    message: str
    path: str = ""
    origin: Origin = NOWHERE

    def __str__(self) -> str:
        code = f" [{self.code}]" if self.code else ""
        path = f"{self.path}: " if self.path else ""
        place = f"{self.origin}: " if self.origin.file else ""
        return f"{place}{self.level.label}{code} {self.resource}: {path}{self.message}"


class ConfigError(Exception):
    """Configuration that cannot be used; carries one finding per mistake."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


def unique(resources: Iterable[Resource]) -> tuple[tuple[Resource, ...], list[Finding]]:
    """Of resources with one identity the first is kept; each other one is an error."""
    kept: dict[ResourceRef, Resource] = {}
    findings: list[Finding] = []
    for resource in resources:
        first = kept.setdefault(resource.ref, resource)
        if first is not resource:
            message = (
                f"is also in {first.origin}; that one is used, this one is not:"
                " remove one of them or rename it"
            )
            findings.append(resource.finding(Level.ERROR, "MSH0102", message))
    return tuple(kept.values()), findings
