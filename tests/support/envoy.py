"""Real Envoy, the referee: started on loopback with a static configuration, stopped by its pid."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.programs import require_envoy

HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault"
ROUTER = "envoy.extensions.filters.http.router.v3.Router"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/{name}", **fields}


def http_listener(route_config: Mapping[str, Any], name: str = "main") -> dict[str, Any]:
    """A listener on a free loopback port with the fault and router filters."""
    hcm = typed(
        HCM,
        stat_prefix=name,
        route_config=route_config,
        generate_request_id=False,
        http_filters=[
            {"name": "envoy.filters.http.fault", "typed_config": typed(FAULT)},
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed(ROUTER, suppress_envoy_headers=True),
            },
        ],
    )
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": hcm}]}],
    }


def static_cluster(
    name: str, ports: Sequence[int], *, http2: bool = False, **more: Any
) -> dict[str, Any]:
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
        for port in ports
    ]
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        **more,
    }
    if http2:
        options = typed(HTTP_OPTIONS, explicit_http_config={"http2_protocol_options": {}})
        cluster["typed_extension_protocol_options"] = {HTTP_OPTIONS: options}
    return cluster


def _shortened(log: str) -> str:
    """Beginning and end of a log: Envoy writes what it refuses in between."""
    return log if len(log) < 4000 else f"{log[:2000]}\n…\n{log[-2000:]}"


class Envoy:
    """One Envoy process; a context manager. `port(name)` is the port of a listener."""

    def __init__(self, listeners: Sequence[Any], clusters: Sequence[Any]) -> None:
        self._static = {"listeners": list(listeners), "clusters": list(clusters)}
        self._process: subprocess.Popen[bytes] | None = None
        self._dir = tempfile.TemporaryDirectory(prefix="envoy-")
        self._ports: dict[str, int] = {}
        self.admin = ""

    def __enter__(self) -> Self:
        folder = Path(self._dir.name)
        config = {
            "static_resources": self._static,
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        }
        (folder / "envoy.json").write_text(json.dumps(config))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [require_envoy(), "-c", str(folder / "envoy.json"), "--disable-hot-restart",
                 "--concurrency", "1", "-l", "warning",
                 "--admin-address-path", str(folder / "admin")],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait(folder)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _wait(self, folder: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"Envoy refused: {_shortened((folder / 'log').read_text())}")
            try:
                self.admin = (folder / "admin").read_text().strip()
                if self._ask("/ready").strip() == b"LIVE":
                    break
            except OSError:
                pass
            time.sleep(0.02)
        listeners = json.loads(self._ask("/listeners?format=json"))
        for status in listeners["listener_statuses"]:
            address = status["local_address"]["socket_address"]
            self._ports[status["name"]] = address["port_value"]

    def _ask(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as answer:
            body: bytes = answer.read()
        return body

    def port(self, name: str = "main") -> int:
        return self._ports[name]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._dir.cleanup()
