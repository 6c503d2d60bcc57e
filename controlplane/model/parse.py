"""Files → resources: every document checked, every mistake with file, line and field."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from controlplane.model.decode import BODY_TYPES, SPEC_TYPES, decode, explain
from controlplane.model.documents import Chunk, DocumentError, split
from controlplane.model.resource import ConfigError, Finding, Level, Origin, Resource
from controlplane.model.schema import kind_schemas, suggest, type_name, without_nulls
from controlplane.model.validation import validate

ISTIO_GROUPS = frozenset(
    {
        "networking.istio.io",
        "security.istio.io",
        "telemetry.istio.io",
        "extensions.istio.io",
        "install.istio.io",
    }
)
CLUSTER_KINDS = frozenset(
    [
        "Namespace",
        "Node",
        "PersistentVolume",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "GatewayClass",
        "StorageClass",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
        "PriorityClass",
        "IngressClass",
        "APIService",
    ]
)
_LABEL_MAPS = ("labels", "annotations")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a text holds: its usable resources, and what is to be said about it."""

    resources: tuple[Resource, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level is Level.ERROR)


class Parser:
    """Parses texts, remembering documents by their content: an unchanged one costs a hash.

    Not shared between threads.
    """

    def __init__(self) -> None:
        self._cache: dict[bytes, Parsed] = {}
        self._used: dict[bytes, Parsed] = {}

    def parse(self, text: str, file: str) -> Parsed:
        """All documents of a text. Never raises: what is wrong is in the findings."""
        resources: list[Resource] = []
        findings: list[Finding] = []
        for chunk in split(text):
            parsed = self._parse_chunk(chunk, file)
            resources += parsed.resources
            findings += parsed.findings
        return Parsed(tuple(resources), tuple(findings))

    def sweep(self) -> None:
        """Forgets the documents that were not parsed since the last sweep."""
        self._cache, self._used = self._used, {}

    def _parse_chunk(self, chunk: Chunk, file: str) -> Parsed:
        key = hashlib.blake2b(chunk.text.encode(), digest_size=16).digest()
        parsed = self._used.get(key) or self._cache.get(key)
        if parsed is None:
            parsed = parse_chunk(Chunk(chunk.text, 0), "")
        self._used[key] = parsed
        return _move(parsed, chunk, file)


def parse_text(text: str, file: str = "<text>") -> Parsed:
    """Parses one text without remembering anything. See `Parser.parse`."""
    return Parser().parse(text, file)


def load_text(text: str, file: str = "<text>") -> tuple[Resource, ...]:
    """The resources of a text.

    Raises:
        ConfigError: with every mistake of it.
    """
    parsed = parse_text(text, file)
    if parsed.errors:
        raise ConfigError(parsed.errors)
    return parsed.resources


def _move(parsed: Parsed, chunk: Chunk, file: str) -> Parsed:
    """The same document at another place."""
    offset = chunk.offset
    resources = tuple(
        dataclasses.replace(
            resource, origin=Origin(file, resource.origin.line + offset), source=chunk
        )
        for resource in parsed.resources
    )
    findings = tuple(
        dataclasses.replace(finding, origin=Origin(file, finding.origin.line + offset))
        for finding in parsed.findings
    )
    return Parsed(resources, findings)


def parse_chunk(chunk: Chunk, file: str) -> Parsed:
    """Parses one document. Pure."""
    first = chunk.offset + 1 + _leading_lines(chunk.text)
    try:
        document = chunk.load()
    except DocumentError as error:
        return _failed(Origin(file, error.line), "document", error.problem)
    except RecursionError:
        return _failed(Origin(file, first), "document", "is nested too deeply")
    if document is None:
        return Parsed((), ())
    if not isinstance(document, dict):
        return _failed(
            Origin(file, first), "document", f"must be a mapping, not {type_name(document)}"
        )
    resources: list[Resource] = []
    findings: list[Finding] = []
    if document.get("kind") == "List" and not isinstance(items := document.get("items"), list):
        line = chunk.lines.get("items", first)
        return _failed(Origin(file, line), "List", f"items: must be a list, not {type_name(items)}")
    for prefix, item in _items(document):
        line = chunk.lines.get(prefix, first) if prefix else first
        source = Origin(file, line)
        if not isinstance(item, dict):
            findings += _failed(source, "document", "a List holds a non-mapping").findings
            continue
        reader = _Reader(item, source, chunk, f"{prefix}." if prefix else "")
        if (resource := reader.read()) is not None:
            resources.append(resource)
        findings += reader.findings
    return Parsed(tuple(resources), tuple(findings))


def _failed(origin: Origin, resource: str, message: str) -> Parsed:
    return Parsed((), (Finding(Level.ERROR, "", resource, message, "", origin),))


def _leading_lines(text: str) -> int:
    count = 0
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            break
        count += 1
    return count


