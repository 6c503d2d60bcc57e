"""What the four kinds of sync multicallable share."""

from __future__ import annotations

import threading
import weakref
from random import random
from typing import Any

import grpc

from meshsdk._grpc.calls import MeshCall, MeshRpcError
from meshsdk._grpc.logged import broke_off, over, watch
from meshsdk._grpc.plan import Method
from meshsdk._grpc.pool import MeshLike, Pool
from meshsdk._grpc.trip import Args, Start, Trip, drive, plain, state_of
from meshsdk._grpc.values import Failure, given_up
from meshsdk.balancing import EndpointState
from meshsdk.call import Decision, Forward
from meshsdk.errors import NoHealthyUpstream
from meshsdk.fork import abandon

_READY = grpc.ChannelConnectivity.READY
_TRANSIENT_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class Life:
    """What ends with a channel: calls that wait, in their caller's thread or in one of their own.

    Attributes:
        closing: set when the channel is closed. late: the calls that a thread drives.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self.late: weakref.WeakSet[MeshCall] = weakref.WeakSet()

    def forget(self) -> None:
        """After a fork: a thread of the parent may have held the locks."""
        abandon(self.closing, self.late)
        self.__init__()  # type: ignore[misc]


class SyncMethod(Method):
    """What the four kinds of multicallable share."""

    unary_request: bool
    blocking: bool
    """`__call__` returns the response itself."""

    def __init__(self, pool: Pool, life: Life, *method: Any) -> None:
        super().__init__(pool, *method)
        self.life = life

    @property
    def pool(self) -> Pool:
        return self._pool

    @property
    def mesh(self) -> MeshLike:
        return self._mesh

    @property
    def listener(self) -> str:
        return self._pool.name or self._pool.target

    async def drain(
        self, callable: Any, requests: list[bytes], seconds: float, metadata: Any
    ) -> None:
        given = requests[0] if self.unary_request else iter(requests)
        responses = callable(given, timeout=seconds, metadata=metadata)
        if not self.blocking:
            for _ in responses:
                pass

    def is_down(self, forward: Forward, endpoint: EndpointState) -> bool:
        return self._state(forward, endpoint) is _TRANSIENT_FAILURE

    def is_ready(self, forward: Forward, endpoint: EndpointState) -> bool:
        return self._state(forward, endpoint) is _READY

    def _state(self, forward: Forward, endpoint: EndpointState) -> grpc.ChannelConnectivity | None:
        """State of the channel to an endpoint, None if there is none."""
        channel = self._pool.channel_of(self, forward, endpoint)
        if channel is None:
            return None
        try:
            return state_of(channel)
        except ValueError:  # closed meanwhile, which ends its calls
            return grpc.ChannelConnectivity.SHUTDOWN

    def pick(self, forward: Forward, refused: set[EndpointState]) -> EndpointState:
        """The balancer's choice, or another endpoint if that one is known to be down."""

        def is_down(endpoint: EndpointState) -> bool:
            return endpoint in refused or self.is_down(forward, endpoint)

        return forward.cluster.pick_up(random, forward.key, is_down)

    def _wait(
        self, start: Start, request: Any, args: Args, decision: Decision | None = None
    ) -> Any:
        """A blocking call off the hot path."""
        plan = self._plan
        if plan.snapshot is not self._mesh.snapshot:
            plan = self.refresh()
        if plan.raw:
            return start(self.direct(), request, *args)
        self._pool.check_open()
        trip = Trip(self, start, request, args, decision)
        try:
            result = trip.run()
        except Failure as failure:
            ended = MeshRpcError(failure)
            if trip.record is not None:
                over(trip.record, ended)
            raise ended from failure.cause
        except BaseException as error:
            if trip.record is not None:
                broke_off(trip.record, error)
            raise
        if trip.record is None:
            return result
        response, call = result
        over(trip.record, call)
        return response if start is plain else result

    def _launch(self, start: Start, request: Any, args: Args) -> Any:
        """A call object, at once: of grpc if nothing has to be waited for."""
        plan = self._plan
        if plan.snapshot is not self._mesh.snapshot:
            plan = self.refresh()
        if plan.raw:
            return start(self.direct(), request, *args)
        self._pool.check_open()
        trip = Trip(self, start, request, args)
        if plan.view is not None and not args.wait_for_ready:
            decision = trip.decide(plan)
            if not decision.delay:
                return self._sent(trip, decision)
        call = trip.call = MeshCall(trip.ends)
        self.life.late.add(call)
        threading.Thread(target=drive, args=(trip, call), name="meshsdk-call", daemon=True).start()
        return call

    def _sent(self, trip: Trip, decision: Decision) -> Any:
        """A call object for which nothing has to be waited for."""
        call: Any
        try:
            call = trip.send(decision)
        except NoHealthyUpstream as error:
            call = MeshRpcError(given_up(error, decision))
        except Failure as failure:
            call = MeshRpcError(failure)
        if trip.record is not None:
            watch(trip.record, call)
        return call
