"""Servers for tests of servers: one that says what it received, and processes on a port."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.support.ads import AdsServer, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]

TRACES = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "congo=t61rcWkgMzE",
    "x-b3-traceid": "463ac35c9f6413ad48485a3953bb6124",
    "x-b3-spanid": "a2fb4a1d1a96d312",
    "x-b3-sampled": "1",
    "b3": "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1",
    "x-request-id": "7b1a9c3e-0000-4000-8000-000000000001",
}
"""One of each family: W3C, B3 in several headers and in one, the request's id."""


def traces_of(seen: Mapping[str, str]) -> dict[str, str]:
    return {name: seen[name] for name in TRACES if name in seen}


class HeaderServer:
    """An HTTP server that answers every GET with the headers that it received, as JSON."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                seen = {name.lower(): value for name, value in self.headers.items()}
                body = json.dumps(seen).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


class Program:
    """A process of a test: started, waited for, and ended with everything it has started.

    Args:
        command: arguments of this interpreter, for example `-m meshsdk run app.py`.
        environ: besides this process's own environment.
    """

    def __init__(self, *command: str, environ: Mapping[str, str] | None = None) -> None:
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environ or {})},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.output)

    def listening(self, port: int) -> Self:
        """Wait until the program accepts connections."""
        wait_until(lambda: accepts(port) or self._ended(), 20, "the program listens")
        assert self.process.poll() is None, self.text
        return self

    def line(self, number: int = 0) -> str:
        """A line of its output, once it is there."""
        wait_until(lambda: len(self.output) > number or self._ended(), 20, "output")
        assert len(self.output) > number, f"exit {self.process.returncode}: {self.text}"
        return self.output[number]

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = 20) -> int:
        """Exit code, with the output complete."""
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(5)


@contextlib.contextmanager
def mesh_environ(ads: AdsServer, **more: str) -> Iterator[dict[str, str]]:
    """The environment of a program in the mesh of `ads`, registering in group `shop`."""
    yield {
        "MESHSDK_CONTROL_PLANE": ads.address,
        "MESHSDK_AUTO_REGISTER_GROUP": "shop",
        "MESHSDK_DRAIN": "0.5",
        **more,
    }


def registered(ads: AdsServer) -> list[dict[str, Any]]:
    """Metadata of every node that has registered ports, in order of arrival."""
    nodes = list(ads.nodes)
    facts = []
    for node in nodes:
        if "MESHSDK_PORTS" in node.metadata:
            ports = {k: int(v) for k, v in node.metadata["MESHSDK_PORTS"].items()}
            facts.append(
                {"ports": ports, "id": node.id, "group": node.metadata["AUTO_REGISTER_GROUP"]}
            )
    return facts


def deregistered(ads: AdsServer) -> int:
    """How often a process took leave."""
    return sum(1 for request in list(ads.health) if request.error_detail.code == 1)
