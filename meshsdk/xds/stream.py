"""The ADS client as a machine without I/O: state of the world, all types on one stream.

The machine is told what happened (`subscribe`, `connected`, `received`, `disconnected`, `tick`,
each with `now`) and answers with the requests to send and the resources that changed. It has no
socket, thread, clock or lock: whoever drives it calls it from one thread.

    for request in machine.connected(now): stream.send(request)
    for response in stream:
        result = machine.received(response, now)
        send(result.requests); log(result.warnings)
        if result.changed: resolve, then send(machine.subscribe(type_url, names, now)) per type

Sources: Envoy "xDS REST and gRPC protocol"; gRFC A27, A30, A40, A46, A57, A88.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from meshsdk.errors import InvalidResource
from meshsdk.xds.cache import Arrival, Key, TypeCache, not_parsable
from meshsdk.xds.resources import Decoder, ResourceState, Status

_INVALID_ARGUMENT: Final = 3


@dataclass(frozen=True, slots=True)
class Received:
    """What one response led to.

    Attributes:
        requests: send these now, in order: the ACK or the NACK.
        changed: the resources whose value or existence changed.
        rejected: one error per bad resource, each naming resource and field. Log them.
        warnings: what was accepted but is not honoured, one sentence each. Log them.
    """

    requests: tuple[Any, ...]
    changed: frozenset[Key] = frozenset()
    rejected: tuple[InvalidResource, ...] = ()
    warnings: tuple[str, ...] = ()


class AdsMachine:
    """State of the ADS client. Only the xDS thread may call it.

    Args:
        node: `envoy.config.core.v3.Node`; goes into the first request of each stream. The
            attribute `node` may be replaced, the next stream uses it.
        decoders: by type URL; their order is the order of the first requests of a stream
            (`meshsdk.xds.decode.DECODERS`).
        does_not_exist_after: seconds that a requested resource may be awaited on a connected
            stream before it is taken for not existing (gRFC A57: 15 s).

    Attributes:
        streaming: a stream is open.
        answered: a response has come on the present or, without one, the last stream (gRFC A57:
            only then is the reconnect back-off reset).
        last_error: why there is no stream; empty while there is one.
    """

    def __init__(
        self,
        node: Any,
        decoders: Mapping[str, Decoder],
        *,
        does_not_exist_after: float = 15.0,
    ) -> None:
        self.node = node
        self.streaming = False
        self.answered = False
        self.last_error = ""
        self._patience = does_not_exist_after
        self._types = {url: TypeCache(decoder) for url, decoder in decoders.items()}
        self._node_sent = False
        self._spoken = False

    # --- what the driver reports ---------------------------------------------------------------

    def subscribe(self, type_url: str, names: Collection[str], now: float) -> list[Any]:
        """Set the names that are wanted of a type, all of them; forget what is no longer wanted.

        Returns:
            The requests to send now: none when nothing changed or no stream is open.
        """
        kind = self._types[type_url]
        if not kind.want(frozenset(names), now, keep_restored=not self._spoken):
            return []
        if not self.streaming or not (kind.names or kind.sent):
            # An empty list as the first request of a type would subscribe to everything.
            return []
        return [self._request(kind, now)]

    def connected(self, now: float) -> list[Any]:
        """A new stream is open. Returns its first requests, the node in the first of them."""
        self.streaming, self.answered, self._node_sent, self.last_error = True, False, False, ""
        wanted = [kind for kind in self._types.values() if kind.names]
        for kind in wanted:
            if any(kind.states[name].status is Status.REQUESTED for name in kind.names):
                # The version would claim more than is here: a server that compares it with what
                # it has would send nothing, and what is awaited would never come.
                kind.version = ""
        return [self._request(kind, now) for kind in wanted]

    def received(self, response: Any, now: float) -> Received:
        """Take in a DiscoveryResponse. The ACK or NACK is in the result, never omitted."""
        self.answered = True
        if not self._spoken:
            self._spoken = True
            for kind in self._types.values():
                kind.forget_unsubscribed()
        found = self._types.get(response.type_url)
        if found is None or not found.sent:
            return self._unasked(response, found)
        return self._apply(found, response, now)

    def disconnected(self, now: float, error: str) -> None:
        """The stream is gone. The cache goes on being used; waiting for resources is paused."""
        self.streaming = False
        self.last_error = error
        for kind in self._types.values():
            kind.stream_lost()

    def tick(self, now: float) -> frozenset[Key]:
        """Give up waiting for what is overdue at `now`. Returns what changed."""
        changed: set[Key] = set()
        for kind in self._types.values():
            kind.empty_limbo(now)
            for name in [name for name, due in kind.timers.items() if due <= now]:
                kind.gone(name, now, changed)
        return frozenset(changed)

    def deadline(self) -> float | None:
        """When `tick` has something to do; None: never as things are."""
        due = [due for kind in self._types.values() for due in kind.timers.values()]
        due += [until for kind in self._types.values() for until, _ in kind.limbo.values()]
        return min(due, default=None)

    def restore(self, type_url: str, name: str, any_bytes: bytes, version: str) -> None:
        """Put a resource from disk into the cache; it serves until the control plane speaks.

        A resource that the control plane has already spoken of is left alone. Once any response
        has come, what was restored but is not subscribed is forgotten.

        Raises:
            InvalidResource: the bytes cannot be used.
        """
        kind = self._types[type_url]
        known = kind.states.get(name)
        if self._spoken or (known is not None and known.arrived):
            return
        decoder = kind.decoder
        try:
            message = decoder.parse(any_bytes)
        except DecodeError:
            raise InvalidResource(f"{decoder.kind} {name}", "", not_parsable(decoder)) from None
        if getattr(message, decoder.name_field) != name:
            problem = f"the name is {getattr(message, decoder.name_field)!r}"
            raise InvalidResource(f"{decoder.kind} {name}", decoder.name_field, problem)
        state = known or ResourceState(type_url, name)
        state.value = decoder.decode(message, [])
        state.raw, state.version, state.restored = any_bytes, version, True
        kind.states[name] = state
        kind.by_raw[any_bytes] = name
        kind.timers.pop(name, None)

    def restore_absence(self, type_url: str, name: str) -> bool:
        """Take a resource that what was saved refers to, and lacks, for one that does not exist.

        Without a control plane nobody will ever say so. Returns whether it was news.
        """
        kind = self._types[type_url]
        known = kind.states.get(name)
        if self._spoken or (known is not None and known.arrived):
            return False
        kind.states[name] = ResourceState(type_url, name, Status.DOES_NOT_EXIST)
        kind.timers.pop(name, None)
        return True

    # --- what is known -------------------------------------------------------------------------

    def resource(self, type_url: str, name: str) -> ResourceState | None:
        """What is known of a resource, or will be when it is subscribed; None: nothing."""
        return self._types[type_url].find(name)

    def resources(self, type_url: str | None = None) -> Iterator[ResourceState]:
        """Every resource of the cache, for dumps, the disk and CSDS, in order of type and name."""
        for url, kind in self._types.items():
            if type_url in (None, url):
                for name in sorted(kind.states):
                    yield kind.states[name]

    def subscribed(self, type_url: str) -> frozenset[str]:
        """The names that are wanted of a type."""
        return self._types[type_url].names

    def version(self, type_url: str) -> str:
        """The last version of a type that was accepted as a whole; empty before the first."""
        return self._types[type_url].version

    @property
    def unconfirmed(self) -> bool:
        """Whether something that is subscribed still comes from disk only."""
        return any(
            kind.states[name].restored for kind in self._types.values() for name in kind.names
        )

    # --- inside --------------------------------------------------------------------------------

    def _request(self, kind: TypeCache, now: float, error: str = "") -> Any:
        kind.about_to_ask(now + self._patience)
        return self._message(kind.decoder.type_url, kind.nonce, error, kind.version, kind.ordered)

    def _message(
        self, type_url: str, nonce: str, error: str, version: str = "", names: Collection[str] = ()
    ) -> Any:
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url, version_info=version, response_nonce=nonce, resource_names=names
        )
        if not self._node_sent:
            self._node_sent = True
            request.node.CopyFrom(self.node)
        if error:
            request.error_detail.code = _INVALID_ARGUMENT
            request.error_detail.message = error
        return request

    def _unasked(self, response: Any, kind: TypeCache | None) -> Received:
        known = ", ".join(d.decoder.kind for d in self._types.values())
        problem = "was never asked for on this stream" if kind else f"is not known; known: {known}"
        error = InvalidResource(f"response of type {response.type_url!r}", "type_url", problem)
        text = f"{error} (node ID: {self.node.id})"
        request = self._message(response.type_url, response.nonce, text)
        return Received((request,), rejected=(error,))

    def _apply(self, kind: TypeCache, response: Any, now: float) -> Received:
        kind.nonce = response.nonce
        arrival = Arrival(kind, response.version_info, now, now + self._patience)
        for index, item in enumerate(response.resources):
            arrival.take(index, item.type_url, item.value)
        for error in response.resource_errors:
            arrival.take_error(error)
        arrival.find_missing()
        if arrival.rejected:
            request = self._request(
                kind, now, self._nack(arrival.rejected, len(response.resources))
            )
        else:
            kind.version = response.version_info
            request = self._request(kind, now)
        return Received(
            (request,), frozenset(arrival.changed), tuple(arrival.rejected), tuple(arrival.warnings)
        )

    def _nack(self, rejected: list[InvalidResource], total: int) -> str:
        each = "; ".join(map(str, rejected))
        return f"{len(rejected)} of {total} resources rejected (node ID: {self.node.id}): {each}"
