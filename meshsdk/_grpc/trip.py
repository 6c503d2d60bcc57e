"""The way of a sync call that has to wait, or that is looked into."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from meshsdk._grpc.attempt import Attempt, Limit
from meshsdk._grpc.calls import CHANNEL_CLOSED, MeshCall, MeshRpcError
from meshsdk._grpc.copies import copier_of
from meshsdk._grpc.cutter import Cutter, Requests
from meshsdk._grpc.logged import watch
from meshsdk._grpc.plan import Plan, mutated
from meshsdk._grpc.pool import Pool
from meshsdk._grpc.values import (
    Failure,
    connect_failed,
    given_up,
    not_ready,
    out_of_time,
    replied,
    with_traces,
)
from meshsdk.accesslog import Record
from meshsdk.balancing import EndpointState
from meshsdk.call import Decision, Forward, Reply
from meshsdk.errors import ConnectFailure, MeshClosed, NoHealthyUpstream, NotReady
from meshsdk.propagation import outgoing_metadata

if TYPE_CHECKING:
    from meshsdk._grpc.sync_method import SyncMethod

_STATES = {state.value[0]: state for state in grpc.ChannelConnectivity}

# Pause before another round over endpoints that all refuse (`wait_for_ready`).
_ROUND = 0.02


def state_of(channel: Any, connect: bool = False) -> grpc.ChannelConnectivity:
    """Connectivity of a channel of grpc; the public API can only subscribe to it, by a thread."""
    return _STATES[channel._channel.check_connectivity_state(connect)]


class Args(NamedTuple):
    """Arguments of a call, as every multicallable of grpc takes them after the request."""

    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


Start = Callable[..., Any]


def plain(callable: Any, *arguments: Any) -> Any:
    return callable(*arguments)


def with_call(callable: Any, *arguments: Any) -> Any:
    return callable.with_call(*arguments)


def future(callable: Any, *arguments: Any) -> Any:
    return callable.future(*arguments)


class Lease:
    """One attempt on an endpoint, ended once however often it is told."""

    __slots__ = ("__weakref__", "_open", "endpoint", "pool")

    def __init__(self, pool: Pool, endpoint: EndpointState) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self._open = [True]

    def end(self) -> None:
        if self._open:
            try:
                self._open.pop()
            except IndexError:
                return
            self.endpoint.release()
            if self.pool.draining:
                self.pool.sweep()


class Unreachable(Exception):
    """An attempt that could not connect; `error` is what the application sees in the end."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Trip:
    """One call off the hot path, on its way to a call of grpc.

    `run` blocks: in the caller's thread for a blocking call, else in a thread of its own that
    serves `call`, which the application already holds.
    """

    __slots__ = ("args", "began", "call", "channel", "decision", "ends", "metadata", "method",
                 "record", "request", "start", "traces")  # fmt: skip

    def __init__(
        self,
        method: SyncMethod,
        start: Start,
        request: Any,
        args: Args,
        decision: Decision | None = None,
    ) -> None:
        self.method = method
        self.start = start
        self.request = request
        self.args = args
        self.began = monotonic()
        self.ends = None if args.timeout is None else self.began + args.timeout
        # Read here: the context of the request being served is the caller's, not a thread's.
        self.traces = outgoing_metadata()
        self.metadata = args.metadata
        self.decision = decision
        self.call: MeshCall | None = None
        self.record: Record | None = None

    @property
    def replayable(self) -> bool:
        """Whether a second attempt can be made of it: a consumed stream of requests is gone."""
        return self.method.unary_request and (self.start is not plain or self.method.blocking)

    # --- time ---

    def _remaining(self) -> float | None:
        return None if self.ends is None else max(0.0, self.ends - monotonic())

    def _pause(self, seconds: float) -> None:
        """Wait, unless the call is cancelled or its deadline comes first."""
        remaining = self._remaining()
        short = remaining is not None and remaining < seconds
        if self._stop.wait(remaining if short else seconds):
            raise CHANNEL_CLOSED
        if short:
            raise out_of_time()

    @property
    def _stop(self) -> threading.Event:
        return self.call.pause if self.call else self.method.life.closing

    # --- steps ---

    def run(self) -> Any:
        """The result of a blocking call, else a call of grpc.

        Raises:
            Failure: the mesh ended the call.
        """
        plan = self._known_plan()
        if plan.raw:
            return self._untouched()
        decision = self.decide(plan)
        if decision.delay:
            self._pause(decision.delay)
        while True:
            try:
                return self.send(decision)
            except NoHealthyUpstream as error:
                if not self.args.wait_for_ready:
                    raise given_up(error, decision) from None
            self._pause(_ROUND)
            self.decision = None
            decision = self.decide(self._known_plan())

    def decide(self, plan: Plan) -> Decision:
        if self.decision is None:
            if self.traces:
                self.metadata = with_traces(self.args.metadata, self.traces)
            self.decision = self.method.decide(plan, self.metadata, random)
        if plan.logged:
            self._record(plan, self.decision)
        return self.decision

    def _record(self, plan: Plan, decision: Decision) -> None:
        if self.record is None:
            waited = monotonic() - self.began
            self.record = self.method.record(plan, self.metadata, waited)
            if self.method.blocking and self.start is plain:
                self.start = with_call  # the call tells how it ended
        if self.record is not None:
            self.record.decided(decision)

    def _known_plan(self) -> Plan:
        """The plan once the configuration is there."""
        plan = self.method.refresh()
        if plan.view is not None:
            return plan
        mesh, name = self.method.mesh, self.method.listener
        try:
            view = mesh.wait_for(name, self._remaining())
        except MeshClosed as error:
            raise ValueError(f"Cannot invoke RPC: {error}") from error
        except NotReady as error:
            expired = self._remaining() == 0
            raise not_ready(name, error, self.args.timeout, expired=expired) from None
        self._pause(0)
        return self.method.plan_for(view)

    def send(self, decision: Decision) -> Any:
        if isinstance(decision, Forward):
            return self._forward(decision)
        if isinstance(decision, Reply):
            raise replied(decision)
        return self._untouched()

    def _untouched(self) -> Any:
        _, _, *rest = self.args
        method, record = self.method, self.record
        direct = method.direct() if record is None else method.watched_direct(record)
        return self.start(direct, self.request, self._remaining(), self.metadata, *rest)

    def _forward(self, forward: Forward) -> Any:
        """Attempts until one has a connection; where that is not known, the first is the last."""
        metadata = mutated(forward, self.metadata)
        copier = copier_of(self.method, forward, metadata)
        if copier is not None:
            if self.method.unary_request:
                copier.add(self.request)
                copier.complete()
            else:
                self.request = copier.recorded(self.request)
        streams = not self.method.unary_request
        limit = Limit(self._remaining(), forward, monotonic(), streams=streams)
        refused: set[EndpointState] = set()
        while True:
            endpoint = self.method.pick(forward, refused)
            attempt = Attempt(forward, endpoint, limit, self.method.is_down)
            try:
                return self._attempt(attempt, metadata)
            except Unreachable as problem:
                refused.add(endpoint)
                if len(refused) < len(forward.cluster.endpoints):
                    continue
                if not self.args.wait_for_ready:
                    raise problem.error from problem.error.__cause__
            refused.clear()
            self._pause(_ROUND)

    def _attempt(self, attempt: Attempt, metadata: Any) -> Any:
        method, forward, limit = self.method, attempt.forward, attempt.limit
        lease = Lease(method.pool, attempt.endpoint)
        _, _, credentials, waits, compression = self.args
        if waits and self.replayable:
            waits = False  # waiting for this endpoint would pass by another one that is there
        request, start, cutter = self.request, self.start, None
        if not method.unary_request and forward.timeout is not None:
            cutter = Cutter(limit)
            request = Requests(request, cutter.requested)
            start = future if method.blocking else plain
        try:
            callable = method.callable(forward, attempt.endpoint)
            if self.record is not None:
                watched = method.watched(forward, attempt.endpoint, self.record)
                callable = callable if watched is None else watched
            result = start(
                callable,
                request, limit.left(monotonic()), metadata, credentials, waits, compression,
            )  # fmt: skip
        except grpc.RpcError as error:
            lease.end()
            judged = self._judged(error, attempt)
            raise judged from judged.__cause__
        except BaseException:
            lease.end()
            raise
        if method.blocking and start is not future:
            lease.end()
            return self._with_changed_call(attempt, result)
        call = self._started(attempt, lease, result, cutter)
        return call if start is self.start else outcome_of(call, self.start)

    def _judged(self, error: Any, attempt: Attempt) -> BaseException:
        """The error to raise for an error of grpc: `Unreachable` if another endpoint may do."""
        code, details = error.code(), error.details()
        failure = attempt.failure(code, details, error.initial_metadata, monotonic())
        if failure is None:
            return ended(attempt, error) if attempt.forward.changes_response else error
        seen = MeshRpcError(failure)
        refused = isinstance(failure.cause, ConnectFailure)
        return Unreachable(seen) if refused and self.replayable else seen

    def _with_changed_call(self, attempt: Attempt, result: Any) -> Any:
        if attempt.forward.changes_response and self.start is with_call:
            response, call = result
            return response, ended(attempt, call)
        return result

    def _started(self, attempt: Attempt, lease: Lease, call: Any, cutter: Cutter | None) -> Any:
        """Hand on a call object of grpc that has just been started."""
        if not call.add_callback(lease.end):
            lease.end()
        if self.method.pool.single_threaded:
            # Its callbacks run in whoever reads it, so a call that nobody reads would never end.
            weakref.finalize(call, lease.end).atexit = False
        if cutter is not None:
            cutter.watch(call)
        if self.call is None:
            if not self._looked_into(attempt):
                return call
            seen = MeshCall(inner=call)
            seen.watch(attempt, call)
            return seen
        self.call.watch(attempt, call)
        if self.replayable:
            self.call.trying(call)
            call.initial_metadata()
            if call.done() and connect_failed(call.code(), call.details()):
                judged = self._judged(call, attempt)
                if isinstance(judged, Unreachable):
                    raise judged
        return call

    def _looked_into(self, attempt: Attempt) -> bool:
        """Whether the application may have to see something else than the call of grpc tells."""
        forward = attempt.forward
        if forward.changes_response or attempt.limit.expires is not None:
            return True
        if forward.timeout is not None and not self.method.unary_request:
            return True
        return not self.method.is_ready(forward, attempt.endpoint)


def ended(attempt: Attempt, call: Any) -> MeshCall:
    """A call of grpc that is over, its metadata changed as the route says."""
    seen = MeshCall(inner=call, attempt=attempt)
    seen.__cause__ = call.__cause__ if isinstance(call, BaseException) else None
    return seen


def outcome_of(call: Any, start: Start) -> Any:
    """What a blocking call returns or raises, of a call that had to be one that can be cut."""
    try:
        response = call.result()
    except grpc.RpcError:
        raise
    except BaseException:
        call.cancel()
        raise
    return (response, call) if start is with_call else response


def drive(trip: Trip, call: MeshCall) -> None:
    """Body of the thread behind a `MeshCall`."""
    inner: Any
    try:
        inner = trip.run()
    except Failure as failure:
        inner = MeshRpcError(failure)
    except grpc.RpcError as error:
        inner = error
    except Exception as error:
        inner = MeshRpcError(Failure(grpc.StatusCode.UNKNOWN, str(error), error))
    if not call.begin(inner):
        inner.cancel()
    if trip.record is not None:
        watch(trip.record, call)
