"""Registrar: workload registration at the edge: streams in, log lines and answers out, a file kept.

The file lets a restarted control plane serve the workloads it knew before any of them has come
back; without it their clients would be told that nobody is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from controlplane.model.registry import Health
from controlplane.model.resource import Resource
from controlplane.model.schema import counted
from controlplane.registration import (
    RESTART_GRACE,
    GroupKey,
    NoAddress,
    Registrations,
    claim_of,
    health_of,
    missing_group,
)
from controlplane.world import World
from controlplane.xds.push import Client
from controlplane.xds.server import HEALTH_INFORMATION

log = logging.getLogger("controlplane.registration")

_FILE = "registrations.json"
_TOUCH_SECONDS = 10.0
_PROBE_SECONDS = 0.5
_CANCELLED = 1
_NOT_FOUND = 5


def groups_of(world: World) -> dict[GroupKey, Resource]:
    """The WorkloadGroups of a world."""
    return {
        (resource.namespace, resource.name): resource
        for resource in world.resources
        if resource.kind == "WorkloadGroup"
    }


class Registrar:
    """An `Observer` of streams. Touched only by the event loop of the xDS server.

    Args:
        registrations: who is registered.
        groups: the WorkloadGroups as they are now.
        changed: called when the registered workloads are others than before.
        directory: where they are kept over a restart; None keeps them nowhere.
    """

    def __init__(
        self,
        registrations: Registrations,
        groups: Callable[[], Mapping[GroupKey, Resource]],
        changed: Callable[[], None],
        directory: pathlib.Path | None = None,
    ) -> None:
        self.registrations = registrations
        self._groups = groups
        self._changed = changed
        self._file = directory / _FILE if directory else None
        self._lock: int | None = None
        self._complained: set[str] = set()
        self._told: set[tuple[int, str]] = set()
        self._saved = ""
        self._touch_at = 0.0

    # --- streams -----------------------------------------------------------------------------

    def opened(self, client: Client) -> None:
        """A stream says who it is."""
        self._register(client, health_of(client.node))

    def health(self, client: Client, request: Any) -> None:
        """A HealthInformation request: healthy without an error, else not, or gone."""
        if request.HasField("error_detail"):
            detail = request.error_detail
            if detail.code == _CANCELLED and detail.message == "deregister":
                self._note(self.registrations.deregister(client.number))
                return
            draining = "draining" in (detail.message, health_of(client.node).value.lower())
            health = Health.DRAINING if draining else Health.UNHEALTHY
        else:
            health = Health.HEALTHY
        if request.HasField("node"):
            self._register(client, health)
        else:
            self._note(self.registrations.health(client.number, health))

    def closed(self, client: Client) -> None:
        """A stream is gone."""
        self._told = {told for told in self._told if told[0] != client.number}
        self._note(self.registrations.closed(client.number, time.monotonic()))

    def _register(self, client: Client, health: Health) -> None:
        try:
            claim = claim_of(client.node)
        except NoAddress as error:
            self._complain(client, str(error))
            return
        problem = missing_group(claim, self._groups()) if claim is not None else ""
        if problem:
            self._complain(client, problem)
        # A claim without a group is kept: the group may come.
        changed = self.registrations.opened(client.number, claim, health)
        if changed and claim is not None and not problem:
            log.info("%s registers, %s (from %s)", claim.name, health.value, client.peer)
        self._note(changed)

    def _complain(self, client: Client, problem: str) -> None:
        """Says it here, and to our own clients, which log it too."""
        if problem not in self._complained:
            self._complained.add(problem)
            log.error("%s", problem)
        if client.node.is_sdk and (client.number, problem) not in self._told:
            self._told.add((client.number, problem))
            answer = discovery_pb2.DiscoveryResponse(type_url=HEALTH_INFORMATION)
            error = answer.resource_errors.add()
            error.resource_name.name = str(client.node.metadata.get("AUTO_REGISTER_GROUP", ""))
            error.error_detail.code = _NOT_FOUND
            error.error_detail.message = problem
            client.outbox.append(answer.SerializeToString())
            client.wake.set()

    def _note(self, changed: bool) -> None:
        if changed:
            self._changed()

    # --- time --------------------------------------------------------------------------------

    async def probe(self) -> None:
        """Ends registrations of an earlier life where nothing listens any more."""
        waiting = [
            (number, claim.address, port)
            for number, claim in self.registrations.restored()
            for _, port in claim.ports[:1]
        ]
        refused = await asyncio.gather(*(_is_refused(host, port) for _, host, port in waiting))
        for (number, _, _), gone in zip(waiting, refused, strict=True):
            if gone:
                self._note(self.registrations.drop(number))

    def expire(self) -> float | None:
        """Ends what is overdue; seconds until something else may be, None for never."""
        now = time.monotonic()
        self._note(self.registrations.expire(now))
        if now >= self._touch_at:
            self._touch_at = now + _TOUCH_SECONDS
            self._touch()
        due = self.registrations.next_expiry()
        return None if due is None else max(0.0, due - now)

    def complain_again(self) -> None:
        """After a change of configuration what was said may be said anew."""
        self._complained.clear()
        self._told.clear()

    # --- the file ----------------------------------------------------------------------------

    def restore(self) -> None:
        """Takes up the registrations of an earlier life."""
        if self._file is None or not self._claim(self._file.parent):
            return
        try:
            if time.time() - self._file.stat().st_mtime > RESTART_GRACE:
                return  # away for longer than anybody waits: whoever lives registers anew
            saved = json.loads(self._file.read_text(encoding="utf-8"))
            self.registrations.restore(saved, time.monotonic())
        except FileNotFoundError:
            return
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("%s cannot be used, workloads register anew: %s", self._file, error)
            return
        if self.registrations:
            many = counted(len(self.registrations), "registration")
            log.info("%s taken over from %s", many, self._file)

    def _claim(self, directory: pathlib.Path) -> bool:
        """Makes the directory ours until this process ends; False when it is somebody else's."""
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning(
                "%s belongs to another control plane that runs: registrations of this one do not "
                "outlive a restart; name another directory with --state-dir",
                directory,
            )
            self._file = None
            self.close()
            return False
        except OSError:
            return True  # what cannot be written is said when there is something to write
        return True

    def close(self) -> None:
        """Leaves the directory to whoever comes next."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save(self) -> None:
        """Writes the registrations, atomically and for this user only."""
        if self._file is None:
            return
        text = json.dumps(self.registrations.dump(), indent=1)
        if text == self._saved or not (self.registrations or self._file.exists()):
            return
        try:
            _write(self._file, text)
            self._saved = text
        except OSError as error:
            hint = "name a directory that can be written to with --state-dir"
            log.warning("registrations do not outlive a restart: %s; %s", error, hint)
            self._file = None

    def _touch(self) -> None:
        """The time of the file says until when this control plane was there."""
        if self._file is not None and self._saved:
            with contextlib.suppress(OSError):
                os.utime(self._file)


async def _is_refused(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False  # not to be reached from here says nothing about others
    writer.close()
    return False


def _write(file: pathlib.Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
