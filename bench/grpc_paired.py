"""CPU that the mesh adds to a unary gRPC call, in one process, by paired blocks.

    python -m bench.grpc_paired [sync|aio|all] [ROUNDS] [CALLS]

Every round runs one block of calls per variant, in shuffled order; the numbers are medians over
rounds of (variant - raw), CPU of this process per call. A second raw channel is the control: if
it differs from raw by more than 1.5 us the run says nothing. The gate: what the mesh adds is at
most 0.6 of what a do-nothing interceptor of grpcio adds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from bench import peers
from bench.worker import ANSWER, METHOD, REQUEST
from meshsdk.grpc import MeshChannel
from meshsdk.grpc_aio import MeshAioChannel
from meshsdk.model import Route
from tests.support.static_mesh import StaticMesh, forward

NAME = "bench:9080"
GATE = 0.6
CONTROL = 1.5
WIDTH = 32


def static_mesh(ports: list[int], *routes: Route) -> StaticMesh:
    mesh = StaticMesh()
    mesh.endpoints("all", *(f"127.0.0.1:{port}" for port in ports))
    mesh.endpoints("rest", f"127.0.0.1:{ports[0]}")
    mesh.listen(NAME, *(routes or (forward("all"),)))
    return mesh


def meshes(ports: list[int]) -> dict[str, StaticMesh]:
    return {
        "mesh 1": static_mesh(ports[:1]),
        "mesh 3": static_mesh(ports[:3]),
        "mesh 100": static_mesh(ports[:100]),
        "mesh 3, 90/10": static_mesh(ports[:3], forward(("all", 90), ("rest", 10))),
        "mesh 3, timeout": static_mesh(ports[:3], forward("all", timeout=15.0)),
    }


class Spread:
    """Several raw multicallables, one after another: what many connections cost by themselves."""

    def __init__(self, methods: list[Any]) -> None:
        self._next = itertools.cycle(methods).__next__

    def __call__(self, request: bytes) -> Any:
        return self._next()(request)


class NoOp(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details, request)


class AioNoOp(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details, request)


def differences(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of each variant minus raw, microseconds per call."""
    table = {}
    for variant in rounds[0]:
        low, middle, high = statistics.quantiles((r[variant] - r["raw"] for r in rounds), n=4)
        cost = statistics.median(r[variant] for r in rounds)
        table[variant] = {"cost": cost, "added": middle, "low": low, "high": high}
    return table


def share(rounds: list[dict[str, float]], endpoints: int) -> float:
    """What the mesh adds, of what the interceptor adds: median over rounds of each."""
    mesh = statistics.median(r[f"mesh {endpoints}"] - r[f"raw {endpoints}"] for r in rounds)
    return mesh / statistics.median(r["interceptor"] - r["raw"] for r in rounds)


# --- sync ------------------------------------------------------------------------------------


def run_sync(ports: list[int], rounds: int, calls: int) -> list[dict[str, float]]:
    target = f"127.0.0.1:{ports[0]}"
    own = ("grpc.use_local_subchannel_pool", 1)  # a connection for each variant
    channels: dict[str, grpc.Channel] = {
        "raw": grpc.insecure_channel(target, [own]),
        "raw again": grpc.insecure_channel(target, [own]),
        "interceptor": grpc.intercept_channel(grpc.insecure_channel(target, [own]), NoOp()),
    }
    for name, mesh in meshes(ports).items():
        channels[name] = MeshChannel(mesh, NAME, [own])
    methods: dict[str, Any] = {name: c.unary_unary(METHOD) for name, c in channels.items()}
    for count in (3, 100):
        raw = [grpc.insecure_channel(f"127.0.0.1:{port}", [own]) for port in ports[:count]]
        methods[f"raw {count}"] = Spread([channel.unary_unary(METHOD) for channel in raw])
    for method in methods.values():
        _block(method, 300)
    return [
        {name: _block(methods[name], calls) for name in random.sample(list(methods), len(methods))}
        for _ in range(rounds)
    ]


def _block(method: Any, calls: int) -> float:
    request = REQUEST
    start = time.process_time()
    for _ in range(calls):
        if method(request) != ANSWER:
            raise SystemExit("wrong answer")
    return (time.process_time() - start) / calls * 1e6


# --- aio -------------------------------------------------------------------------------------


async def run_aio(ports: list[int], rounds: int, calls: int) -> list[dict[str, float]]:
    target = f"127.0.0.1:{ports[0]}"
    own = ("grpc.use_local_subchannel_pool", 1)
    channels: dict[str, Any] = {
        "raw": grpc.aio.insecure_channel(target, [own]),
        "raw again": grpc.aio.insecure_channel(target, [own]),
        "interceptor": grpc.aio.insecure_channel(target, [own], interceptors=[AioNoOp()]),
    }
    for name, mesh in meshes(ports).items():
        channels[name] = MeshAioChannel(mesh, NAME, [own])
    methods: dict[str, Any] = {name: c.unary_unary(METHOD) for name, c in channels.items()}
    for count in (3, 100):
        raw = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", [own]) for port in ports[:count]]
        methods[f"raw {count}"] = Spread([channel.unary_unary(METHOD) for channel in raw])
    for method in methods.values():
        await _aio_block(method, 300)
    results = []
    for _ in range(rounds):
        order = random.sample(list(methods), len(methods))
        results.append({name: await _aio_block(methods[name], calls) for name in order})
    for channel in channels.values():
        await channel.close()
    return results


async def _aio_block(method: Callable[[bytes], Awaitable[bytes]], calls: int) -> float:
    async def worker() -> None:
        for _ in range(calls // WIDTH):
            if await method(REQUEST) != ANSWER:
                raise SystemExit("wrong answer")

    start = time.process_time()
    await asyncio.gather(*(worker() for _ in range(WIDTH)))
    return (time.process_time() - start) / (calls // WIDTH * WIDTH) * 1e6


# --- the table -------------------------------------------------------------------------------


def show(title: str, rounds: list[dict[str, float]]) -> bool:
    """Print the table; whether the gate holds."""
    table = differences(rounds)
    print(f"{title}: CPU us per call, median of {len(rounds)} rounds")
    for variant, row in sorted(table.items(), key=lambda item: item[1]["cost"]):
        print(
            f"  {variant:16} {row['cost']:6.1f}  over raw {row['added']:+5.1f} "
            f"[{row['low']:+.1f}, {row['high']:+.1f}]"
        )
    if abs(table["raw again"]["added"]) > CONTROL:
        print("  the control is off: this run says nothing")
        return False
    shares = {count: share(rounds, count) for count in (3, 100)}
    for count, value in shares.items():
        verdict = "within" if value <= GATE else "ABOVE"
        print(f"  {count} endpoints: {value:.2f} of the interceptor, {verdict} the gate of {GATE}")
    return max(shares.values()) <= GATE


def main(argv: list[str]) -> int:
    mode = argv[0] if argv else "all"
    rounds = int(argv[1]) if len(argv) > 1 else 25
    calls = int(argv[2]) if len(argv) > 2 else 640
    good = True
    samples: dict[str, Any] = {}
    with peers.server(100) as ports:
        if mode in ("sync", "all"):
            samples["sync"] = run_sync(ports, rounds, calls)
            good &= show("sync, one at a time", samples["sync"])
        if mode in ("aio", "all"):
            samples["aio"] = asyncio.run(run_aio(ports, rounds, calls))
            good &= show(f"aio, {WIDTH} at once", samples["aio"])
    if "--json" in argv:
        json.dump(samples, sys.stdout)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
