"""The way of an aio call that has to wait, or that is looked into."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshsdk._grpc.attempt import Attempt, Limit
from meshsdk._grpc.copies import Copier, copier_of
from meshsdk._grpc.plan import Plan, mutated
from meshsdk._grpc.values import (
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
from meshsdk.errors import MeshClosed, NoHealthyUpstream, NotReady
from meshsdk.propagation import outgoing_metadata

if TYPE_CHECKING:
    from meshsdk._grpc.aio_method import AioMethod

_READY = grpc.ChannelConnectivity.READY

# Pause before another round over endpoints that all refuse (`wait_for_ready`), in seconds.
_ROUND = 0.02


class Trip:
    """One call off the hot path, on its way to a call of grpc.

    Args:
        chosen: the endpoint that the hot path picked and found without connection, if it did.
    """

    __slots__ = (
        "arguments",
        "attempt",
        "began",
        "chosen",
        "copier",
        "cutter",
        "decision",
        "ends",
        "given",
        "metadata",
        "method",
        "record",
        "request",
        "traces",
        "waits",
    )

    def __init__(
        self,
        method: AioMethod,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        waits: bool | None,
        compression: grpc.Compression | None,
        *,
        decision: Decision | None = None,
        chosen: EndpointState | None = None,
    ) -> None:
        self.method = method
        self.request = request
        self.given = timeout
        self.began = monotonic()
        self.ends = None if timeout is None else self.began + timeout
        self.metadata = metadata
        self.waits = waits
        self.arguments = {"credentials": credentials, "compression": compression}
        self.traces = outgoing_metadata()
        self.chosen = chosen
        self.copier: Copier | None = None
        self.decision = decision
        self.attempt: Attempt | None = None
        self.cutter: Cutter | None = None
        self.record: Record | None = None

    def _remaining(self) -> float | None:
        return None if self.ends is None else max(0.0, self.ends - monotonic())

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the deadline comes first."""
        remaining = self._remaining()
        if remaining is not None and remaining < seconds:
            await asyncio.sleep(remaining)
            raise out_of_time()
        await asyncio.sleep(seconds)

    async def outcome(self) -> Any:
        """The call of grpc, or the exception that takes its place."""
        try:
            return await self._run()
        except Exception as error:
            return error
        finally:
            self.settle()

    def settle(self, task: object = None) -> None:
        """Give back an endpoint that was chosen and not used."""
        chosen, self.chosen = self.chosen, None
        if chosen is not None:
            chosen.release()

    async def _run(self) -> Any:
        plan = await self._known_plan()
        if plan.raw:
            return self._untouched()
        decision = self.decide(plan)
        if decision.delay:
            await self._pause(decision.delay)
        while True:
            try:
                return await self._send(decision)
            except NoHealthyUpstream as error:
                if not self.waits:
                    raise given_up(error, decision) from None
            await self._pause(_ROUND)
            self.decision = None
            decision = self.decide(await self._known_plan())

    def decide(self, plan: Plan) -> Decision:
        if self.decision is None:
            if self.traces:
                self.metadata = with_traces(self.metadata, self.traces)
            self.decision = self.method.decide(plan, self.metadata, random)
        if plan.logged:
            if self.record is None:
                waited = monotonic() - self.began
                self.record = self.method.record(plan, self.metadata, waited)
            if self.record is not None:
                self.record.decided(self.decision)
        return self.decision

    async def _known_plan(self) -> Plan:
        plan = self.method.refresh()
        if plan.view is not None:
            return plan
        mesh, name = self.method.mesh, self.method.listener
        try:
            view = await mesh.wait_for_async(name, self._remaining())
        except MeshClosed as error:
            raise grpc.aio.UsageError(f"Cannot invoke RPC: {error}") from error
        except NotReady as error:
            expired = self._remaining() == 0
            raise not_ready(name, error, self.given, expired=expired) from None
        return self.method.plan_for(view)

    async def _send(self, decision: Decision) -> Any:
        if isinstance(decision, Reply):
            raise replied(decision)
        if not isinstance(decision, Forward):
            return self._untouched()
        if not self.method.unary_request:
            endpoint = self.pick(decision, set())
            return self.start(decision, endpoint, self.limit(decision), waits=self.waits)
        return await self._attempts(decision)

    def _untouched(self) -> Any:
        method, record = self.method, self.record
        direct = method.direct() if record is None else method.watched_direct(record)
        return direct(
            self.request,
            timeout=self._remaining(),
            metadata=self.metadata,
            wait_for_ready=self.waits,
            **self.arguments,
        )

    def limit(self, forward: Forward) -> Limit:
        streams = not self.method.unary_request
        return Limit(self._remaining(), forward, monotonic(), streams=streams)

    def pick(self, forward: Forward, refused: set[EndpointState]) -> EndpointState:
        """The balancer's choice, or another endpoint if that one is known to be down."""

        def is_down(endpoint: EndpointState) -> bool:
            return endpoint in refused or self.method.is_down(forward, endpoint)

        chosen, self.chosen = self.chosen, None
        if chosen is not None:
            if not is_down(chosen):
                return chosen
            chosen.release()
        return forward.cluster.pick_up(random, forward.key, is_down)

    async def _attempts(self, forward: Forward) -> Any:
        """Attempts until one has a connection."""
        limit = self.limit(forward)
        refused: set[EndpointState] = set()
        while True:
            endpoint = self.pick(forward, refused)
            call = self.start(forward, endpoint, limit, waits=False)
            if not await self._refused(forward, endpoint, call):
                return call
            refused.add(endpoint)
            if len(refused) < len(forward.cluster.endpoints):
                continue
            if not self.waits:
                return call
            refused.clear()
            await self._pause(_ROUND)

    def start(
        self, forward: Forward, endpoint: EndpointState, limit: Limit, *, waits: bool | None
    ) -> Any:
        """A call of grpc on a picked endpoint."""
        metadata = mutated(forward, self.metadata)
        self._copy(forward, metadata)
        request = self.request
        if forward.timeout is not None and not self.method.unary_request:
            self.cutter = Cutter(limit)
            request = told(request, self.cutter.requested)
        try:
            line = self.method.callable(forward, endpoint)
            callable = line.call
            if self.record is not None:
                callable = self.method.watched(forward, endpoint, self.record) or callable
            call = callable(
                request,
                timeout=limit.left(monotonic()),
                metadata=metadata,
                wait_for_ready=waits,
                **self.arguments,
            )
        except BaseException:
            endpoint.release()
            raise
        call.add_done_callback(line.done)
        self.attempt = attempt = Attempt(forward, endpoint, limit, self.method.is_down)
        call.add_done_callback(lambda _: attempt.over(monotonic()))
        if self.cutter is not None:
            self.cutter.watch(call)
        return call

    def _copy(self, forward: Forward, metadata: Any) -> None:
        """Once, with the first attempt."""
        if self.copier is not None:
            return
        copier = self.copier = copier_of(self.method, forward, metadata)
        if copier is None:
            return
        if self.method.unary_request:
            copier.add(self.request)
            copier.complete()
        else:
            self.request = copier.recorded(self.request)

    def wrote(self, request: Any) -> None:
        """The application has written a request."""
        if self.copier is not None:
            self.copier.add(request)

    def requested(self) -> None:
        """The application has written its last request."""
        if self.copier is not None:
            self.copier.complete()
        if self.cutter is not None:
            self.cutter.requested()

    async def _refused(self, forward: Forward, endpoint: EndpointState, call: Any) -> bool:
        """Whether the call ended because the endpoint refused the connection."""
        channel = self.method.channel_of(forward, endpoint)
        if channel is not None and channel.get_state() is _READY:
            return False
        try:
            await call.initial_metadata()
            if not call.done():
                return False
            failed = connect_failed(await call.code(), await call.details())
        except asyncio.CancelledError:
            call.cancel()
            raise
        return failed and self.method.is_down(forward, endpoint)


class Cutter:
    """Cancels a call of grpc when the route's timeout is over, which starts with its last request.

    Touched by its event loop only.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._call: Any = None
        self._answer: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: Any) -> None:
        self._call = weakref.ref(call)
        call.add_done_callback(self._over)

    def requested(self) -> None:
        call = self._call() if self._call is not None else None
        seconds = self._limit.of_request_end(monotonic())
        if call is None or call.done() or seconds is None or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        self._answer = loop.create_task(call.initial_metadata())
        self._timer = loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        call = self._call()
        if call is not None and not call.done():
            if self._answer is not None and self._answer.done():
                self._limit.answered = True
            self._limit.cut = True
            call.cancel()

    def _over(self, call: object) -> None:
        if self._timer is not None:
            self._timer.cancel()


def told(requests: Any, exhausted: Callable[[], None]) -> Any:
    """The requests of a call, sync or async, that tell when they are exhausted."""
    if requests is None:
        return None

    async def all_async() -> AsyncIterator[Any]:
        async for request in requests:
            yield request
        exhausted()

    def all_sync() -> Iterator[Any]:
        yield from requests
        exhausted()

    return all_async() if isinstance(requests, AsyncIterable) else all_sync()
