"""The last good configuration on disk, so that a start without a control plane serves at once.

One JSON file per workload (namespace, workload name, control plane), readable by its owner alone:
the resources as the control plane sent them, with the time at which each was last seen. The time
of the file is the time at which a control plane last confirmed it. Several processes of a workload
share the file: each writes what it knows over what the others wrote; the rename is atomic and the
last writer wins.

A resource that carries a private key is never written.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from meshsdk.settings import Settings

_log = logging.getLogger("meshsdk.store")

_FORMAT = 1
KEEP_SECONDS = 24 * 3600.0
"""How long a resource stays that the writing process does not use: another one may."""

Resources = Mapping[str, Mapping[str, bytes]]
"""Type URL → resource name → serialised resource (the `value` of its Any)."""


@dataclass(frozen=True, slots=True)
class Saved:
    """
    Attributes:
        versions: version of each type as the control plane gave it.
        confirmed: Unix time at which a control plane last stood behind this.
    """

    resources: Resources
    versions: Mapping[str, str]
    confirmed: float


class Store:
    """The file of one workload. Any thread may call it; `_lock` orders the writers."""

    def __init__(self, directory: str, namespace: str, workload: str, server: str) -> None:
        key = "\n".join((namespace, workload, server)).encode()
        readable = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{namespace}.{workload}")[:80]
        name = f"{readable}-{hashlib.sha256(key).hexdigest()[:12]}.json"
        self.path = os.path.join(directory, name)
        self._directory = directory
        self._lock = threading.Lock()
        self._complained = False

    def load(self) -> Saved | None:
        """What was saved; None, after one log line, when it cannot be used."""
        try:
            return self._load()
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = error.strerror or str(error)
        except _Unusable as error:
            problem = str(error)
        _log.warning(
            "saved configuration %s is ignored: %s; it is written anew once a control plane "
            "has answered",
            self.path,
            problem,
        )
        return None

    def _load(self) -> Saved | None:
        entries, versions, confirmed = self._read()
        resources: dict[str, dict[str, bytes]] = {}
        for kind, items in entries.items():
            resources[kind] = {name: value for name, (_, value) in items.items()}
        return Saved(resources, versions, confirmed) if resources else None

    def save(
        self,
        resources: Resources,
        versions: Mapping[str, str],
        wanted: Mapping[str, frozenset[str]],
        *,
        durable: bool = True,
    ) -> None:
        """Write; a failure is one log line for the life of the process.

        Args:
            wanted: names this process asks for, by type: of these, what is not in `resources`
                does not exist any more.
            durable: wait until the disk has it (fsync).
        """
        with self._lock:
            try:
                self._save(resources, versions, wanted, durable)
            except OSError as error:
                if not self._complained:
                    self._complained = True
                    problem = error.strerror or error
                    _log.warning("configuration cannot be saved to %s: %s", self.path, problem)

    def confirm(self) -> None:
        """Note that the control plane still stands behind what the file says."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def _save(
        self,
        resources: Resources,
        versions: Mapping[str, str],
        wanted: Mapping[str, frozenset[str]],
        durable: bool,
    ) -> None:
        now = time.time()
        entries: dict[str, dict[str, tuple[float, bytes]]] = {}
        with contextlib.suppress(OSError, _Unusable):
            known, _, _ = self._read()
            for kind, items in known.items():
                mine = wanted.get(kind, frozenset())
                entries[kind] = {
                    name: (seen, value)
                    for name, (seen, value) in items.items()
                    if name not in mine and now - seen < KEEP_SECONDS
                }
        for kind, fresh in resources.items():
            entries.setdefault(kind, {}).update({n: (now, value) for n, value in fresh.items()})
        self._replace(_encode(entries, versions), durable)

    def _replace(self, text: str, durable: bool) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", os.path.basename(self.path), self._directory)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:  # mkstemp made it 0600
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _read(self) -> tuple[dict[str, dict[str, tuple[float, bytes]]], dict[str, str], float]:
        with open(self.path, encoding="utf-8") as file:
            confirmed = os.fstat(file.fileno()).st_mtime
            try:
                document = json.load(file)
            except ValueError as error:
                raise _Unusable(f"it is not JSON ({error})") from error
        entries, versions = _decode(document)
        return entries, versions, confirmed


class _Unusable(Exception):
    """The file is not one of ours, or not of this format."""


def _encode(
    entries: Mapping[str, Mapping[str, tuple[float, bytes]]], versions: Mapping[str, str]
) -> str:
    kinds = {
        kind: {
            name: {"seen": round(seen, 3), "value": base64.b64encode(value).decode("ascii")}
            for name, (seen, value) in sorted(items.items())
            if not _has_private_key(value)
        }
        for kind, items in sorted(entries.items())
        if not _is_secret(kind)
    }
    document = {"meshsdk": _FORMAT, "versions": dict(versions), "resources": kinds}
    return json.dumps(document, indent=1)


def _is_secret(kind: str) -> bool:
    return kind.endswith(".Secret")


def _has_private_key(value: bytes) -> bool:
    return b"PRIVATE KEY-----" in value


def _decode(document: Any) -> tuple[dict[str, dict[str, tuple[float, bytes]]], dict[str, str]]:
    if not isinstance(document, dict) or document.get("meshsdk") != _FORMAT:
        found = document.get("meshsdk") if isinstance(document, dict) else None
        raise _Unusable(f"its format is {found!r}, not {_FORMAT}")
    try:
        entries = {
            kind: {
                name: (float(item["seen"]), base64.b64decode(item["value"], validate=True))
                for name, item in items.items()
            }
            for kind, items in document["resources"].items()
        }
        versions = {str(kind): str(version) for kind, version in document["versions"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise _Unusable(f"it is damaged ({type(error).__name__}: {error})") from error
    return entries, versions


class Saver:
    """Decides when to write, and writes in a thread of its own. Only the xDS thread calls it.

    Attributes:
        due: monotonic time of the next write; None when everything is written.
    """

    _QUIET = 0.25
    _AT_MOST = 2.0

    def __init__(self, store: Store) -> None:
        self.store = store
        self.due: float | None = None
        self._first = 0.0
        self._writer: threading.Thread | None = None

    def changed(self, now: float) -> None:
        """Something may have changed: write when it has been quiet for a moment."""
        if self.due is None:
            self._first = now
        self.due = min(now + self._QUIET, self._first + self._AT_MOST)

    def run(self, now: float, source: Source) -> None:
        """Start to write, if it is time."""
        if self.due is None or now < self.due:
            return
        if self._writer is not None and self._writer.is_alive():
            self.due = now + self._QUIET
            return
        self.due = None
        saved = source.saved(time.time())
        self._writer = threading.Thread(
            target=self.store.save,
            args=(saved.resources, saved.versions, source.subscribed()),
            name="meshsdk-save",
            daemon=True,
        )
        self._writer.start()

    def flush(self, source: Source) -> None:
        """Write now what is not written yet, without waiting for the disk."""
        if self.due is None:
            return
        saved = source.saved(time.time())
        self.store.save(saved.resources, saved.versions, source.subscribed(), durable=False)
        self.due = None


class Source(Protocol):
    """What is written: `meshsdk.xds.configuration.Configuration`."""

    def saved(self, confirmed: float) -> Saved: ...

    def subscribed(self) -> Mapping[str, frozenset[str]]: ...


def saver_of(settings: Settings) -> Saver | None:
    """The saver of this workload; None when nothing is to be kept."""
    if not settings.state_dir:
        return None
    workload = settings.workload_name
    return Saver(Store(settings.state_dir, settings.namespace, workload, settings.server_address))
