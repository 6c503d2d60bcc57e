"""Configuration as text: `--set`, and what `apply` and `delete` do to the files of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml

from controlplane.model.parse import load_text, parse_text
from controlplane.model.resource import (
    ConfigError,
    Finding,
    Level,
    Resource,
    ResourceRef,
    unique,
)
from controlplane.refusal import SET_FLAG, Refused
from controlplane.sources.base import Snapshot
from controlplane.sources.files import FileSource
from controlplane.sources.writing import Edit

_MESH_CONFIG = "meshConfig"


def overrides(texts: Sequence[str]) -> tuple[Resource, ...]:
    """Mesh config from texts such as `meshConfig.outboundTrafficPolicy.mode=ALLOW_ANY`.

    The prefix `meshConfig.` may be left out; values are read as YAML.

    Raises:
        Refused: a text is not of this form.
    """
    if not texts:
        return ()
    tree: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise _wrong(text, "write it as field=value, e.g. outboundTrafficPolicy.mode=ALLOW_ANY")
        try:
            given = yaml.safe_load(value)
        except yaml.YAMLError:
            raise _wrong(text, "the value is not YAML; put quotes around text") from None
        _put(tree, key.removeprefix(f"{_MESH_CONFIG}.").split("."), given, text)
    document = {
        "apiVersion": "install.istio.io/v1alpha1",
        "kind": "IstioOperator",
        "metadata": {"name": "from-command-line", "namespace": "istio-system"},
        "spec": {_MESH_CONFIG: tree},
    }
    return load_text(yaml.safe_dump(document), SET_FLAG)


def _put(tree: dict[str, Any], path: list[str], value: Any, text: str) -> None:
    for part in path[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise _wrong(text, f"{part} was given a value of its own before")
        tree = below
    tree[path[-1]] = value


def _wrong(text: str, message: str) -> Refused:
    return Refused(f"{SET_FLAG} {text!r}: {message}", usage=True)


class Editor:
    """Changes the files of a source, one whole text at a time or nothing of it."""

    def __init__(self, source: FileSource) -> None:
        self._source = source

    def apply(
        self, text: str, objections: Callable[[Iterable[Resource]], Sequence[Finding]]
    ) -> list[dict[str, str]]:
        """Creates or replaces every document of a text.

        Args:
            text: YAML, one or several documents.
            objections: asked about all resources as they would be; an answer about a document of
                the text forbids the change.

        Returns:
            for each document: `resource`, `action` (created, configured, unchanged) and `file`.

        Raises:
            ConfigError: a document is wrong or objected to; nothing was written.
        """
        parsed = parse_text(text, "<apply>")
        if parsed.errors:
            raise ConfigError(parsed.errors)
        if not parsed.resources:
            raise _nothing()
        if twice := unique(parsed.resources)[1]:
            raise ConfigError(tuple(twice))
        before = {resource.ref: resource for resource in self._source.load().resources}
        after = {**before, **{resource.ref: resource for resource in parsed.resources}}
        names = {str(resource) for resource in parsed.resources}
        found = [f for f in objections(after.values()) if f.resource in names]
        if found:
            raise ConfigError(tuple(found))
        edit = self._source.edit()
        results = [_apply_one(edit, resource, before) for resource in parsed.resources]
        _commit(edit)
        return results

    def delete(self, text: str) -> list[dict[str, str]]:
        """Deletes the documents that a text names.

        Raises:
            ConfigError: the text is not YAML of resources; nothing was deleted.
        """
        parsed = parse_text(text, "<delete>")
        if not parsed.resources:
            raise ConfigError(parsed.errors) if parsed.errors else _nothing()
        return self._delete(parsed.resources)

    def delete_one(self, kind: str, namespace: str, name: str) -> list[dict[str, str]]:
        """Deletes one document by kind (any letter case), namespace and name; [] when none."""
        snapshot = self._source.load()
        found = [r for r in find(snapshot, kind) if (r.namespace, r.name) == (namespace, name)]
        return self._delete(found)

    def _delete(self, resources: Iterable[Resource]) -> list[dict[str, str]]:
        edit = self._source.edit()
        results = [_delete_one(edit, resource) for resource in resources]
        _commit(edit)
        return results


def _apply_one(
    edit: Edit, resource: Resource, before: Mapping[ResourceRef, Resource]
) -> dict[str, str]:
    known = before.get(resource.ref)
    if known is not None and known.document == resource.document:
        return _result(resource, "unchanged", known.origin.file)
    try:
        file = edit.put(resource.document)
    except (OSError, ValueError) as error:
        raise ConfigError((_cannot(resource, error),)) from None
    return _result(resource, "created" if known is None else "configured", file)


def _delete_one(edit: Edit, resource: Resource) -> dict[str, str]:
    try:
        file = edit.remove(resource.ref)
    except (OSError, ValueError) as error:
        raise ConfigError((_cannot(resource, error),)) from None
    return _result(resource, "not found" if file is None else "deleted", file or "")


def _commit(edit: Edit) -> None:
    try:
        edit.commit()
    except OSError as error:
        problem = f"nothing was changed: {error}"
        raise ConfigError((Finding(Level.ERROR, "", "input", problem),)) from None


def find(snapshot: Snapshot, kind: str) -> list[Resource]:
    """Resources of a kind, written in any letter case."""
    return [r for r in snapshot.resources if r.kind.lower() == kind.lower()]


def _result(resource: Resource, action: str, file: str) -> dict[str, str]:
    return {"resource": str(resource), "action": action, "file": file}


def _cannot(resource: Resource, error: Exception) -> Finding:
    return Finding(Level.ERROR, "", str(resource), f"cannot be written: {error}")


def _nothing() -> ConfigError:
    return ConfigError((Finding(Level.ERROR, "", "input", "holds no resource"),))
