"""What was measured, for people: a table, a plot, and the raw samples kept beside them."""

from __future__ import annotations

import gzip
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.processes import Rounds, Row

RESULTS = Path(__file__).resolve().parent / "results"

FEATURES = {
    "raw": "nothing: plain grpcio or httpx on one endpoint",
    "interceptor": "a client interceptor that does nothing",
    "native xds": "grpcio's own xds:/// client: route, round robin over 3 endpoints",
    "mesh": "route by the demo's rules, fault check, timeout, trace headers, balancing over 3",
    "mesh, 100 endpoints": "the same over 100 endpoints",
    "two Envoys": "two plain Envoys in a row: router filter only, no TLS, no access log",
}


class Report:
    """Collects sections; prints each as it comes and writes all of them at the end."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.console = console
        self.folder = folder
        self.data: dict[str, Any] = {"machine": machine()}
        self.failed = 0

    def processes(self, protocol: str, results: Rounds, table: Sequence[Row]) -> None:
        """Rows of fresh processes for one protocol."""
        view = Table(title=f"{protocol}: fresh processes, interleaved; medians over rounds")
        for column in ("mode", "variant", "p50 µs", "p99 µs", "calls/s", "CPU µs", "Envoys µs",
                       "p50/raw", "added p50 µs"):  # fmt: skip
            view.add_column(column, justify="left" if column in ("mode", "variant") else "right")
        for row in table:
            view.add_row(row.mode, row.variant, f"{row.p50:.0f}", f"{row.p99:.0f}",
                         f"{row.rps:.0f}", f"{row.cpu:.0f}", f"{row.envoy_cpu:.0f}",
                         f"{row.ratio:.2f}", f"{row.added:+.0f}")  # fmt: skip
        self.console.print(view)
        self.data[protocol] = [row.__dict__ if hasattr(row, "__dict__") else row for row in table]
        self._keep(protocol, results)

    def paired(
        self, title: str, table: Mapping[str, Mapping[str, float]], rounds: Sequence[Any]
    ) -> None:
        """One paired run in one process: differences to the plain client per call."""
        view = Table(title=f"{title}: µs per call, paired blocks, median of {len(rounds)} rounds")
        for column in ("variant", "cost", "added", "quartiles"):
            view.add_column(column, justify="left" if column == "variant" else "right")
        for variant, row in table.items():
            quartiles = f"{row['low']:+.1f} to {row['high']:+.1f}"
            view.add_row(variant, f"{row['cost']:.1f}", f"{row['added']:+.1f}", quartiles)
        self.console.print(view)
        self.data[title] = {"table": table, "rounds": rounds}

    def _keep(self, protocol: str, results: Rounds) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        raw = {f"{mode} {variant}": rounds for (mode, variant), rounds in results.items()}
        with gzip.open(self.folder / f"{protocol}-samples.json.gz", "wt") as out:
            json.dump(raw, out)

    def gate(self, what: str, measured: float, limit: float, unit: str = "") -> None:
        """One number that the project promises; a miss is shown and counted, never hidden."""
        met = measured <= limit
        self.failed += not met
        mark = "[green]met[/]" if met else "[red]missed[/]"
        self.console.print(f"  {mark}  {what}: {measured:.2f}{unit} (limit {limit:g}{unit})")
        self.data.setdefault("gates", []).append(
            {"what": what, "measured": measured, "limit": limit, "met": met}
        )

    def features(self) -> None:
        view = Table(title="Which features were on")
        view.add_column("variant")
        view.add_column("what a call passes through")
        for name, text in FEATURES.items():
            view.add_row(name, text)
        self.console.print(view)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.data, indent=1, default=str)
        (self.folder / "summary.json").write_text(text + "\n")
        self.console.print(f"Raw samples, summary and plot: {self.folder}")


def plot(rows_by_protocol: dict[str, Sequence[Row]], path: Path) -> None:
    """Added p50 per variant and mode, one panel per protocol."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(rows_by_protocol), figsize=(6.5 * len(rows_by_protocol), 4), squeeze=False
    )
    for axis, (protocol, table) in zip(axes[0], rows_by_protocol.items(), strict=True):
        _panel(axis, protocol, [row for row in table if row.variant != "raw"])
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panel(axis: Any, protocol: str, table: Sequence[Row]) -> None:
    modes = sorted({row.mode for row in table}, key=["sync1", "aio1", "aio32"].index)
    variants = list(dict.fromkeys(row.variant for row in table))
    width = 0.8 / max(1, len(variants))
    for index, variant in enumerate(variants):
        ratios = [next((r.ratio for r in table if (r.mode, r.variant) == (m, variant)), 0)
                  for m in modes]  # fmt: skip
        places = [i + index * width for i in range(len(modes))]
        bars = axis.bar(places, ratios, width, label=variant)
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks([i + 0.4 - width / 2 for i in range(len(modes))], modes)
    axis.set_ylabel("p50, relative to the plain client")
    axis.set_title(f"{protocol}: one call, 64 bytes each way")
    axis.legend(fontsize=8)


def machine() -> dict[str, Any]:
    """What it ran on: numbers without it mean nothing."""
    import os

    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "grpcio": version("grpcio"),
        "httpx": version("httpx"),
    }
