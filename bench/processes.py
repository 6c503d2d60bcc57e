"""Fresh processes, interleaved in shuffled rounds: the mesh against Envoys in a row and native xDS.

The machine jumps between a fast and a slow mode from process to process, so nothing here is judged
by one process: every round runs every variant, and ratios are medians of the ratios per round.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import peers

ENDPOINTS = 3
CALLS = {"sync1": 3000, "aio1": 2000, "aio32": 6400}
HTTP_CALLS = {"sync1": 1500, "aio1": 1000, "aio32": 1920}


@dataclass(frozen=True)
class Variant:
    """How a caller reaches the server: what it dials and what stands between."""

    name: str
    client: str
    target: str
    environ: Mapping[str, str] = field(default_factory=dict)
    envoys: tuple[int, ...] = ()
    """Process ids whose CPU belongs to the call."""


@contextmanager
def stage() -> Iterator[dict[str, list[Variant]]]:
    """Servers, two Envoys in a row per protocol, and a control plane with the demo's rules."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        ports = stack.enter_context(peers.server(2 * ENDPOINTS + 100))
        grpc, http = ports[:ENDPOINTS], ports[ENDPOINTS : 2 * ENDPOINTS]
        many = ports[2 * ENDPOINTS :]
        documents = "---\n".join(
            [
                peers.service_yaml("bench-grpc", grpc, "grpc"),
                peers.service_yaml("bench-grpc-100", many, "grpc"),
                peers.service_yaml("bench-http", http, "http"),
            ]
        )
        address = stack.enter_context(
            peers.control_plane(folder / "cp", *demo_configuration(), documents=documents)
        )
        environ = bootstrap(address)
        chains = {}
        for name, upstreams in (("grpc", grpc), ("http", http)):
            inner = stack.enter_context(
                peers.envoy(upstreams, folder / f"{name}-b", http2=name == "grpc")
            )
            outer = stack.enter_context(
                peers.envoy([inner[0]], folder / f"{name}-a", http2=name == "grpc")
            )
            chains[name] = (f"127.0.0.1:{outer[0]}", (outer[1], inner[1]))
        yield {
            "grpc": [
                Variant("raw", "raw", f"127.0.0.1:{grpc[0]}"),
                Variant("native xds", "native", HOST.format("bench-grpc"), environ),
                Variant("mesh", "mesh", "bench-grpc:9080", environ),
                Variant("mesh, 100 endpoints", "mesh", "bench-grpc-100:9080", environ),
                Variant("two Envoys", "raw", chains["grpc"][0], envoys=chains["grpc"][1]),
            ],
            "http": [
                Variant("raw", "raw", f"127.0.0.1:{http[0]}"),
                Variant("mesh", "mesh", "bench-http:9080", environ),
                Variant("two Envoys", "raw", chains["http"][0], envoys=chains["http"][1]),
            ],
        }


HOST = "{}.default.svc.cluster.local:9080"


def demo_configuration() -> list[Path]:
    """The demo's own rules, loaded beside the benchmark's services."""
    return [
        path
        for path in (peers.ROOT / "examples/bookinfo/mesh", peers.ROOT / "examples/demo/base")
        if path.is_dir()
    ]


def bootstrap(address: str) -> dict[str, str]:
    """Environment that points both grpcio's xDS client and the SDK at the control plane."""
    config = {
        "xds_servers": [
            {
                "server_uri": address,
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {
            "id": "sidecar~127.0.0.1~bench.default~default.svc.cluster.local",
            "metadata": {"GENERATOR": "grpc", "NAMESPACE": "default"},
        },
    }
    return {"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(config)}


def run_one(protocol: str, variant: Variant, mode: str, calls: int) -> dict[str, Any]:
    """One fresh process; its samples, with the CPU of what stands between."""
    before = [peers.cpu_seconds(pid) for pid in variant.envoys]
    argv = [sys.executable, "-m", "bench.worker", protocol, variant.client, mode]
    done = subprocess.run(
        [*argv, variant.target, str(calls)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=peers.ROOT,
        env=os.environ | variant.environ,
    )
    if done.returncode:
        raise SystemExit(f"{protocol} {variant.name} {mode}: {done.stderr.strip()[-1500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    spent = [peers.cpu_seconds(pid) - b for pid, b in zip(variant.envoys, before, strict=True)]
    # The warm-up calls went through the Envoys too.
    result["envoy_us"] = [s / (calls + 300) * 1e6 for s in spent]
    return result


Rounds = dict[tuple[str, str], list[dict[str, Any]]]


def run(
    protocol: str,
    variants: Sequence[Variant],
    rounds: int,
    scale: float,
    progress: Callable[[str], None],
) -> Rounds:
    """All modes and variants, `rounds` times, each round in a new order."""
    calls = CALLS if protocol == "grpc" else HTTP_CALLS
    results: Rounds = {}
    for number in range(rounds):
        order = [(mode, variant) for mode in calls for variant in variants]
        random.shuffle(order)
        for mode, variant in order:
            progress(f"{protocol} round {number + 1}/{rounds}: {variant.name}, {mode}")
            count = max(320, int(calls[mode] * scale))
            count -= count % 32
            outcome = run_one(protocol, variant, mode, count)
            results.setdefault((mode, variant.name), []).append(outcome)
    return results


@dataclass(frozen=True)
class Row:
    mode: str
    variant: str
    p50: float
    p99: float
    rps: float
    cpu: float
    envoy_cpu: float
    ratio: float
    """Median over rounds of p50 divided by the raw p50 of the same round."""
    added: float
    """Median over rounds of p50 minus the raw p50 of the same round, microseconds."""


def rows(results: Rounds) -> list[Row]:
    table = []
    for (mode, name), outcomes in sorted(results.items()):
        p50 = [statistics.median(o["samples"]) for o in outcomes]
        raw = [statistics.median(o["samples"]) for o in results[mode, "raw"]]
        table.append(
            Row(
                mode,
                name,
                statistics.median(p50),
                statistics.median(percentile(o["samples"], 99) for o in outcomes),
                statistics.median(len(o["samples"]) / o["wall"] for o in outcomes),
                statistics.median(o["cpu_us"] for o in outcomes),
                statistics.median(sum(o["envoy_us"]) for o in outcomes),
                statistics.median(a / b for a, b in zip(p50, raw, strict=True)),
                statistics.median(a - b for a, b in zip(p50, raw, strict=True)),
            )
        )
    return table


def percentile(samples: Sequence[float], percent: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
