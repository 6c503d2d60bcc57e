"""One variant, one mode, one fresh process: calls it, checks every answer, prints JSON samples.

    python -m bench.worker grpc|http VARIANT sync1|aio1|aio32 TARGET CALLS

`grpc` variants: raw (also through Envoys: only the target differs), interceptor, native, mesh;
`http` variants: raw, mesh. The bootstrap of native and mesh comes from the environment.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

METHOD = "/bench.Echo/Get"
REQUEST = b"y" * 64
ANSWER = b"x" * 64
WARM = 300


def main(argv: list[str]) -> None:
    protocol, variant, mode, target, calls = argv
    runner = GRPC[mode] if protocol == "grpc" else HTTP[mode]
    runner(variant, target, int(calls))


def report(samples: list[float], wall: float, cpu: float) -> None:
    """Latencies in microseconds, and what the process used over the measured calls."""
    result = {
        "samples": [round(s * 1e6, 1) for s in samples],
        "wall": wall,
        "cpu_us": cpu / len(samples) * 1e6,
    }
    json.dump(result, sys.stdout)


def measure(call: Callable[[], Any], calls: int) -> None:
    for _ in range(WARM):
        check(call())
    samples = []
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        start = time.perf_counter()
        check(call())
        samples.append(time.perf_counter() - start)
    report(samples, time.perf_counter() - wall, time.process_time() - cpu)


async def measure_async(call: Callable[[], Awaitable[Any]], calls: int, width: int) -> None:
    for _ in range(WARM):
        check(await call())
    samples: list[float] = []

    async def worker(count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            check(await call())
            samples.append(time.perf_counter() - start)

    await asyncio.gather(*(worker(10) for _ in range(width)))
    samples.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker(calls // width) for _ in range(width)))
    report(samples, time.perf_counter() - wall, time.process_time() - cpu)


def check(answer: Any) -> None:
    """A fast wrong answer must not look like a good result."""
    body = answer if isinstance(answer, bytes) else answer.content
    if body != ANSWER:
        raise SystemExit(f"wrong answer: {body[:80]!r}")


# --- gRPC ------------------------------------------------------------------------------------


def grpc_sync(variant: str, target: str, calls: int) -> None:
    import grpc

    with _sync_channel(variant, target) as channel:
        call = channel.unary_unary(METHOD)
        if variant == "mesh":
            call(REQUEST, timeout=20)
        else:
            grpc.channel_ready_future(channel).result(20)
        measure(lambda: call(REQUEST), calls)


def _sync_channel(variant: str, target: str) -> Any:
    import grpc

    if variant == "mesh":
        import meshsdk

        return meshsdk.default_mesh().channel(target)
    name = f"xds:///{target}" if variant == "native" else target
    return grpc.insecure_channel(name)


def grpc_aio(width: int) -> Callable[[str, str, int], None]:
    def run(variant: str, target: str, calls: int) -> None:
        asyncio.run(_grpc_aio(variant, target, calls, width))

    return run


async def _grpc_aio(variant: str, target: str, calls: int, width: int) -> None:
    import grpc.aio

    channel: Any
    if variant == "mesh":
        import meshsdk

        channel = meshsdk.default_mesh().aio_channel(target)
    else:
        channel = grpc.aio.insecure_channel(f"xds:///{target}" if variant == "native" else target)
    async with channel:
        call = channel.unary_unary(METHOD)
        await call(REQUEST, timeout=20)
        await measure_async(lambda: call(REQUEST), calls, width)


# --- HTTP ------------------------------------------------------------------------------------


def http_sync(variant: str, target: str, calls: int) -> None:
    import httpx

    url = f"http://{target}/"
    with httpx.Client(transport=_mesh_transport("transport", variant), timeout=20) as client:
        measure(lambda: client.get(url), calls)


def http_aio(width: int) -> Callable[[str, str, int], None]:
    def run(variant: str, target: str, calls: int) -> None:
        asyncio.run(_http_aio(variant, target, calls, width))

    return run


async def _http_aio(variant: str, target: str, calls: int, width: int) -> None:
    import httpx

    url = f"http://{target}/"
    transport = _mesh_transport("async_transport", variant)
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        await measure_async(lambda: client.get(url), calls, width)


def _mesh_transport(kind: str, variant: str) -> Any:
    if variant != "mesh":
        return None
    import meshsdk

    return getattr(meshsdk.default_mesh(), kind)()


GRPC: dict[str, Callable[[str, str, int], None]] = {
    "sync1": grpc_sync,
    "aio1": grpc_aio(1),
    "aio32": grpc_aio(32),
}
HTTP: dict[str, Callable[[str, str, int], None]] = {
    "sync1": http_sync,
    "aio1": http_aio(1),
    "aio32": http_aio(32),
}

if __name__ == "__main__":
    main(sys.argv[1:])
