"""What the four kinds of aio multicallable share."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import grpc
import grpc.aio

from meshsdk._grpc.aio_calls import MeshCall, Started
from meshsdk._grpc.aio_pool import AioPool, working_loop
from meshsdk._grpc.aio_trip import Trip
from meshsdk._grpc.logged import watch_aio
from meshsdk._grpc.plan import Method, Plan
from meshsdk.balancing import EndpointState
from meshsdk.call import Decision, Forward
from meshsdk.errors import NoHealthyUpstream

_READY = grpc.ChannelConnectivity.READY
_TRANSIENT_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class AioMethod(Method):
    """What the four kinds of multicallable share."""

    unary_request: bool
    late_call: type[MeshCall]

    def __init__(self, pool: AioPool, late: weakref.WeakSet[MeshCall], *method: Any) -> None:
        super().__init__(pool, *method)
        self._late_calls = late

    @property
    def mesh(self) -> Any:
        return self._mesh

    @property
    def listener(self) -> str:
        return self._pool.name or self._pool.target

    async def drain(
        self, callable: Any, requests: list[bytes], seconds: float, metadata: Any
    ) -> None:
        given = requests[0] if self.unary_request else iter(requests)
        call = callable(given, timeout=seconds, metadata=metadata)
        if self.factory.endswith("_unary"):
            await call
        else:
            async for _ in call:
                pass

    def channel_of(self, forward: Forward, endpoint: EndpointState) -> Any:
        return self._pool.channel_of(self, forward, endpoint)

    def is_down(self, forward: Forward, endpoint: EndpointState) -> bool:
        channel = self.channel_of(forward, endpoint)
        return channel is not None and channel.get_state() is _TRANSIENT_FAILURE

    def _start(
        self,
        request: Any,
        timeout: float | None,
        *rest: Any,
        decision: Decision | None = None,
    ) -> Any:
        """A call off the hot path: of grpc if nothing has to be waited for."""
        plan = self._plan
        if plan.snapshot is not self._mesh.snapshot:
            plan = self.refresh()
        if plan.raw:
            return self._direct_call(request, timeout, *rest)
        self._pool.check_open()
        trip = Trip(self, request, timeout, *rest, decision=decision)
        call = self._begun(plan, trip)
        if plan.view is None or plan.logged:
            watch_aio(lambda: trip.record, call)
        return call

    def _begun(self, plan: Plan, trip: Trip) -> Any:
        if plan.view is not None and not trip.waits:
            decision = trip.decide(plan)
            if (
                isinstance(decision, Forward)
                and not decision.delay
                and not decision.changes_response
            ):
                with contextlib.suppress(NoHealthyUpstream):  # the late call tells of it
                    endpoint = trip.pick(decision, set())
                    ready = self._is_ready(decision, endpoint)
                    if ready or not self.unary_request:
                        limit = trip.limit(decision)
                        call = trip.start(decision, endpoint, limit, waits=None)
                        plain = trip.cutter is None and trip.copier is None and not plan.logged
                        if ready and limit.expires is None and plain:
                            return call
                        return self.late_call(Started(call, trip.attempt), trip)
                    trip.chosen = endpoint
        return self._late(trip)

    def _is_ready(self, forward: Forward, endpoint: EndpointState) -> bool:
        channel = self.channel_of(forward, endpoint)
        return channel is not None and channel.get_state() is _READY

    def _late(self, trip: Trip) -> Any:
        try:
            self._pool.check_open()
            if trip.arguments["credentials"] is not None and not self._pool.tls:
                # What a channel of grpc says; the task would say it to nobody but who awaits.
                raise grpc.aio.UsageError("Call credentials are only valid on secure channels")
        except BaseException:
            trip.settle()
            raise
        task = working_loop().create_task(trip.outcome())
        task.add_done_callback(trip.settle)  # a task that is cancelled at once never runs
        call = self.late_call(task, trip)
        self._late_calls.add(call)
        return call

    def _direct_call(
        self,
        request: Any,
        timeout: Any,
        metadata: Any,
        credentials: Any,
        waits: Any,
        compression: Any,
    ) -> Any:
        return self.direct()(
            request,
            timeout=timeout,
            metadata=metadata,
            credentials=credentials,
            wait_for_ready=waits,
            compression=compression,
        )
