"""Subscription: what one client asked for, was told and has said to it, on one ADS stream.

Pure: no socket, no clock, no thread. The server feeds requests in and asks for the next response.

State of the world, as the xDS protocol describes it:

* Each type has its own names, nonce and version. A request whose nonce is not the newest one that
  was sent for its type is stale and is dropped whole; an empty nonce is a first request.
* A request with the newest nonce is an ACK, or a NACK when it carries an error. After a NACK the
  same content is not sent again; new content is.
* Listeners and clusters are sent all together: one that is missing does not exist. Routes and
  endpoints are sent as they change, and one that does not exist is not spoken of.
* A first request for listeners or clusters without names is a wildcard, until something is named;
  `*` is a wildcard beside names. After that, no names means nothing.

One response of a type is in flight at a time. Make before break: what is new or changed goes out
as clusters, endpoints, listeners, routes; only then is what no longer exists left out, listeners
before clusters. A client that is slow to answer finds the newest content, never a queue.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from controlplane.translate.resources import CDS, EDS, LDS, RDS

ORDER = (CDS, EDS, LDS, RDS)
REMOVAL_ORDER = (LDS, CDS)
FULL_STATE = frozenset({CDS, LDS})
WILDCARD = "*"
ACK_OVERDUE = 5.0
"""Seconds after which a client that does not answer is sent newer content all the same."""

_MASK = 2**64 - 1


class Resource(NamedTuple):
    """A serialised resource; equal digests mean equal bytes."""

    name: str
    digest: int
    """64-bit hash of type, name and content."""
    body: bytes


Lookup = Callable[[str, str], Resource | None]
"""(type URL, name) → the resource now, None when it does not exist."""

Listing = Callable[[str], Iterable[str]]
"""type URL → every name, for wildcard subscriptions."""


class Request(NamedTuple):
    """A DiscoveryRequest as far as it matters here."""

    type_url: str
    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    error: str | None = None
    """The detail of a NACK."""


class Response(NamedTuple):
    """A DiscoveryResponse to send now."""

    type_url: str
    version: str
    nonce: str
    resources: tuple[Resource, ...]
    missing: tuple[str, ...] = ()
    """Names that were asked for and do not exist, for clients that want to hear of it."""


class Verdict(enum.Enum):
    """What a request turned out to be."""

    STALE = "stale"
    FIRST = "first"
    ACK = "ack"
    NACK = "nack"


class Sync(enum.Enum):
    """How far one client is with one type, as `proxy-status` says it."""

    SYNCED = "SYNCED"
    STALE = "STALE"
    NOT_SENT = "NOT SENT"
    NACKED = "NACKED"


@dataclass(slots=True)
class TypeState:
    """One type on one stream. Touched only by the `Subscription` that owns it."""

    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    named_once: bool = False
    told: dict[str, Resource | None] = field(default_factory=dict)
    """What the client knows by what was sent; None: told that it does not exist."""
    digest: int = 0
    """Sum of the digests in `told`: the content that the client has."""
    dirty: set[str] = field(default_factory=set)
    """Names that may differ from `told`."""
    gone: set[str] = field(default_factory=set)
    """Names in `told` that no longer exist, to be left out when everything else is sent."""
    denied: set[str] = field(default_factory=set)
    """Names that the client was told do not exist (`resource_errors`)."""
    owed: bool = False
    """The client waits for a response even when nothing differs."""
    nonce: str = ""
    sent_version: str = ""
    in_flight_since: float | None = None
    acked_version: str = ""
    error: str = ""
    rejected_version: str = ""
    answered_at: float | None = None

    @property
    def sync(self) -> Sync:
        if self.error:
            return Sync.NACKED
        if self.in_flight_since is not None or self.dirty or self.owed or self.gone:
            return Sync.STALE
        return Sync.SYNCED if self.acked_version else Sync.NOT_SENT

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


class Subscription:
    """All types on one stream. Touched only by the task (or test) that serves the stream.

    Args:
        warming: also send endpoints again after their cluster changed, and routes after their
            listener: Envoy waits for them, other clients do not.
        deny: say which names do not exist (`resource_errors`, xRFC TP3), so that nobody waits.
    """

    def __init__(self, *, warming: bool = False, deny: bool = False) -> None:
        self.types: dict[str, TypeState] = {}
        self._warming = warming
        self._deny = deny
        self._generation = -1
        self._serial = 0

    # --- what the client says ----------------------------------------------------------------

    def receive(self, request: Request, lookup: Lookup, listing: Listing, now: float) -> Verdict:
        """Takes in one request of one of the four types.

        Args:
            request: what the client sent.
            lookup: the resources as they are now, to recognise what a reconnecting client has.
            listing: the names behind a wildcard.
            now: monotonic seconds.
        """
        known = self.types.get(request.type_url)
        state = known or self.types.setdefault(request.type_url, TypeState())
        if request.nonce and known is not None and request.nonce != state.nonce:
            return Verdict.STALE
        verdict = self._settle(state, request, now)
        before, was_wildcard = state.names, state.wildcard
        self._subscribe(state, request, listing)
        added = state.names - before
        for name in before - state.names:
            if not state.wildcard:
                self._forget(state, name)
        if was_wildcard and not state.wildcard:
            for name in set(state.told) - state.names:
                self._forget(state, name)
        fresh = known is None and bool(request.version)
        if fresh and self._recognise(state, request, lookup, listing):
            return verdict
        if added or (state.wildcard and not was_wildcard):
            state.dirty |= added
            if state.wildcard and not was_wildcard:
                state.dirty.update(listing(request.type_url))
            state.owed = True
        return verdict

    def _settle(self, state: TypeState, request: Request, now: float) -> Verdict:
        if not request.nonce or not state.nonce:
            return Verdict.FIRST  # or a nonce of another stream: there is nothing to confirm
        if state.in_flight_since is None:
            return Verdict.ACK  # only the names may differ: answered before
        state.in_flight_since = None
        state.answered_at = now
        if request.error is not None:
            state.error = request.error or "rejected without a reason"
            state.rejected_version = state.sent_version
            return Verdict.NACK
        state.error = ""
        state.acked_version = state.sent_version
        return Verdict.ACK

    @staticmethod
    def _subscribe(state: TypeState, request: Request, listing: Listing) -> None:
        names = set(request.names)
        if names:
            state.named_once = True
            state.wildcard = WILDCARD in names
        elif request.type_url in FULL_STATE and not state.named_once:
            state.wildcard = True
        else:
            state.wildcard = False
        state.names = names - {WILDCARD}

    @staticmethod
    def _forget(state: TypeState, name: str) -> None:
        told = state.told.pop(name, None)
        state.digest -= told.digest if told else 0
        state.dirty.discard(name)
        state.gone.discard(name)
        state.denied.discard(name)

    def _recognise(
        self, state: TypeState, request: Request, lookup: Lookup, listing: Listing
    ) -> bool:
        """Whether a client that comes back has exactly what it would be sent."""
        type_url = request.type_url
        names = state.names | set(listing(type_url) if state.wildcard else ())
        current = {name: lookup(type_url, name) for name in names}
        if type_url in FULL_STATE and None in current.values():
            return False  # it may still wait to hear that there is no such thing
        digest = sum(found.digest for found in current.values() if found)
        if _version(digest) != request.version:
            return False
        state.told = {name: found for name, found in current.items() if found}
        state.digest = digest
        state.sent_version = state.acked_version = request.version
        return True

    def touch(self, type_url: str, names: Iterable[str]) -> bool:
        """Marks resources that may have changed; whether the client wants any of them."""
        state = self.types.get(type_url)
        if state is None:
            return False
        wanted = {name for name in names if state.wants(name)}
        state.dirty |= wanted
        return bool(wanted)

    # --- what the client is told -------------------------------------------------------------

    def next(self, lookup: Lookup, generation: int, now: float) -> Response | None:
        """The response to send now; None when there is nothing to say, or an answer is awaited.

        Args:
            lookup: the resources of one generation of the world.
            generation: its number; together with a serial it makes the nonce.
            now: monotonic seconds.
        """
        if generation != self._generation:
            self._generation, self._serial = generation, 0
        for type_url in ORDER:
            state = self.types.get(type_url)
            if state is None or not (state.dirty or state.owed):
                continue
            if self._waits(state, now):
                return None  # what comes later in the order must not overtake it
            changed, missing = self._changes(type_url, state, lookup)
            if changed or missing or (state.owed and type_url in FULL_STATE):
                return self._respond(type_url, state, changed, now, missing)
            state.owed = False
        for type_url in REMOVAL_ORDER:
            state = self.types.get(type_url)
            if state is None or not state.gone:
                continue
            if self._waits(state, now):
                return None
            for name in state.gone:
                told = state.told.get(name)
                state.digest -= told.digest if told else 0
                state.told[name] = None
            state.gone = set()
            return self._respond(type_url, state, {}, now)
        return None

    @property
    def waiting_since(self) -> float | None:
        """When the oldest response that is not answered yet was sent."""
        times = [s.in_flight_since for s in self.types.values() if s.in_flight_since is not None]
        return min(times, default=None)

    @staticmethod
    def _waits(state: TypeState, now: float) -> bool:
        return state.in_flight_since is not None and now - state.in_flight_since < ACK_OVERDUE

    def _changes(
        self, type_url: str, state: TypeState, lookup: Lookup
    ) -> tuple[dict[str, Resource], list[str]]:
        """New and changed resources among the dirty names, and names that do not exist."""
        changed: dict[str, Resource] = {}
        missing: list[str] = []
        for name in state.dirty:
            current, told = lookup(type_url, name), state.told.get(name)
            if current is None:
                if told is not None:
                    state.gone.add(name)
                elif self._deny and name not in state.denied:
                    missing.append(name)
                continue
            state.gone.discard(name)
            state.denied.discard(name)
            if told is None or told.digest != current.digest:
                changed[name] = current
        state.dirty = set()
        if type_url not in FULL_STATE:
            state.gone.clear()  # their clients drop them with the cluster or the listener
        state.denied.update(missing)
        return changed, missing

    def _respond(
        self,
        type_url: str,
        state: TypeState,
        changed: dict[str, Resource],
        now: float,
        missing: Iterable[str] = (),
    ) -> Response:
        for name, resource in changed.items():
            told = state.told.get(name)
            state.digest += resource.digest - (told.digest if told else 0)
            state.told[name] = resource
        if type_url in FULL_STATE:
            sent = [resource for resource in state.told.values() if resource is not None]
        else:
            sent = list(changed.values())
        if self._warming:
            self._warm(type_url, changed)
        state.owed = False
        self._serial += 1
        state.nonce = f"{self._generation:x}.{self._serial}"
        state.sent_version = _version(state.digest)
        state.in_flight_since = now
        sent.sort(key=lambda resource: resource.name)
        return Response(
            type_url, state.sent_version, state.nonce, tuple(sent), tuple(sorted(missing))
        )

    def _warm(self, type_url: str, changed: Iterable[str]) -> None:
        follower = self.types.get({CDS: EDS, LDS: RDS}.get(type_url, ""))
        if follower is None:
            return
        again = set(changed) if type_url == CDS else set(follower.names)
        for name in again & follower.names:
            told = follower.told.pop(name, None)
            follower.digest -= told.digest if told else 0
            follower.dirty.add(name)
        follower.owed = True


def _version(digest: int) -> str:
    """The version of a set of resources: depends on their content only, not on any order."""
    return f"{digest & _MASK:016x}"
