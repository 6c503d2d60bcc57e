"""Renderer: every resource made and serialised once, shared by all clients that get the same.

A resource is kept as long as some client wants it. When the world changes, only the resources that
looked at a changed host are made again, and only those whose bytes differ are told to clients.
No I/O; owned by the task that publishes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import Message

from controlplane.translate.node import Variant
from controlplane.translate.relevance import relevant
from controlplane.translate.resources import CDS, EDS, make, names
from controlplane.world import Affected, World
from controlplane.xds.subscription import Lookup, Resource, Response

log = logging.getLogger("controlplane.xds.render")

Key = tuple[Variant, str, str]
"""(variant, type URL, name)."""

_MOST_RESPONSES = 256
_NOT_FOUND = 5


@dataclass(slots=True)
class _Entry:
    resource: Resource | None
    hosts: frozenset[str]
    notes: tuple[str, ...]


class Renderer:
    """The resources of the present world. Touched only by the event loop that pushes.

    Attributes:
        world: what is served.
        generation: grows with every world.
        relevant: the facts about clients that rules look at; a change gives clients new variants.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.generation = 1
        self.relevant = relevant(world)
        self._entries: dict[Key, _Entry] = {}
        self._by_host: dict[str, set[Key]] = {}
        self._absent: set[Key] = set()
        self._responses: dict[tuple[str, str, str, int, tuple[str, ...]], bytes] = {}

    # --- resources ---------------------------------------------------------------------------

    def lookup(self, variant: Variant) -> Lookup:
        """The resources of one variant."""

        def find(type_url: str, name: str) -> Resource | None:
            return self._entry((variant, type_url, name)).resource

        return find

    def listing(self, variant: Variant) -> Callable[[str], Iterable[str]]:
        """All names of one variant, by type."""
        return lambda type_url: names(self.world, variant, type_url)

    def notes(self, keys: Iterable[Key]) -> list[str]:
        """What clients of these resources could not be told as configured."""
        found: dict[str, None] = {}
        for key in keys:
            entry = self._entries.get(key)
            for note in entry.notes if entry else ():
                found[f"{key[2]}: {note}"] = None
        return list(found)

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget resources that no client wants any more."""
        for key in keys:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._unindex(key, entry)

    def _entry(self, key: Key) -> _Entry:
        entry = self._entries.get(key)
        return entry if entry is not None else self._make(key)

    def _make(self, key: Key, before: _Entry | None = None) -> _Entry:
        variant, type_url, name = key
        try:
            made = make(self.world, variant, type_url, name)
            message = made.message
            resource = _serialise(type_url, name, message) if message is not None else None
            entry, missed = _Entry(resource, made.hosts, made.notes), made.missed
        except Exception:
            # A defect of ours in one resource must not end the streams of all who want it. What it
            # looked at is not known: it is tried again at every change.
            log.exception("%s cannot be made; what was there before is served on", name)
            entry, missed = before or _Entry(None, frozenset(), ()), True
        self._entries[key] = entry
        for host in entry.hosts:
            self._by_host.setdefault(host, set()).add(key)
        if missed:
            self._absent.add(key)
        return entry

    def _unindex(self, key: Key, entry: _Entry) -> None:
        self._absent.discard(key)
        for host in entry.hosts:
            keys = self._by_host[host]
            keys.discard(key)
            if not keys:
                del self._by_host[host]

    # --- change ------------------------------------------------------------------------------

    def advance(self, world: World, affected: Affected) -> set[Key]:
        """Takes on a new world; the resources whose content is another now."""
        self.world = world
        self.generation += 1
        self.relevant = relevant(world)
        self._responses.clear()
        changed: set[Key] = set()
        for key in list(self._touched(affected)):
            before = self._entries.pop(key)
            self._unindex(key, before)
            after = self._make(key, before)
            old, new = before.resource, after.resource
            if (old and old.digest) != (new and new.digest):
                changed.add(key)
        return changed

    def _touched(self, affected: Affected) -> set[Key]:
        if affected.everything:
            return set(self._entries)
        touched: set[Key] = set()
        if affected.hosts:
            # What was looked for and not found may have come under another of its names.
            touched |= self._absent
        for host in affected.hosts:
            touched |= self._looking_at(host)
        for host in affected.endpoints:
            # Clusters that find their endpoints by DNS carry them inline.
            touched |= {key for key in self._looking_at(host) if key[1] in (EDS, CDS)}
        return touched

    def _looking_at(self, host: str) -> set[Key]:
        if not host.startswith("*"):
            return self._by_host.get(host, set())
        found: set[Key] = set()
        for known, keys in self._by_host.items():
            if known.endswith(host[1:]):
                found |= keys
        return found

    # --- responses ---------------------------------------------------------------------------

    def serialise(self, response: Response) -> bytes:
        """The bytes of a DiscoveryResponse; the same bytes for all who get the same."""
        content = sum(resource.digest for resource in response.resources)
        key = (response.type_url, response.version, response.nonce, content, response.missing)
        known = self._responses.get(key)
        if known is None:
            known = b"".join(_frame(response))
            if len(self._responses) >= _MOST_RESPONSES:
                self._responses.pop(next(iter(self._responses)))
            self._responses[key] = known
        return known


def _serialise(type_url: str, name: str, message: Message) -> Resource:
    value = message.SerializeToString(deterministic=True)
    mark = hashlib.blake2b(f"{type_url}\0{name}\0".encode(), digest_size=8)
    mark.update(value)
    packed = _field(1, type_url.encode()) + _field(2, value)
    return Resource(name, int.from_bytes(mark.digest(), "big"), _field(2, packed))


def _frame(response: Response) -> Iterator[bytes]:
    """The fields of a DiscoveryResponse in their order; resources are framed already."""
    yield _field(1, response.version.encode())
    for resource in response.resources:
        yield resource.body
    yield _field(4, response.type_url.encode())
    yield _field(5, response.nonce.encode())
    if response.missing:
        errors = discovery_pb2.DiscoveryResponse()
        for name in response.missing:
            error = errors.resource_errors.add()
            error.resource_name.name = name
            error.error_detail.code = _NOT_FOUND
            error.error_detail.message = f"{name} does not exist"
        yield errors.SerializeToString()


def _field(number: int, value: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return bytes((number << 3 | 2,)) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
