"""Changes files as a user would: one document is replaced, everything around it stays."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from controlplane.model.documents import SCALAR_RESOLVERS, split
from controlplane.model.parse import parse_chunk, parse_text
from controlplane.model.resource import ConfigError, Origin, Resource, ResourceRef

_LONGEST_NAME = 200
_UNICODE_BREAKS = ("\x85", "\u2028", "\u2029")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Edit:
    """Changes of files, planned in memory and put in place together. Used once, by one thread."""

    def __init__(self, directory: Path, resources: Iterable[Resource]) -> None:
        """Reads nothing yet.

        Args:
            directory: where resources go that lie nowhere yet.
            resources: what lies in which file now; of several with one identity the first counts.
        """
        self._directory = directory
        self._homes = {res.ref: res for res in reversed(tuple(resources))}
        self._pages: dict[Path, _Page] = {}

    def put(self, document: Mapping[str, Any]) -> str:
        """Creates or replaces one resource.

        A resource that lies in a file already is replaced there; a new one gets a file of its own,
        `<kind>-<namespace>-<name>.yaml`.

        Returns:
            the path of the file.

        Raises:
            ConfigError: the document is not valid.
            OSError: the file cannot be read.
            ValueError: the resource is part of a List, or its file has mistakes.
        """
        text = dump(document)
        parsed = parse_text(text, "<applied>")
        if parsed.errors or len(parsed.resources) != 1:
            raise ConfigError(parsed.errors)
        resource = parsed.resources[0]
        known = self._homes.get(resource.ref)
        path = Path(known.origin.file) if known is not None else self._new_file(resource)
        if path.suffix.lower() == ".json":
            text = json.dumps(dict(document), indent=2, ensure_ascii=False)
        self._page(path, known).put(resource.ref, text.strip("\n"))
        self._homes[resource.ref] = replace(resource, origin=Origin(str(path)))
        return str(path)

    def remove(self, ref: ResourceRef) -> str | None:
        """Removes one resource, and its file when nothing else is in it.

        Returns:
            the path of the file that it was in; None when there is no such resource.

        Raises:
            OSError, ValueError: as `put`.
        """
        known = self._homes.pop(ref, None)
        if known is None:
            return None
        path = Path(known.origin.file)
        self._page(path, known).remove(ref)
        return str(path)

    def commit(self) -> None:
        """Changes the files: each in one step, and none of them when one cannot be written.

        Raises:
            OSError: nothing was changed.
        """
        ready: list[tuple[str, Path]] = []
        try:
            for path, page in self._pages.items():
                if (text := page.text()) is not None:
                    target = Path(os.path.realpath(path))
                    ready.append((_prepared(target, text), target))
        except BaseException:
            for temporary, _ in ready:
                Path(temporary).unlink(missing_ok=True)
            raise
        for temporary, target in ready:
            os.replace(temporary, target)
        for path, page in self._pages.items():
            if page.text() is None:
                path.unlink(missing_ok=True)

    def _new_file(self, resource: Resource) -> Path:
        if not self._directory.is_dir():
            raise ValueError(f"{self._directory} is a file: name a directory first (--config)")
        parts = [
            part for part in (resource.kind.lower(), resource.namespace, resource.name) if part
        ]
        stem = _UNSAFE.sub("-", "-".join(parts))[:_LONGEST_NAME]
        path = self._directory / f"{stem}.yaml"
        number = 1
        while path in self._pages or path.exists():  # another group's kind, or somebody's file
            number += 1
            path = self._directory / f"{stem}-{number}.yaml"
        return path

    def _page(self, path: Path, known: Resource | None) -> _Page:
        if known is not None and known.prefix:
            raise ValueError(f"{known.origin}: {known} is part of a List: edit the file itself")
        page = self._pages.get(path)
        if page is None:
            page = _Page.read(path) if known is not None else _Page()
            self._pages[path] = page
        return page


@dataclass(slots=True)
class _Page:
    """The documents of one file, in their order, each with the resource in it."""

    documents: list[tuple[ResourceRef | None, str]] = field(default_factory=list)
    line_end: str = "\n"

    @classmethod
    def read(cls, path: Path) -> _Page:
        """Raises ValueError when the file has mistakes: what is written there takes no effect."""
        text = path.read_bytes().decode("utf-8-sig")
        page = cls(line_end="\r\n" if "\r\n" in text else "\n")
        for chunk in split(text.replace("\r\n", "\n")):
            parsed = parse_chunk(chunk, str(path))
            if parsed.errors:
                raise ValueError(f"its file has a mistake, fix that first: {parsed.errors[0]}")
            refs = [resource.ref for resource in parsed.resources]
            page.documents.append((refs[0] if len(refs) == 1 else None, chunk.text.strip("\n")))
        return page

    def put(self, ref: ResourceRef, text: str) -> None:
        for index, (known, before) in enumerate(self.documents):
            if known == ref:
                self.documents[index] = (ref, _leading_comment(before) + text)
                return
        self.documents.append((ref, text))

    def remove(self, ref: ResourceRef) -> None:
        self.documents = [entry for entry in self.documents if entry[0] != ref]

    def text(self) -> str | None:
        """The text of the file; None: it holds nothing and goes."""
        if not any(text.strip() for _, text in self.documents):
            return None
        joined = "\n---\n".join(text for _, text in self.documents) + "\n"
        return joined.replace("\n", self.line_end)


def _leading_comment(text: str) -> str:
    """Comment lines in front of a document belong to the user: they stay."""
    lines = []
    for line in text.strip("\n").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        lines.append(line + "\n")
    return "".join(lines)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either PyYAML or our own reader would take for something else than text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML declares it
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *ours]
        for first, ours in {
            **{first: [] for first in yaml.SafeDumper.yaml_implicit_resolvers},
            **SCALAR_RESOLVERS,
        }.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(document: Mapping[str, Any]) -> str:
    """A document as YAML that reads back the same."""
    text: str = yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if any(mark in text for mark in _UNICODE_BREAKS):  # PyYAML writes them and reads them folded
        text = yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False)
    return text


def _prepared(target: Path, text: str) -> str:
    """A file with the new content beside the old one, ready to take its place."""
    handle, temporary = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name[:_LONGEST_NAME]}.", suffix=".tmp"
    )
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        os.chmod(temporary, mode)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary
