"""Time of an httpx request through the mesh against plain httpx, in one process, paired blocks.

    python -m bench.httpx_paired [ROUNDS] [CALLS] [httpx|httpx2]

Every round runs one block of requests per variant, in shuffled order; the numbers are microseconds
of wall time per request. A second plain client is the control. The gate: with the mesh a request
takes no longer than with plain httpx. All connections are warm and none is turned away, which is
the best that plain httpx can do.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import statistics
import sys
import time
from typing import Any

import meshsdk.httpx
from bench import peers
from bench.grpc_paired import differences
from meshsdk.matching import HeaderMatch, PathKind, PathMatch, StringKind, StringMatch
from meshsdk.model import AppendAction, HeaderMutations, HeaderOption, RouteMatch
from tests.support.static_mesh import StaticMesh, forward

__all__ = ["differences", "run"]

NAME = "bench:9080"
LENGTH = 64  # of the answer of the benchmark's server
WIDTH = 32
GATE = 1.0


def _static(ports: list[int]) -> StaticMesh:
    mesh = StaticMesh()
    mesh.endpoints("all", *(f"127.0.0.1:{port}" for port in ports))
    mesh.endpoints("rest", f"127.0.0.1:{ports[0]}")
    mesh.listen(NAME, forward("all"))
    return mesh


def _busy(ports: list[int]) -> StaticMesh:
    """What the demo's routes use: a header to match, weights, a timeout, a header to add."""
    mesh = _static(ports)
    jason = HeaderMatch("end-user", StringMatch(StringKind.EXACT, "jason"))
    option = HeaderOption("x-added", "yes", AppendAction.OVERWRITE_OR_ADD)
    mesh.listen(
        NAME,
        forward("rest", match=RouteMatch(PathMatch(PathKind.PREFIX, "/"), headers=(jason,))),
        forward(
            ("all", 90),
            ("rest", 10),
            timeout=15.0,
            mutations=HeaderMutations(request_set=(option,)),
        ),
    )
    return mesh


def _variants(ports: list[int]) -> dict[str, tuple[StaticMesh | None, str]]:
    plain = f"http://127.0.0.1:{ports[0]}/"
    return {
        "raw": (None, plain),
        "raw again": (None, plain),
        "mesh": (_static(ports[:3]), f"http://{NAME}/"),
        "mesh 100": (_static(ports[:100]), f"http://{NAME}/"),
        "mesh, routed": (_busy(ports[:3]), f"http://{NAME}/"),
    }


def _options(library: Any) -> dict[str, Any]:
    many = 10 * WIDTH
    limits = library.Limits(max_connections=many, max_keepalive_connections=many)
    return {"limits": limits, "trust_env": False}


def run(
    ports: list[int], rounds: int, calls: int, names: tuple[str, ...] = ("httpx", "httpx2")
) -> dict[str, list[dict[str, float]]]:
    """Title → rounds; each round has microseconds per request of each variant."""
    tables = {}
    for name in names:
        library = importlib.import_module(name)
        tables[f"{name} sync, one at a time"] = _run_sync(library, ports, rounds, calls)
        for width, title in ((1, "one at a time"), (WIDTH, f"{WIDTH} at once")):
            done = asyncio.run(_run_async(library, ports, rounds, calls, width))
            tables[f"{name} async, {title}"] = done
    return tables


def _run_sync(library: Any, ports: list[int], rounds: int, calls: int) -> list[dict[str, float]]:
    clients = {}
    for name, (mesh, url) in _variants(ports).items():
        options = _options(library)
        if mesh is not None:
            options = {"transport": meshsdk.httpx.transport(mesh, **options)}
        clients[name] = library.Client(**options), url
    for client, url in clients.values():
        _block(client, url, 200)
    results = [
        {name: _block(*clients[name], calls) for name in random.sample(list(clients), len(clients))}
        for _ in range(rounds)
    ]
    for client, _ in clients.values():
        client.close()
    return results


def _block(client: Any, url: str, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        if len(client.get(url).content) != LENGTH:
            raise SystemExit("wrong answer")
    return (time.perf_counter() - start) / calls * 1e6


async def _run_async(
    library: Any, ports: list[int], rounds: int, calls: int, width: int
) -> list[dict[str, float]]:
    clients = {}
    for name, (mesh, url) in _variants(ports).items():
        options = _options(library)
        if mesh is not None:
            options = {"transport": meshsdk.httpx.async_transport(mesh, **options)}
        clients[name] = library.AsyncClient(**options), url
    for client, url in clients.values():
        await _async_block(client, url, 200, width)
    results = []
    for _ in range(rounds):
        order = random.sample(list(clients), len(clients))
        results.append({name: await _async_block(*clients[name], calls, width) for name in order})
    for client, _ in clients.values():
        await client.aclose()
    return results


async def _async_block(client: Any, url: str, calls: int, width: int) -> float:
    async def worker() -> None:
        for _ in range(calls // width):
            if len((await client.get(url)).content) != LENGTH:
                raise SystemExit("wrong answer")

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(width)))
    return (time.perf_counter() - start) / (calls // width * width) * 1e6


def main(argv: list[str]) -> int:
    numbers = [int(arg) for arg in argv if arg.isdigit()]
    rounds, calls = numbers[0] if numbers else 25, numbers[1] if len(numbers) > 1 else 640
    names = tuple(arg for arg in argv if not arg.isdigit()) or ("httpx", "httpx2")
    good = True
    with peers.server(100) as ports:
        for title, results in run(ports, rounds, calls, names).items():
            print(f"{title}: us per request, median of {rounds} rounds")
            for variant, row in differences(results).items():
                ratio = statistics.median(r[variant] / r["raw"] for r in results)
                print(
                    f"  {variant:14} {row['cost']:8.1f}  added {row['added']:+8.1f} "
                    f"[{row['low']:+.1f}, {row['high']:+.1f}]  {ratio:.2f} of raw"
                )
                good &= ratio <= GATE or not variant.startswith("mesh")
    print("within the gate" if good else "ABOVE the gate")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
