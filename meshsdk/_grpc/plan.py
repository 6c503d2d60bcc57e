"""A gRPC method of a mesh channel: its routes compiled, and what it calls on each endpoint."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from meshsdk._grpc.logged import counting, record_of
from meshsdk._grpc.pool import Lane, Pool
from meshsdk._grpc.values import headers_of, sendable
from meshsdk.accesslog import Record
from meshsdk.balancing import EndpointState
from meshsdk.call import (
    Decision,
    Forward,
    MethodTable,
    Mirror,
    Passthrough,
    Request,
    compile_method,
)
from meshsdk.model import ListenerView, Snapshot
from meshsdk.opaque import compile_opaque


class Way:
    """A `Forward` made ready for the hot path.

    Attributes:
        timeout: seconds for a call without a timeout of its own. cap: upper limit of its own;
            None means that there is neither.
    """

    __slots__ = ("cap", "choose", "forward", "lane", "timeout")

    def __init__(self, forward: Forward, lane: Lane) -> None:
        self.forward = forward
        self.lane = lane
        choose, key = forward.cluster.choose, forward.key
        self.choose = choose if key is None else lambda random: choose(random, key)
        self.timeout = self.cap = forward.timeout
        most = forward.max_grpc_timeout
        if most is not None and (self.cap is None or most < self.cap):
            self.cap = most

    def within(self, timeout: float | None) -> float | None:
        """Seconds that a call may take whose caller allows `timeout`."""
        if timeout is None:
            return self.timeout
        return timeout if self.cap is None or timeout <= self.cap else self.cap


class Plan:
    """One method under one snapshot, ready for the hot path; replaced, never changed.

    Attributes:
        table: None while the configuration is not known.
        way: of every call, if they all go the same and nothing but the endpoint is to be chosen.
        ways: of the decisions that the table hands out again and again, by their `id()`.
        raw: calls go to the direct channel exactly as they are.
        logged: calls go into an access log, and none of them the hot path.
    """

    __slots__ = ("logged", "raw", "snapshot", "table", "view", "way", "ways")

    def __init__(
        self, snapshot: Snapshot | None, view: ListenerView | None, table: MethodTable | None
    ) -> None:
        self.snapshot = snapshot
        self.view = view
        self.table = table
        self.raw = view is not None and view.passthrough
        self.logged = view is not None and bool(view.access_logs)
        self.way: Way | None = None
        self.ways: dict[int, Way] = {}

    def at(self, snapshot: Snapshot | None) -> Plan:
        """The same plan under a snapshot that did not change it."""
        plan = Plan(snapshot, self.view, self.table)
        plan.way = self.way
        plan.ways = self.ways
        return plan


class Method:
    """One method of a mesh channel; base of the multicallables.

    Any thread may replace `_plan`: every plan is right for the snapshot that it names. `_lanes`
    is filled and emptied under the pool's lock and read without.
    """

    factory: str
    """Name of the channel's factory for this arity."""

    def __init__(
        self, pool: Pool, path: str, serializer: Any, deserializer: Any, registered: bool
    ) -> None:
        self._pool = pool
        self._mesh = pool.mesh
        self._path = path
        self._codecs = (serializer, deserializer)
        self._registered = registered
        self._lanes: dict[tuple[str, str, bool], Lane] = {}
        self._direct: Any = None
        self._plan = Plan(None, None, None)
        pool.add(self)

    # --- for the pool ---

    def bind(self, channel: Any, path: str) -> Any:
        make = getattr(channel, self.factory)
        return make(path, *self._codecs, _registered_method=self._registered)

    def authority_of(self, forward: Forward, endpoint: EndpointState | None = None) -> str:
        return self._pool.wire_authority(forward, endpoint)

    def _key(self, forward: Forward) -> tuple[str, str, bool]:
        return forward.path, self.authority_of(forward), forward.host_of_endpoint

    def lane(self, forward: Forward) -> Lane:
        return self._lanes.setdefault(self._key(forward), {})

    def drop(self, endpoints: set[EndpointState]) -> None:
        for lane in list(self._lanes.values()):
            for endpoint in endpoints:
                lane.pop(endpoint, None)

    def reset(self) -> None:
        for lane in list(self._lanes.values()):
            lane.clear()
        self._direct = None

    # --- for copies of calls ---

    @property
    def crew(self) -> Any:
        """What sends them."""
        return self._pool.crew

    def serialized(self, request: Any) -> bytes:
        serialize = self._codecs[0]
        data: bytes = request if serialize is None else serialize(request)
        return data

    def copy_to(self, endpoint: EndpointState, mirror: Mirror) -> Any:
        """A multicallable for serialized requests to an endpoint of another cluster."""
        channel = self._pool.channel_to(endpoint, mirror.authority)
        return getattr(channel, self.factory)(mirror.path, None, None)

    def swept(self) -> None:
        """Close the channels whose last call is over, if any wait for that."""
        if self._pool.draining:
            self._pool.sweep()

    async def drain(
        self, callable: Any, requests: list[bytes], seconds: float, metadata: Any
    ) -> None:
        """Make a call, and read its responses for nobody."""
        raise NotImplementedError

    # --- for the calls ---

    def refresh(self) -> Plan:
        """The plan for the newest snapshot."""
        snapshot = self._mesh.snapshot
        view = self._pool.view(snapshot)
        plan = self._plan
        plan = plan.at(snapshot) if plan.view is view else self.plan_of(snapshot, view)
        self._plan = plan
        return plan

    def plan_of(self, snapshot: Snapshot | None, view: ListenerView | None) -> Plan:
        if view is None or view.passthrough:
            return Plan(snapshot, view, None)
        compile = compile_opaque if self._pool.tls else compile_method
        table = compile(view, self._pool.authority or "", self._path)
        plan = Plan(snapshot, view, table)
        forward = table.static
        if forward is not None and not (forward.changes_response or plan.logged):
            plan.way = Way(forward, self.lane(forward))
        return plan

    def plan_for(self, view: ListenerView) -> Plan:
        """The plan of a view that a call has waited for."""
        plan = self.refresh()
        return plan if plan.view is view else self.plan_of(None, view)

    def decide(self, plan: Plan, metadata: Any, random: Callable[[], float]) -> Decision:
        """What becomes of one call; `metadata` with the trace headers."""
        table = plan.table
        if table is None:
            return _UNTOUCHED
        if not table.needs_request:
            return table.decide(None, random)
        headers = headers_of(metadata)
        headers.append(("te", "trailers"))
        request = Request(
            "POST", self._path, authority=self._pool.authority or "", headers=headers, grpc=True
        )
        return table.decide(request, random)

    def choose(self, plan: Plan, metadata: Any, random: Callable[[], float]) -> Way | Decision:
        """What becomes of one call; a `Way` when it can be sent at once and the result untouched.

        The caller still has to change the metadata as the way's `Forward` says.
        """
        decision = self.decide(plan, metadata, random)
        way = plan.ways.get(id(decision))
        if way is not None:
            return way
        if not isinstance(decision, Forward) or decision.delay or decision.changes_response:
            return decision
        if decision.mirrors or plan.logged:
            return decision
        way = Way(decision, self.lane(decision))
        if plan.table is not None and not plan.table.needs_request:
            plan.ways[id(decision)] = way  # kept alive by the way
        return way

    def record(self, plan: Plan, metadata: Any, waited: float) -> Record | None:
        """What an access log wants to know of a call that began `waited` seconds ago."""
        if not plan.logged or plan.view is None:
            return None
        return record_of(plan.view, self._pool.authority or "", self._path, metadata, waited)

    def watched(self, forward: Forward, endpoint: EndpointState, record: Record) -> Any:
        """A multicallable for one call on a picked endpoint, whose messages are counted."""
        channel = self._pool.channel_of(self, forward, endpoint)
        make = getattr(channel, self.factory, None)
        if make is None:  # the endpoint has just gone
            return None
        record.tried(endpoint, monotonic())
        return make(forward.path, *counting(self._codecs, record))

    def watched_direct(self, record: Record) -> Any:
        """`direct` for one call, whose messages are counted."""
        record.tried(None, monotonic())
        make = getattr(self._pool.direct(), self.factory)
        return make(self._path, *counting(self._codecs, record))

    def direct(self) -> Any:
        """The multicallable of the direct channel."""
        direct = self._direct
        if direct is None or self._pool.closed:
            direct = self._direct = self.bind(self._pool.direct(), self._path)
        return direct

    def callable(self, forward: Forward, endpoint: EndpointState) -> Any:
        """What the lane of `forward` holds for a picked endpoint."""
        lane = self._lanes.get(self._key(forward))
        found = lane.get(endpoint) if lane else None
        return self._pool.line(self, forward, endpoint) if found is None else found


_UNTOUCHED = Passthrough()


def mutated(forward: Forward, metadata: Any) -> Any:
    """The metadata to send under `forward`."""
    if not forward.changes_request:
        return metadata
    return sendable(forward.request_headers(tuple(metadata or ())))
