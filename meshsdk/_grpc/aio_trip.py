"""The way of an aio call that has to wait, or that is looked into."""

from __future__ import annotations

import asyncio
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshsdk._grpc.plan import Plan, mutated
from meshsdk._grpc.values import (
    cause_of,
    connect_failed,
    given_up,
    not_ready,
    out_of_time,
    replied,
    sendable,
    with_traces,
)
from meshsdk._grpc.values import limit as limit_of
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
        "chosen",
        "decision",
        "ends",
        "given",
        "metadata",
        "method",
        "request",
        "sent_by",
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
        self.ends = None if timeout is None else monotonic() + timeout
        self.metadata = metadata
        self.waits = waits
        self.arguments = {"credentials": credentials, "compression": compression}
        self.traces = outgoing_metadata()
        self.chosen = chosen
        self.decision = decision
        self.sent_by: tuple[Forward, EndpointState] | None = None

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
                    raise given_up(error) from None
            await self._pause(_ROUND)
            self.decision = None
            decision = self.decide(await self._known_plan())

    def decide(self, plan: Plan) -> Decision:
        if self.decision is None:
            if self.traces:
                self.metadata = with_traces(self.metadata, self.traces)
            self.decision = self.method.decide(plan, self.metadata, random)
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
        return self.method.direct()(
            self.request,
            timeout=self._remaining(),
            metadata=self.metadata,
            wait_for_ready=self.waits,
            **self.arguments,
        )

    def limit(self, forward: Forward) -> float | None:
        return limit_of(self._remaining(), forward)

    def pick(self, forward: Forward, refused: set[EndpointState]) -> EndpointState:
        """The balancer's choice, or another endpoint if that one is known to be down."""
        endpoint = self.chosen
        self.chosen = None
        if endpoint is None:
            endpoint = forward.pick(random)
        down = self.method.is_down
        if endpoint not in refused and not down(forward, endpoint):
            return endpoint
        others = forward.cluster.endpoints
        first = int(random() * len(others))
        for other in (*others[first:], *others[:first]):
            if other is not endpoint and other not in refused and not down(forward, other):
                other.acquire()
                endpoint.release()
                return other
        return endpoint

    async def _attempts(self, forward: Forward) -> Any:
        """Attempts until one has a connection."""
        seconds = self.limit(forward)
        ends = None if seconds is None else monotonic() + seconds
        refused: set[EndpointState] = set()
        while True:
            endpoint = self.pick(forward, refused)
            left = None if ends is None else ends - monotonic()
            call = self.start(forward, endpoint, left, waits=False)
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
        self,
        forward: Forward,
        endpoint: EndpointState,
        timeout: float | None,
        *,
        waits: bool | None,
    ) -> Any:
        """A call of grpc on a picked endpoint."""
        try:
            line = self.method.callable(forward, endpoint)
            call = line.call(
                self.request,
                timeout=timeout if timeout is None else max(0.0, timeout),
                metadata=mutated(forward, self.metadata),
                wait_for_ready=waits,
                **self.arguments,
            )
        except BaseException:
            endpoint.release()
            raise
        call.add_done_callback(line.done)
        self.sent_by = (forward, endpoint)
        return call

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

    # --- for the call that the application holds ---

    def changed(self, metadata: Any) -> Any:
        if self.sent_by is None or not self.sent_by[0].changes_response:
            return metadata
        headers = self.sent_by[0].response_headers(tuple(metadata or ()))
        return grpc.aio.Metadata(*sendable(headers))

    def seen(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        if self.sent_by is None:
            return error
        forward, endpoint = self.sent_by
        seen = error
        if forward.changes_response:
            seen = grpc.aio.AioRpcError(
                error.code(),
                self.changed(error.initial_metadata()),
                error.trailing_metadata(),
                error.details(),
                error.debug_error_string(),
            )
        expired = forward.timeout is not None and self._remaining() != 0
        code, details = error.code(), error.details()
        seen.__cause__ = cause_of(code, details, forward, endpoint.target, expired)
        return seen
