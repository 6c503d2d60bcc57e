"""`make bench`: what the mesh costs, and whether it keeps what it promises.

    python -m bench [--quick] [--only PART] [--out FOLDER]

Four parts: `paired` blocks in one process judge microseconds; fresh interleaved `processes` compare
with two Envoys in a row and gRPC's own xDS; `configuration` takes in a mesh of 1000 services and
looks for routes; `propagation` changes a VirtualService under 50 connected processes. Exit code 1
when a promised number was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import configuration, grpc_paired, httpx_paired, peers, processes, propagation
from bench.report import RESULTS, Report, plot


def main() -> int:
    options = _options()
    console = Console(soft_wrap=not sys.stdout.isatty())
    folder = options.out or RESULTS / time.strftime("%Y-%m-%d-%H%M%S")
    report = Report(console, folder)
    parts: dict[str, Callable[[Report, bool, Callable[[str], None]], None]] = {
        "paired": _paired,
        "processes": _processes,
        "configuration": _configuration,
        "propagation": _propagation,
    }
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        for name, part in parts.items():
            if options.only in (None, name):
                try:
                    part(
                        report, options.quick, lambda text: progress.update(task, description=text)
                    )
                except peers.Missing as missing:
                    console.print(f"[red]{name} could not run:[/] {missing}")
                    report.failed += 1
    report.features()
    report.write()
    return 1 if report.failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs")
    parser.add_argument("--only", choices=["paired", "processes", "configuration", "propagation"])
    parser.add_argument("--out", type=Path, help="folder for samples and plot")
    return parser.parse_args()


def _paired(report: Report, quick: bool, progress: Callable[[str], None]) -> None:
    rounds, calls = (5, 320) if quick else (25, 640)
    with peers.server(100) as ports:
        progress("gRPC sync, paired blocks in one process")
        _grpc(report, "gRPC sync, one at a time", grpc_paired.run_sync(ports, rounds, calls))
        progress("gRPC aio, 32 at once, paired blocks in one process")
        _grpc(
            report, "gRPC aio, 32 at once", asyncio.run(grpc_paired.run_aio(ports, rounds, calls))
        )
        progress("httpx, paired blocks in one process")
        _httpx(report, httpx_paired.run(ports, rounds, calls))
    _imports(report)


def _grpc(report: Report, title: str, rounds: list[dict[str, float]]) -> None:
    table = grpc_paired.differences(rounds)
    report.paired(title, table, rounds)
    control = abs(table["raw again"]["added"])
    if control > grpc_paired.CONTROL:
        report.console.print(f"  [yellow]the control differs by {control:.1f} µs: run it again[/]")
    for count in (3, 100):
        what = f"{title}, {count} endpoints: CPU added, of what a no-op interceptor adds"
        literal = table[f"mesh {count}"]["added"] / table["interceptor"]["added"]
        report.gate(f"{what}; over one raw connection", literal, grpc_paired.GATE)
        like = grpc_paired.share(rounds, count)
        report.gate(f"{what}; over {count} raw connections in turn", like, grpc_paired.GATE)


def _httpx(report: Report, tables: dict[str, list[dict[str, float]]]) -> None:
    for title, rounds in tables.items():
        report.paired(title, httpx_paired.differences(rounds), rounds)
        ratio = statistics.median(r["mesh"] / r["raw"] for r in rounds)
        report.gate(f"{title}: time per call, mesh / plain", ratio, 1.0)


def _imports(report: Report) -> None:
    """`import meshsdk` over bare Python: median of interleaved fresh processes."""

    def once(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=peers.ROOT)
        return (time.perf_counter() - start) * 1000

    pairs = [(once("pass"), once("import meshsdk")) for _ in range(15)]
    report.gate("import meshsdk, over bare Python", statistics.median(b - a for a, b in pairs),
                30, " ms")  # fmt: skip


def _processes(report: Report, quick: bool, progress: Callable[[str], None]) -> None:
    rounds, scale = (2, 0.2) if quick else (7, 1.0)
    tables: dict[str, Any] = {}
    with processes.stage() as variants:
        for protocol, choices in variants.items():
            results = processes.run(protocol, choices, rounds, scale, progress)
            tables[protocol] = processes.rows(results)
            report.processes(protocol, results, tables[protocol])
            _judge(report, protocol, results)
    report.folder.mkdir(parents=True, exist_ok=True)
    plot(tables, report.folder / "overhead.png")


def _judge(report: Report, protocol: str, results: processes.Rounds) -> None:
    def p50(mode: str, variant: str) -> list[float]:
        return [statistics.median(o["samples"]) for o in results[mode, variant]]

    for mode in ("sync1", "aio1", "aio32"):
        raw, mesh, envoys = (p50(mode, name) for name in ("raw", "mesh", "two Envoys"))
        rounds = list(zip(raw, mesh, envoys, strict=True))
        share = statistics.median(_share(m - r, e - r) for r, m, e in rounds)
        report.gate(f"{protocol} {mode}: p50 added by the mesh, of what two Envoys add", share, 0.1)
        if protocol == "grpc":
            native = p50(mode, "native xds")
            ratio = statistics.median(m / n for m, n in zip(mesh, native, strict=True))
            report.gate(f"{protocol} {mode}: p50, mesh / native xds:///", ratio, 1.05)


def _share(mesh: float, envoys: float) -> float:
    """What the mesh adds of what two Envoys add; nothing where it adds nothing."""
    if mesh <= 0:
        return 0.0
    return mesh / envoys if envoys > 0 else float("inf")


def _configuration(report: Report, quick: bool, progress: Callable[[str], None]) -> None:
    progress("a mesh of 1000 services")
    samples = configuration.run(quick)
    report.data["configuration"] = samples
    found = {name: statistics.median(values) for name, values in samples.items()}
    report.gate(
        "a mesh of 1000 services put in force at once (joined, balanced, published)",
        found["apply"], 25, " ms",
    )  # fmt: skip
    report.console.print(f"        decoded and checked before that: {found['decode']:.0f} ms")
    report.gate("one endpoint of 5000 moves: response to snapshot", found["change"], 100, " µs")
    progress("finding a route")
    added, ratio = configuration.matching(*((5, 500) if quick else (25, 5000)))
    report.gate("matching among 100 routes, added to one", added, 5, " µs")
    report.gate("matching among 1000 exact paths, of 10", ratio, 1.05)


def _propagation(report: Report, quick: bool, progress: Callable[[str], None]) -> None:
    count = 10 if quick else 50
    progress(f"a changed VirtualService reaches {count} processes")
    times = propagation.run(count, changes=3 if quick else 10)
    report.gate(
        f"a changed VirtualService reaches {count} connected processes (slowest of "
        f"{len(times)} changes)", max(times), 1.0, " s",
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
