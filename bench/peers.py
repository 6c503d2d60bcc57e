"""The processes that a benchmark needs: the C server, Envoys in a row, a control plane.

Each is a context manager that stops what it started, by its pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "bench"
LIFE = 1800  # seconds after which the server ends by itself, whatever happened to us

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Missing(Exception):
    """A program that the benchmark needs is not here; the text says how to get it."""


def build_server() -> Path:
    """Compile `server.c` if it changed. Returns the binary.

    Raises:
        Missing: there is no C compiler, or it refused.
    """
    source, binary = HERE / "server.c", HERE / "bin" / "server"
    if binary.exists() and binary.stat().st_mtime > source.stat().st_mtime:
        return binary
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("a C compiler is needed for the benchmark's server: apt-get install gcc")
    binary.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [compiler, "-O2", "-o", str(binary), str(source)], capture_output=True, text=True
    )
    if done.returncode:
        raise Missing(f"server.c does not compile: {done.stderr}")
    return binary


@contextlib.contextmanager
def process(argv: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A child that is terminated at the end, killed if it does not listen."""
    child = subprocess.Popen(argv, text=True, **more)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def server(count: int = 1) -> Iterator[list[int]]:
    """The C server on `count` ports."""
    argv = [str(build_server()), str(count), str(LIFE)]
    with process(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield [int(port) for port in child.stdout.readline().split()]


# --- Envoy -----------------------------------------------------------------------------------


def envoy_binary() -> str:
    """Raises Missing when `make bench` did not install it."""
    for path in ROOT.glob(".venv-envoy/lib/python3*/site-packages/envoy/_bin/envoy"):
        return str(path)
    raise Missing("real Envoy is not installed: make .venv-envoy/.installed")


@contextlib.contextmanager
def envoy(upstreams: Sequence[int], folder: Path, *, http2: bool) -> Iterator[tuple[int, int]]:
    """One plain Envoy in front of `upstreams`; yields (port, pid)."""
    folder.mkdir(parents=True)
    (folder / "envoy.json").write_text(json.dumps(_envoy_config(upstreams, http2)))
    argv = [
        envoy_binary(), "-c", str(folder / "envoy.json"), "--disable-hot-restart",
        "--concurrency", "2", "-l", "error", "--admin-address-path", str(folder / "admin"),
    ]  # fmt: skip
    with (folder / "log").open("w") as log, process(argv, stdout=log, stderr=log) as child:
        yield _listener_port(folder), child.pid


def _envoy_config(upstreams: Sequence[int], http2: bool) -> dict[str, Any]:
    def address(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    hcm = {
        "@type": f"type.googleapis.com/{_HCM}",
        "stat_prefix": "bench",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}],
                }
            ]
        },
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    cluster: dict[str, Any] = {
        "name": "up",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "up",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": address(p)}} for p in upstreams]}
            ],
        },
    }
    if http2:
        options = {"explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {
            _OPTIONS: {"@type": f"type.googleapis.com/{_OPTIONS}", **options}
        }
    listener = {
        "name": "main",
        "address": address(0),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": hcm}]}],
    }
    return {
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
        "admin": {"address": address(0)},
    }


def _listener_port(folder: Path) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, LookupError, ValueError):
            admin = (folder / "admin").read_text().strip()
            with urllib.request.urlopen(f"http://{admin}/listeners?format=json", timeout=5) as got:
                status = json.load(got)["listener_statuses"][0]
                return int(status["local_address"]["socket_address"]["port_value"])
        time.sleep(0.05)
    raise Missing(f"Envoy did not start: {(folder / 'log').read_text()[-2000:]}")


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- control plane ---------------------------------------------------------------------------

WORKLOADS = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{name: {protocol}, number: 9080, protocol: {upper}}}]
  endpoints:
{endpoints}
"""


def service_yaml(name: str, ports: Sequence[int], protocol: str) -> str:
    """A service `name:9080` whose endpoints are these loopback ports."""
    endpoints = "\n".join(
        f"  - {{address: 127.0.0.1, ports: {{{protocol}: {port}}}}}" for port in ports
    )
    return WORKLOADS.format(
        name=name, protocol=protocol, upper=protocol.upper(), endpoints=endpoints
    )


@contextlib.contextmanager
def control_plane(folder: Path, *configs: Path, documents: str) -> Iterator[str]:
    """`meshctl serve` over directories of YAML and further documents; yields `host:port`."""
    own = folder / "config"
    own.mkdir(parents=True)
    (own / "bench.yaml").write_text(documents)
    port, status = free_port(), free_port()
    argv = [sys.executable, "-m", "controlplane", "serve", "--xds-port", str(port)]
    argv += ["--http-port", str(status)]
    for config in (own, *configs):
        argv += ["--config", str(config)]
    with (
        (folder / "log").open("w") as log,
        process(argv, stdout=log, stderr=log, cwd=ROOT) as child,
    ):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and child.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{status}/ready", timeout=2).close()
                break
            time.sleep(0.05)
        else:
            raise Missing(
                f"the control plane did not start: {(folder / 'log').read_text()[-2000:]}"
            )
        yield f"127.0.0.1:{port}"


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
