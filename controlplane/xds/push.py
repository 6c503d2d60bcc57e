"""Who wants what, and who has to hear of a change: debounce, index of subscribers, fan-out.

Nothing waits here and nothing is read or written: the server drives it from its event loop, tests
drive it with times of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from controlplane.translate.node import Dialect, Node, Variant
from controlplane.translate.resources import CDS, EDS, LDS, RDS
from controlplane.world import Affected, World, diff
from controlplane.xds.render import Key, Renderer
from controlplane.xds.subscription import Request, Subscription, Sync, Verdict

log = logging.getLogger("controlplane.xds.push")

QUIET = 0.010
LONGEST = 1.0
SHORT_NAMES = {CDS: "CDS", EDS: "EDS", LDS: "LDS", RDS: "RDS"}


class Debounce:
    """Joins changes that come close together. Pure; `now` is monotonic seconds.

    Args:
        quiet: how long nothing must happen before the changes are taken.
        longest: how long the first of them may wait at most.
    """

    def __init__(self, quiet: float = QUIET, longest: float = LONGEST) -> None:
        self._quiet = quiet
        self._longest = longest
        self._first: float | None = None
        self._last = 0.0

    def event(self, now: float) -> None:
        """Something changed."""
        if self._first is None:
            self._first = now
        self._last = now

    def due(self) -> float | None:
        """When to take the changes; None when there are none."""
        if self._first is None:
            return None
        return min(self._last + self._quiet, self._first + self._longest)

    def take(self) -> None:
        """The changes are taken."""
        self._first = None


@dataclass(eq=False, slots=True)
class Client:
    """One stream. Owned by the event loop; `wake` is set when there may be something to send."""

    node: Node
    variant: Variant
    subscription: Subscription
    number: int
    peer: str = ""
    connected_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    outbox: deque[bytes] = field(default_factory=deque)
    """Serialised responses that are none of the four types (answers to registration)."""
    watched: dict[str, frozenset[str]] = field(default_factory=dict)


class Hub:
    """All clients and the world that they are served. Touched only by the event loop."""

    def __init__(self, world: World) -> None:
        self.renderer = Renderer(world)
        self.clients: set[Client] = set()
        self.pushes = 0
        self.sent: Counter[str] = Counter()
        """Responses sent, by short type name."""
        self.rejected = 0
        self._numbers = itertools.count(1)
        self._watchers: dict[Key, set[Client]] = {}
        self._wild: dict[tuple[Variant, str], set[Client]] = {}

    @property
    def world(self) -> World:
        return self.renderer.world

    # --- clients -----------------------------------------------------------------------------

    def connect(self, node: Node, peer: str = "") -> Client:
        """A new stream of this node."""
        client = Client(
            node=node,
            variant=node.variant(self.renderer.relevant),
            subscription=Subscription(
                warming=node.dialect is Dialect.ENVOY, deny=node.dialect is Dialect.SDK
            ),
            number=next(self._numbers),
            peer=peer,
        )
        self.clients.add(client)
        return client

    def disconnect(self, client: Client) -> None:
        """The stream is gone."""
        self.clients.discard(client)
        for type_url in list(client.watched):
            self._watch(client, type_url, frozenset(), wild=False)

    def update_node(self, client: Client, node: Node) -> None:
        """The node says something else about itself than before."""
        client.node = node
        self._rekey(client)

    def receive(self, client: Client, request: Request, now: float) -> Verdict:
        """Takes in a request of one of the four types."""
        lookup = self.renderer.lookup(client.variant)
        listing = self.renderer.listing(client.variant)
        verdict = client.subscription.receive(request, lookup, listing, now)
        if verdict is Verdict.STALE:
            return verdict
        state = client.subscription.types[request.type_url]
        if verdict is Verdict.NACK:
            self.rejected += 1
            log.warning(
                "%s rejected %s version %s: %s",
                client.node.id,
                SHORT_NAMES.get(request.type_url, request.type_url),
                state.rejected_version,
                state.error,
            )
        self._watch(client, request.type_url, frozenset(state.names), wild=state.wildcard)
        client.wake.set()
        return verdict

    def next(self, client: Client, now: float) -> bytes | None:
        """The bytes to send to a client now, in the order of `Subscription.next`."""
        if client.outbox:
            return client.outbox.popleft()
        renderer = self.renderer
        lookup = renderer.lookup(client.variant)
        response = client.subscription.next(lookup, renderer.generation, now)
        if response is None:
            return None
        self.sent[SHORT_NAMES[response.type_url].lower()] += 1
        return renderer.serialise(response)

    # --- the world ---------------------------------------------------------------------------

    def publish(self, world: World) -> Affected:
        """Takes on a new world and wakes the clients that it concerns; what was affected."""
        affected = diff(self.renderer.world, world)
        before = self.renderer.relevant
        changed = self.renderer.advance(world, affected)
        self.pushes += 1
        if self.renderer.relevant != before:
            for client in self.clients:
                self._rekey(client)
        for key in changed:
            for client in self._watchers.get(key, ()):
                if client.subscription.touch(key[1], (key[2],)):
                    client.wake.set()
        for (variant, type_url), clients in self._wild.items():
            self._wake_wild(variant, type_url, clients, changed)
        return affected

    def _wake_wild(
        self, variant: Variant, type_url: str, clients: Iterable[Client], changed: set[Key]
    ) -> None:
        listed = set(self.renderer.listing(variant)(type_url))
        touched = {name for (v, t, name) in changed if v == variant and t == type_url}
        for client in clients:
            told = client.subscription.types[type_url].told
            if client.subscription.touch(type_url, touched | (listed ^ told.keys())):
                client.wake.set()

    def _rekey(self, client: Client) -> None:
        variant = client.node.variant(self.renderer.relevant)
        if variant == client.variant:
            return
        watched, states = dict(client.watched), client.subscription.types
        for type_url in watched:
            self._watch(client, type_url, frozenset(), wild=False)
        client.variant = variant
        for type_url, names in watched.items():
            state = states[type_url]
            self._watch(client, type_url, names, wild=state.wildcard)
            client.subscription.touch(type_url, names | state.told.keys())
        client.wake.set()

    def _watch(self, client: Client, type_url: str, names: frozenset[str], *, wild: bool) -> None:
        before = client.watched.get(type_url, frozenset())
        unwanted: list[Key] = []
        for name in before - names:
            key = (client.variant, type_url, name)
            watchers = self._watchers[key]
            watchers.discard(client)
            if not watchers:
                del self._watchers[key]
                unwanted.append(key)
        for name in names - before:
            self._watchers.setdefault((client.variant, type_url, name), set()).add(client)
        if names or wild:
            client.watched[type_url] = names
        else:
            client.watched.pop(type_url, None)
        clients = self._wild.setdefault((client.variant, type_url), set())
        (clients.add if wild else clients.discard)(client)
        if not clients:
            del self._wild[client.variant, type_url]
            self.renderer.drop(unwanted)

    # --- status ------------------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """What `proxy-status` shows: one entry per stream, in the order of node ids."""
        ordered = sorted(self.clients, key=lambda client: (client.node.id, client.number))
        return [self._status(client) for client in ordered]

    def _status(self, client: Client) -> dict[str, Any]:
        node = client.node
        keys = [
            (client.variant, type_url, name)
            for type_url, names in client.watched.items()
            for name in sorted(names)
        ]
        notes = self.renderer.notes(keys)
        if node.dialect is Dialect.ENVOY:
            notes.append("configuration for Envoy sidecars is not served yet")
        return {
            "node": node.id,
            "name": node.name,
            "namespace": node.namespace,
            "user_agent": node.user_agent,
            "version": node.version,
            "peer": client.peer,
            "connected_since": client.connected_at.isoformat(timespec="seconds"),
            "types": {short: self._type_status(client, url) for url, short in SHORT_NAMES.items()},
            "notes": notes,
        }

    @staticmethod
    def _type_status(client: Client, type_url: str) -> dict[str, Any]:
        state = client.subscription.types.get(type_url)
        if state is None:
            return {"status": Sync.NOT_SENT.value, "resources": 0}
        status: dict[str, Any] = {
            "status": state.sync.value,
            "resources": sum(told is not None for told in state.told.values()),
            "version": state.acked_version,
        }
        if state.error:
            status |= {"error": state.error, "rejected_version": state.rejected_version}
        return status
