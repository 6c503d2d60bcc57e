"""Directories of YAML and JSON files, watched.

A file that does not parse or validate keeps its last good version, a directory that is gone or
cannot be read keeps what it held, and it is said what is wrong and when it is right again. Writers
that replace atomically and those that write in place are both served: a change is read once the
directory has been quiet for `QUIET` seconds, and a file or a directory that has just become empty
is looked at twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watchfiles import awatch

from controlplane.model.parse import Parsed, Parser
from controlplane.model.resource import Finding, Level, Origin, Resource, ResourceRef
from controlplane.sources.base import Snapshot
from controlplane.sources.writing import Edit

SUFFIXES = (".yaml", ".yml", ".json")
QUIET = 0.05
EMPTY_GRACE = 0.2
RETRY = 1.0
_NAMED = 5
_EDITOR_MARKS = ("~", ".swp", ".swx", ".tmp", ".bak", ".orig")

log = logging.getLogger("controlplane.sources.files")

_Signature = tuple[int, int, int, int]


@dataclass(slots=True)
class _File:
    """What is known of one file."""

    signature: _Signature
    good: Parsed
    """The last version without errors."""
    errors: tuple[Finding, ...] = ()


class FileSource:
    """One or more directories (or single files). Used by one thread at a time."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Reads nothing yet.

        Args:
            paths: directories, looked through with all below them; the first one is written to.
        """
        self.paths = tuple(Path(path) for path in paths)
        self._files: dict[str, _File] = {}
        self._lost: dict[str, str] = {}
        """Directories that cannot be looked into, and why: what was in them stays in force."""
        self._parser = Parser()

    def load(self) -> Snapshot:
        """Reads what changed since the last time and returns everything.

        A path that does not exist is an error finding, not an exception.
        """
        self._refresh()
        return self._snapshot()

    async def changes(self) -> AsyncGenerator[Snapshot, None]:
        """A snapshot after every change that made a difference, within about a tenth of a second.

        The first one comes at once if anything changed since `load`.
        """
        watched = True
        while True:
            try:
                async with aclosing(self._watch()) as snapshots:
                    async for snapshot in snapshots:
                        yield snapshot
                watched = True
            except (OSError, RuntimeError) as error:
                # RuntimeError is how watchfiles reports a directory that went away.
                if watched:
                    names = ", ".join(map(str, self.paths))
                    log.warning("cannot watch %s: %s; looking every second instead", names, error)
                watched = False
                await asyncio.sleep(RETRY)

    async def _watch(self) -> AsyncGenerator[Snapshot, None]:
        targets = self._targets()
        if not targets:
            if await self._settle():
                yield self._snapshot()
            raise FileNotFoundError("no such directory")
        step = int(QUIET * 1000)
        # Ends by itself now and then, for what no event tells: a link to elsewhere, a lost watch.
        events = awatch(
            *targets, watch_filter=None, step=step, rust_timeout=1000, yield_on_timeout=True
        )
        if await self._settle():
            yield self._snapshot()
        async with aclosing(events):
            async for _ in events:
                if await self._settle():
                    yield self._snapshot()
                if self._targets() != targets:
                    return

    async def _settle(self) -> bool:
        """Reads the changes; what lost all its content gets a moment to be filled again."""
        if self._emptied():
            await asyncio.sleep(EMPTY_GRACE)
        return self._refresh()

    # --- reading -----------------------------------------------------------------------------

    def _refresh(self) -> bool:
        """Brings what is known up to date; whether anything changed."""
        lost: dict[str, str] = {}
        found = dict(self._scan(lost))
        for path in self._lost.keys() - lost.keys():
            log.info("%s: can be read again", path)
        changed, self._lost = lost != self._lost, lost
        gone = [name for name in self._files if name not in found and not _below(name, lost)]
        for name in gone:
            del self._files[name]
            changed = True
        if gone:
            log.info("%s: removed", _listed(gone))
        for name, signature in found.items():
            known = self._files.get(name)
            if known is None or known.signature != signature:
                changed |= self._read(name, signature, known)
        if changed:
            self._parser.sweep()
        return changed

    def _read(self, name: str, signature: _Signature, known: _File | None) -> bool:
        parsed = self._parse(name)
        if parsed is None:  # it went away between listing and reading
            return self._files.pop(name, None) is not None
        if not parsed.errors:
            if known is not None and known.errors:
                log.info("%s: fixed", name)
            if known is not None and known.good.resources and not parsed.resources:
                what = _listed(list(map(str, known.good.resources)))
                log.warning("%s: holds no resource any more; removed: %s", name, what)
            self._files[name] = _File(signature, parsed)
            return True
        good = known.good if known is not None else Parsed((), ())
        kept = "; its last good version stays in force" if good.resources else ""
        if known is None or known.errors != parsed.errors:
            for error in parsed.errors:
                log.error("%s%s", error, kept)
        self._files[name] = _File(signature, good, parsed.errors)
        return True

    def _parse(self, name: str) -> Parsed | None:
        try:
            return self._parser.parse(read_text(name), name)
        except FileNotFoundError:
            if not os.path.islink(name):
                return None
            missing = os.path.join(os.path.dirname(name), os.readlink(name))
            return unreadable(name, ValueError(f"it links to {missing}, which does not exist"))
        except (OSError, ValueError) as error:
            return unreadable(name, error)

    def _emptied(self) -> bool:
        for path in map(str, self.paths):
            held = any(_below(name, (path,)) for name in self._files)
            if held and os.path.isdir(path) and not any(config_files(path)):
                return True
        for name, file in self._files.items():
            if file.good.resources:
                try:
                    if os.stat(name).st_size == 0:
                        return True
                except OSError:
                    continue
        return False

    def _snapshot(self) -> Snapshot:
        resources: list[Resource] = []
        findings: list[Finding] = []
        for path, problem in self._lost.items():
            findings.append(Finding(Level.ERROR, "", "config", problem, "", Origin(path)))
        for _, file in sorted(self._files.items()):
            resources += file.good.resources
            findings += file.errors or file.good.findings
        return Snapshot(tuple(resources), tuple(findings))

    # --- finding files -----------------------------------------------------------------------

    def _scan(self, lost: dict[str, str]) -> Iterator[tuple[str, _Signature]]:
        def unlisted(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # it was there a moment ago
                lost[str(error.filename)] = f"cannot be listed: {error.strerror}"

        for path in map(str, self.paths):
            if not os.path.exists(path):
                kept = any(_below(name, (path,)) for name in self._files)
                lost[path] = "does not exist" + ("; what it held stays in force" if kept else "")
                continue
            for name in config_files(path, unlisted) if os.path.isdir(path) else (path,):
                with contextlib.suppress(FileNotFoundError):
                    yield name, _signature(name)

    def _targets(self) -> set[str]:
        """What to watch: where the paths, and links in them, really lead to."""
        targets = {os.path.realpath(path) for path in self.paths if path.exists()}
        roots = tuple(targets)
        for name in [
            name for path in self.paths if path.is_dir() for name in config_files(str(path))
        ]:
            real = os.path.dirname(os.path.realpath(name))
            if not _below(real, roots) and os.path.isdir(real):
                targets.add(real)
        return targets

    # --- writing -----------------------------------------------------------------------------

    def write(self, document: Mapping[str, Any]) -> str:
        """Creates or replaces one resource, atomically; see `Edit.put`."""
        edit = self.edit()
        file = edit.put(document)
        edit.commit()
        return file

    def delete(self, ref: ResourceRef) -> str | None:
        """Removes one resource, atomically; see `Edit.remove`."""
        edit = self.edit()
        file = edit.remove(ref)
        edit.commit()
        return file

    def edit(self) -> Edit:
        """Several changes that are made together, to the files as they are now."""
        self._refresh()
        parsed = [file.good for _, file in sorted(self._files.items())]
        return Edit(self.paths[0], [res for one in parsed for res in one.resources])


def _signature(name: str) -> _Signature:
    """What differs after any change of a file.

    Raises:
        FileNotFoundError: there is no such file, and no link of that name either.
    """
    try:
        info = os.stat(name)
    except OSError:
        try:
            info = os.lstat(name)  # a link to nowhere
        except PermissionError:
            return (0, 0, 0, 0)  # listed, and may not be looked at: reading it says so
    return (info.st_mtime_ns, info.st_size, info.st_ino, info.st_ctime_ns)


def _below(name: str, paths: Iterable[str]) -> bool:
    return any(name == path or name.startswith(path.rstrip(os.sep) + os.sep) for path in paths)


def _listed(names: Sequence[str]) -> str:
    """Some of many names, in order."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more