def _items(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The members of a List kind, or the document itself."""
    kind, items = document.get("kind"), document.get("items")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
        own = kind.removesuffix("List")
        for index, item in enumerate(items):
            if own and isinstance(item, dict):
                item = {"apiVersion": document.get("apiVersion"), "kind": own, **item}
            yield f"items[{index}]", item
    else:
        yield "", document


class _Reader:
    """Reads one resource and collects what is wrong with it."""

    def __init__(self, document: dict[str, Any], origin: Origin, chunk: Chunk, prefix: str) -> None:
        self.document = document
        self.origin = origin
        self.chunk = chunk
        self.prefix = prefix
        self.findings: list[Finding] = []
        self.resource = Resource("document", "", "", "", origin=origin, source=chunk, prefix=prefix)

    def read(self) -> Resource | None:
        document = self.document
        kind, api_version = document.get("kind"), document.get("apiVersion")
        if not {"apiVersion", "kind", "metadata", "spec"} & document.keys():
            message = "not a resource (no apiVersion, no kind): ignored"
            self.findings.append(Finding(Level.INFO, "", "document", message, "", self.origin))
            return None
        for name, value in (("apiVersion", api_version), ("kind", kind)):
            if not isinstance(value, str) or not value:
                self._error(name, "is required" if value is None else "must be text")
        if self.findings:
            return None
        assert isinstance(kind, str)
        assert isinstance(api_version, str)
        metadata = self._metadata(kind)
        self.resource = self._resource(kind, api_version, metadata)
        group = self.resource.group
        if not self.resource.name and kind != "IstioOperator":
            self._error("metadata.name", "is required")
        if group in ISTIO_GROUPS:
            self._check_istio(group, kind, api_version)
        if any(finding.level is Level.ERROR for finding in self.findings):
            return None
        return self._decoded(group, kind)

    def _resource(self, kind: str, api_version: str, metadata: dict[str, Any]) -> Resource:
        document = self.document
        name = metadata.get("name") or metadata.get("generateName") or ""
        namespace = "" if kind in CLUSTER_KINDS else metadata.get("namespace") or "default"
        spec = document.get("spec")
        known = kind_schemas().get((api_version.partition("/")[0], kind))
        return Resource(
            kind=kind,
            api_version=api_version,
            name=name,
            namespace=namespace,
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
            created=self._created(metadata.get("creationTimestamp")),
            spec=without_nulls(spec, known.schema if known else None)
            if isinstance(spec, dict)
            else {},
            status=document.get("status") or {},
            origin=self.origin,
            metadata=metadata,
            document=document,
            source=self.chunk,
            prefix=self.prefix,
        )

    def _metadata(self, kind: str) -> dict[str, Any]:
        metadata = self.document.get("metadata")
        self.resource = Resource(
            kind, "", "", "", origin=self.origin, source=self.chunk, prefix=self.prefix
        )
        if metadata is None:
            return {}
        if not isinstance(metadata, dict):
            self._error("metadata", f"must be a mapping, not {type_name(metadata)}")
            return {}
        clean = dict(metadata)
        for name in ("name", "namespace"):
            value = metadata.get(name)
            if value is not None and not isinstance(value, str):
                self._error(f"metadata.{name}", f'must be text: write "{value}" in quotes')
                clean.pop(name)
        for name in _LABEL_MAPS:
            clean[name] = self._label_map(f"metadata.{name}", metadata.get(name))
        return clean

    def _label_map(self, path: str, value: Any) -> dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._error(path, f"must be a mapping, not {type_name(value)}")
            return {}
        result = {}
        for key, text in value.items():
            if text is None:
                text = ""
            if isinstance(text, str):
                result[str(key)] = text
            else:
                shown = str(text).lower() if isinstance(text, bool) else text
                self._error(f"{path}.{key}", f'must be text: write "{shown}" in quotes')
        return result

    def _created(self, value: Any) -> datetime | None:
        if value is None:
            return None
        try:
            return datetime.fromisoformat(str(value))
        except ValueError:
            self._error("metadata.creationTimestamp", f"{value!r} is not a time (RFC 3339)")
            return None

    def _check_istio(self, group: str, kind: str, api_version: str) -> None:
        version = api_version.partition("/")[2]
        if (group, kind) == ("install.istio.io", "IstioOperator"):
            versions: tuple[str, ...] = ("v1alpha1",)
        elif (schema := kind_schemas().get((group, kind))) is not None:
            versions = schema.versions
        else:
            known = [name for owner, name in kind_schemas() if owner == group]
            self._error("kind", f"{kind!r} is not a kind of {group}{suggest(kind, known)}")
            return
        if version not in versions:
            choices = " or ".join(f"{group}/{name}" for name in versions)
            self._error("apiVersion", f"{kind} has no version {version!r}; write {choices}")
        fields = ("apiVersion", "kind", "metadata", "spec", "status")
        for name in self.document:
            if name not in fields:
                self._error(str(name), f"unknown field{suggest(str(name), fields)}")
        self._drop_retired(kind)
        spec = self.document.get("spec")
        if spec is not None and not isinstance(spec, dict):
            self._error("spec", f"must be a mapping, not {type_name(spec)}")
            return
        if (schema := kind_schemas().get((group, kind))) is not None:
            for mistake in schema.check(self.resource.spec):
                self._error(mistake.path, mistake.message)

    def _drop_retired(self, kind: str) -> None:
        """Takes out fields that Istio had once and that mean nothing any more."""
        if kind != "VirtualService" or not isinstance(
            routes := self.resource.spec.get("http"), list
        ):
            return
        for index, route in enumerate(routes):
            if not isinstance(route, dict):
                continue
            if isinstance(matches := route.get("match"), list):
                route["match"] = [{} if match is None else match for match in matches]
            if route.pop("websocketUpgrade", None) is not None:
                path = f"spec.http[{index}].websocketUpgrade"
                message = "deprecated and without effect: websockets always work"
                self.findings.append(self.resource.finding(Level.WARNING, "MSH0001", message, path))

    def _decoded(self, group: str, kind: str) -> Resource | None:
        key = (group, kind)
        resource = self.resource
        wanted = SPEC_TYPES.get(key) or BODY_TYPES.get(key)
        if wanted is not None:
            root = "spec" if key in SPEC_TYPES else ""
            value = resource.spec if root else without_nulls(self.document)
            try:
                typed = decode(value, wanted)
            except msgspec.ValidationError as error:
                self._error(*explain(error, root, wanted))
                return None
            resource = dataclasses.replace(resource, typed=typed)
            self.resource = resource
        self.findings += validate(resource)
        if any(finding.level is Level.ERROR for finding in self.findings):
            return None
        return resource

    def _error(self, path: str, message: str) -> None:
        self.findings.append(self.resource.finding(Level.ERROR, "", message, path))
