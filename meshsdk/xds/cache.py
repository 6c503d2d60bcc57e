"""The cache of one resource type, and how a response changes it. Pure, as `meshsdk.xds.stream`.

A resource that is missing in a response of a full-state type (LDS, CDS) does not exist, but only
if the server had seen the request that names it: a response may have been under way already.
Requests are numbered, and what the server has seen is concluded from what can be proved:

- any response of a type means that the server has seen the first request of that type, and
- a response that holds a resource means that it has seen the first request that names it.

Where there is no proof the does-not-exist timer decides, as in every gRPC client. A server
shortens the wait by `DiscoveryResponse.resource_errors` with NOT_FOUND for a name.

A resource that is let go and wanted again at once is taken back as it was: the server may never
have seen that it was let go (a request that crosses a response is dropped as stale), and would
not send it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from meshsdk.errors import InvalidResource
from meshsdk.xds.resources import Decoder, ResourceState, Status

_WRAPPER: Final = "type.googleapis.com/envoy.service.discovery.v3.Resource"
_NOT_FOUND: Final = 5

_LIMBO_SECONDS: Final = 5.0

Key = tuple[str, str]
"""(type_url, resource name)."""


def not_parsable(decoder: Decoder) -> str:
    return f"the bytes are not a {decoder.type_url.rpartition('/')[2]}"


@dataclass(slots=True)
class TypeCache:
    """Subscription and cache of one resource type.

    `asked` numbers the request of this stream by which a name was (last) subscribed, `first_asked`
    the first one that named it; `seen` is the newest request that the server provably knew.
    """

    decoder: Decoder
    names: frozenset[str] = frozenset()
    ordered: tuple[str, ...] = ()
    states: dict[str, ResourceState] = field(default_factory=dict)
    by_raw: dict[bytes, str] = field(default_factory=dict)
    version: str = ""
    nonce: str = ""
    sent: bool = False
    requests: int = 0
    seen: int = 0
    unasked: set[str] = field(default_factory=set)
    asked: dict[str, int] = field(default_factory=dict)
    first_asked: dict[str, int] = field(default_factory=dict)
    timers: dict[str, float] = field(default_factory=dict)
    limbo: dict[str, tuple[float, ResourceState]] = field(default_factory=dict)
    """What was let go on this stream a moment ago, and until when it may be taken back."""

    def want(self, names: frozenset[str], now: float, *, keep_restored: bool) -> bool:
        if names == self.names:
            return False
        for name in self.names - names:
            self.unasked.discard(name)
            self.asked.pop(name, None)
            self.timers.pop(name, None)
            if not (keep_restored and self.states[name].restored):
                state = self._drop(name)
                if self.sent and state.value is not None:
                    self.limbo[name] = (now + _LIMBO_SECONDS, state)
        for name in names - self.names:
            self.unasked.add(name)
            if name not in self.states:
                self.states[name] = self._recall(name)
        self.names, self.ordered = names, tuple(sorted(names))
        return True

    def _recall(self, name: str) -> ResourceState:
        if name not in self.limbo:
            return ResourceState(self.decoder.type_url, name)
        _, state = self.limbo.pop(name)
        self.by_raw[state.raw] = name
        return state

    def find(self, name: str) -> ResourceState | None:
        """What is known of a resource, or will be as soon as it is subscribed."""
        state = self.states.get(name)
        return self.limbo[name][1] if state is None and name in self.limbo else state

    def empty_limbo(self, now: float) -> None:
        for name in [name for name, (until, _) in self.limbo.items() if until <= now]:
            del self.limbo[name]

    def forget_unsubscribed(self) -> None:
        for name in self.states.keys() - self.names:
            self._drop(name)

    def about_to_ask(self, give_up: float) -> None:
        """Bookkeeping for a request that goes out now with all names."""
        self.sent = True
        if not self.unasked:
            return
        self.requests += 1
        for name in self.unasked:
            self.asked[name] = self.requests
            self.first_asked.setdefault(name, self.requests)
            if not self.states[name].arrived:
                self.timers[name] = give_up
        self.unasked.clear()

    def stream_lost(self) -> None:
        self.nonce, self.sent, self.requests, self.seen = "", False, 0, 0
        self.unasked = set(self.names)
        self.asked.clear()
        self.first_asked.clear()
        self.timers.clear()
        self.limbo.clear()

    def gone(self, name: str, now: float, changed: set[Key]) -> None:
        """The resource does not exist (any more)."""
        self.timers.pop(name, None)
        if self.states[name].status is not Status.DOES_NOT_EXIST:
            self._drop(name)
            url = self.decoder.type_url
            self.states[name] = ResourceState(url, name, Status.DOES_NOT_EXIST, updated=now)
            changed.add((url, name))

    def _drop(self, name: str) -> ResourceState:
        state = self.states.pop(name)
        self.by_raw.pop(state.raw, None)
        return state


class Arrival:
    """One response on its way into the cache of its type."""

    def __init__(self, kind: TypeCache, version: str, now: float, give_up: float) -> None:
        self._kind = kind
        self._version = version
        self._now = now
        self._give_up = give_up
        self._present: set[str] = set()
        self._nameless = False
        self.changed: set[Key] = set()
        self.rejected: list[InvalidResource] = []
        self.warnings: list[str] = []

    def take(self, index: int, type_url: str, raw: bytes) -> None:
        """One element of `resources`."""
        if type_url == _WRAPPER:
            self._take_wrapped(index, raw)
        elif not self._is_known(raw, self._version):
            self._take_new(f"at resources[{index}]", type_url, raw, self._version)

    def _take_wrapped(self, index: int, raw: bytes) -> None:
        label = f"at resources[{index}]"
        try:
            wrapper = discovery_pb2.Resource.FromString(raw)
        except DecodeError:
            self._unnamed(label, "", "the bytes are not an envoy.service.discovery.v3.Resource")
            return
        version = wrapper.version or self._version
        if not wrapper.HasField("resource"):
            self._present.add(wrapper.name)  # a TTL heartbeat: still there, unchanged
        elif not self._is_known(wrapper.resource.value, version):
            inner = wrapper.resource
            self._take_new(wrapper.name or label, inner.type_url, inner.value, version)

    def _is_known(self, raw: bytes, version: str) -> bool:
        """Whether these bytes are those of the value in use, which is confirmed then."""
        known = self._kind.by_raw.get(raw)
        if known is None or known in self._present or known not in self._kind.names:
            return False
        self._present.add(known)
        self._confirm(self._kind.states[known], version)
        return True

    def _take_new(self, label: str, type_url: str, raw: bytes, version: str) -> None:
        decoder = self._kind.decoder
        if type_url != decoder.type_url:
            self._unnamed(label, "type_url", f"is {type_url!r}, expected {decoder.type_url!r}")
            return
        try:
            message = decoder.parse(raw)
        except DecodeError:
            self._unnamed(label, "", not_parsable(decoder))
            return
        name: str = getattr(message, decoder.name_field)
        if not name:
            self._unnamed(label, decoder.name_field, "must not be empty")
        elif name in self._present:
            problem = "comes twice in the response"
            self.rejected.append(InvalidResource(f"{decoder.kind} {name}", "", problem))
        else:
            self._present.add(name)
            if name in self._kind.names:
                self._decode(self._kind.states[name], message, raw, version)

    def _unnamed(self, label: str, where: str, problem: str) -> None:
        self._nameless = True
        self.rejected.append(InvalidResource(f"{self._kind.decoder.kind} {label}", where, problem))

    def _decode(self, state: ResourceState, message: Any, raw: bytes, version: str) -> None:
        try:
            value = self._kind.decoder.decode(message, self.warnings)
        except InvalidResource as error:
            self.rejected.append(error)
            self._fail(state, error, Status.NACKED, version)
            return
        self._kind.by_raw.pop(state.raw, None)
        self._kind.by_raw[raw] = state.name
        state.raw, state.updated = raw, self._now
        if value != state.value:
            state.value = value
            self.changed.add((state.type_url, state.name))
        self._confirm(state, version)

    def _confirm(self, state: ResourceState, version: str) -> None:
        state.version = version
        if state.status is not Status.ACKED:
            state.status, state.restored = Status.ACKED, False
            state.error, state.error_version = None, ""
        self._kind.timers.pop(state.name, None)

    def _fail(
        self, state: ResourceState, error: InvalidResource, status: Status, version: str
    ) -> None:
        """No usable new version: a good one stays, and its absence is known now."""
        self._kind.timers.pop(state.name, None)
        state.status, state.error, state.error_version = status, error, version
        state.updated = self._now
        if state.value is None:
            self.changed.add((state.type_url, state.name))

    def take_error(self, error: Any) -> None:
        """One element of `resource_errors`: the control plane says why it sends no resource."""
        name = error.resource_name.name
        if name not in self._kind.names or name in self._present:
            return
        self._present.add(name)
        detail = error.error_detail
        if detail.code == _NOT_FOUND:
            self._kind.gone(name, self._now, self.changed)
            return
        problem = f"the control plane answered with code {detail.code}: {detail.message}"
        invalid = InvalidResource(f"{self._kind.decoder.kind} {name}", "", problem)
        self._fail(self._kind.states[name], invalid, Status.RECEIVED_ERROR, self._version)

    def find_missing(self) -> None:
        """Conclude from absence, where that is sound."""
        kind = self._kind
        if not kind.decoder.full_state or self._nameless:
            # A resource whose name cannot be read may be any of those that seem to be missing.
            return
        if kind.seen < kind.requests:
            proofs = map(kind.first_asked.get, self._present)
            kind.seen = max(1, kind.seen, *(number or 0 for number in proofs))
        for name in kind.names - self._present:
            if kind.asked.get(name, kind.requests + 1) <= kind.seen:
                kind.gone(name, self._now, self.changed)
            elif kind.states[name].value is not None:
                # Cached, but perhaps no longer there: an answer is due if it is.
                kind.timers.setdefault(name, self._give_up)