def read_text(name: str, *, pipes: bool = False) -> str:
    """The text of a configuration file.

    Args:
        name: its path.
        pipes: also read what may never end, since the user named it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or no regular file.
    """
    if not pipes and not stat.S_ISREG(os.stat(name).st_mode):
        raise ValueError("it is no regular file")
    try:
        return Path(name).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None


def unreadable(name: str, error: OSError | ValueError) -> Parsed:
    """What is to be said of a file that `read_text` cannot read."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    problem = f"cannot be read: {reason}"
    return Parsed((), (Finding(Level.ERROR, "", "file", problem, "", Origin(name)),))


def config_files(root: str, onerror: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """Configuration files below a directory, links followed, hidden and editors' files left out."""
    seen: set[str] = set()
    for directory, subdirectories, names in os.walk(root, onerror=onerror, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            subdirectories.clear()
            continue
        seen.add(real)
        # Kubernetes mounts ConfigMaps as links into a hidden directory `..data`: the links count.
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for name in sorted(names):
            if is_config_file(name):
                yield os.path.join(directory, name)


def is_config_file(name: str) -> bool:
    """Whether a file's name says that it holds configuration."""
    if name.startswith((".", "#")) or name.endswith(_EDITOR_MARKS):
        return False
    return name.lower().endswith(SUFFIXES)
