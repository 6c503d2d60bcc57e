"""What the mesh covers in a process and what it does not, and what to do: for people and scripts.

`report()` and `dump()` work inside an application too, on the mesh that it uses; the commands
`python -m meshsdk doctor` and `dump` look at what a process started here and now would get.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from meshsdk.errors import ConfigurationError, MeshError
from meshsdk.formats import CALLER
from meshsdk.model import ListenerView

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh

USAGE = 64

# Distribution → how the mesh covers it; `_UNCOVERED` for those that go out past it.
_COVERED = {
    "grpcio": ("grpc", "mesh.channel / mesh.aio_channel; insecure_channel under `run`"),
    "httpx": ("httpx", "mesh.transport / meshsdk.httpx.Client; every client under `run`"),
    "httpx2": ("httpx2", "mesh.transport; every client under `run`"),
}
_UNCOVERED = {
    "requests": "requests",
    "aiohttp": "aiohttp",
    "urllib3": "urllib3",
    "tornado": "tornado.httpclient",
    "pycurl": "pycurl",
    "http.client": "http.client",
}
_SERVERS = {
    "uvicorn": ("uvicorn", "mesh.asgi(app); by itself under `run`"),
    "gunicorn": ("gunicorn", "mesh.wsgi(app); by itself under `run`"),
    "werkzeug": ("werkzeug", "mesh.wsgi(app); `flask run` by itself under `run`"),
    "hypercorn": ("hypercorn", "mesh.asgi(app); not under `run`"),
    "granian": ("granian", "mesh.asgi(app); not under `run`"),
    "daphne": ("daphne", "mesh.asgi(app); not under `run`"),
    "waitress": ("waitress", "mesh.wsgi(app); not under `run`"),
}


def report(mesh: Mesh | None = None) -> dict[str, Any]:
    """What the mesh does in this process. Connects to nothing, imports no library.

    Args:
        mesh: None for the mesh of the process.

    Returns:
        `ok`, `attached`, `mesh`, `clients`, `servers`, `registered_ports`, `patches` and
        `findings`, each finding with `level` (error, warning, info), `message` and `fix`.
    """
    from meshsdk import attach, serving

    findings: list[dict[str, str]] = []
    result: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "meshsdk": _version("meshsdk"),
        "attached": attach.is_attached(),
        "patches": attach.attached(),
        "mesh": _mesh_state(mesh, findings),
        "clients": _clients(findings),
        "servers": _servers(),
        "registered_ports": serving.registered_ports(),
        "findings": findings,
    }
    for module, problem in attach.attached().items():
        if problem:
            _find(findings, "error", f"{module} could not be attached: {problem}",
                  "use the adapter of meshsdk in code")  # fmt: skip
    result["ok"] = not any(finding["level"] == "error" for finding in findings)
    return result


def _find(findings: list[dict[str, str]], level: str, message: str, fix: str) -> None:
    findings.append({"level": level, "message": message, "fix": fix})


def _mesh_state(mesh: Mesh | None, findings: list[dict[str, str]]) -> dict[str, Any]:
    try:
        if mesh is None:
            from meshsdk.mesh import default_mesh

            mesh = default_mesh()
    except ConfigurationError as error:
        _find(findings, "error", str(error), "correct it; the mesh does not start like this")
        return {"enabled": True, "error": str(error)}
    settings = mesh.settings
    if not settings.enabled:
        _find(findings, "warning", "the mesh is switched off: every call goes out unchanged",
              "unset MESHSDK_ENABLED")  # fmt: skip
        return {"enabled": False}
    bootstrap = settings.bootstrap
    client = mesh._client
    if bootstrap is not None and not bootstrap.explicit:
        _find(findings, "info", f"nothing says where the control plane is; {bootstrap.server.uri} "
              "is tried, and without it every call goes out unchanged",
              "set MESHSDK_CONTROL_PLANE=host:port or GRPC_XDS_BOOTSTRAP")  # fmt: skip
    return {
        "enabled": True,
        "control_plane": settings.server_address,
        "source": bootstrap.source if bootstrap else "",
        "namespace": settings.namespace,
        "node_id": settings.node_id,
        "auto_register_group": settings.auto_register_group,
        "state_dir": settings.state_dir,
        "connection": str(client.status) if client else "not started",
        "error": client.status.error if client else "",
        "bypass": mesh.snapshot.bypass,
        "listeners": len(mesh.snapshot.listeners),
        "stale_since": mesh.snapshot.stale_since,
    }


def _version(distribution: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _clients(findings: list[dict[str, str]]) -> list[dict[str, Any]]:
    from meshsdk import attach

    patched = attach.attached()
    rows = []
    for distribution, (module, how) in _COVERED.items():
        imported = module in sys.modules
        rows.append(
            {"library": distribution, "version": _version(distribution), "imported": imported,
             "covered": True, "attached": patched.get(module) == "", "how": how}
        )  # fmt: skip
    for distribution, module in _UNCOVERED.items():
        standard = distribution == "http.client"
        version = None if standard else _version(distribution)
        imported = module in sys.modules
        if version is None and not (standard and imported):
            continue
        how = "goes out past the mesh"
        rows.append({"library": distribution, "version": version, "imported": imported,
                     "covered": False, "attached": False, "how": how})  # fmt: skip
        if not standard:  # everybody imports it, for its constants already
            state = "imported" if imported else "installed"
            _find(findings, "warning" if imported else "info",
                  f"{distribution} is {state} and not covered: its calls go out past the mesh",
                  "use httpx for calls to services of the mesh")  # fmt: skip
    if "grpc" in sys.modules and attach.is_attached():
        _find(findings, "info", "grpc.secure_channel is left alone: its calls go out past the mesh",
              "use grpc.insecure_channel, or mesh.channel(target, credentials=...)")  # fmt: skip
    return rows


def _servers() -> list[dict[str, Any]]:
    found = [{"library": "grpcio", "version": _version("grpcio"), "imported": "grpc" in sys.modules,
              "how": "mesh.server_interceptor; by itself under `run`"}]  # fmt: skip
    for distribution, (module, how) in _SERVERS.items():
        version = _version(distribution)
        if version is not None:
            imported = module in sys.modules
            found.append(
                {"library": distribution, "version": version, "imported": imported, "how": how}
            )
    return found


# --- dump ------------------------------------------------------------------------------------


def dump(mesh: Mesh | None = None) -> dict[str, Any]:
    """What is loaded: listeners with their routes, clusters and endpoints, as plain values.

    Args:
        mesh: None for the mesh of the process.

    Returns:
        `age` is the seconds since a control plane last confirmed it when it was read from disk,
        and None while it is live; `bypass` is true when every call goes out unchanged.
    """
    if mesh is None:
        from meshsdk.mesh import default_mesh

        mesh = default_mesh()
    snapshot = mesh.snapshot
    since = snapshot.stale_since
    clusters: dict[str, Any] = {}
    for view in snapshot.listeners.values():
        clusters.update(view.clusters)
    return {
        "control_plane": mesh.settings.server_address,
        "node_id": mesh.settings.node_id,
        "bypass": snapshot.bypass,
        "stale_since": since,
        "age": None if since is None else round(time.time() - since, 3),
        "listeners": {name: _listener(view) for name, view in sorted(snapshot.listeners.items())},
        "clusters": {name: _cluster(view) for name, view in sorted(clusters.items())},
        "server_listeners": plain(snapshot.server_listeners),
    }


def _listener(view: ListenerView) -> dict[str, Any]:
    # The caller knows this process's environment, and secrets are in there.
    values: dict[str, Any] = plain(dataclasses.replace(view, clusters={}, caller=CALLER))
    values["clusters"] = sorted(view.clusters)
    return values


def _cluster(view: Any) -> dict[str, Any]:
    values: dict[str, Any] = plain(view.cluster)
    values["endpoints"] = [
        {**plain(state.endpoint), "target": state.target, "active": state.active}
        for state in view.endpoints
    ]
    return values


def plain(value: Any) -> Any:
    """A value of the model as JSON knows it; what is empty or not given is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # What is not compared is derived from the rest.
        named = (f for f in dataclasses.fields(value) if f.init)
        fields = ((f.name, getattr(value, f.name)) for f in named)
        shown = {n: plain(v) for n, v in fields if not n.startswith("_")}
        return {n: v for n, v in shown.items() if v not in (None, "", [], {}, False)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


# --- commands --------------------------------------------------------------------------------


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "What the mesh covers in a process started here, and what it does not."
    parser.epilog = "exit code: 0 all is well, 1 something is wrong"
    parser.add_argument("-o", dest="output", choices=["text", "json"], default="text")
    parser.add_argument(
        "--timeout", type=float, default=3.0, metavar="SECONDS",
        help="how long the control plane may take to answer (3)",
    )  # fmt: skip


def add_dump_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The configuration of this workload as JSON: for the services named, or what is kept in "
        "MESHSDK_STATE_DIR. Inside an application: meshsdk.doctor.dump()."
    )
    parser.add_argument("service", nargs="*", metavar="HOST:PORT", help="such as reviews:9080")
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS",
        help="how long the configuration may take to arrive (5)",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """`python -m meshsdk doctor`: 0 all is well, 1 something is wrong."""
    from meshsdk.mesh import Mesh

    _load_libraries()
    try:
        mesh: Mesh | None = Mesh()
    except ConfigurationError:
        mesh = None  # the report says it
    problem = _reach(mesh, args.timeout) if mesh is not None and mesh.settings.enabled else ""
    found = report(mesh)
    if mesh is not None:
        if problem:
            explicit = mesh.settings.bootstrap is not None and mesh.settings.bootstrap.explicit
            level = "error" if explicit or mesh.settings.required else "warning"
            _find(found["findings"], level, problem, "start the control plane (meshctl serve)")
        found["mesh"]["reachable"] = not problem and mesh.settings.enabled
        mesh.close()
    found["ok"] = not any(finding["level"] == "error" for finding in found["findings"])
    print(json.dumps(found, indent=2) if args.output == "json" else _text(found))
    return 0 if found["ok"] else 1


def _load_libraries() -> None:
    """Under `run` the patches happen at import: import what they are for, to see them."""
    from meshsdk import attach

    for module in ("grpc", "httpx", "httpx2"):
        if attach.is_attached() and importlib.util.find_spec(module) is not None:
            importlib.import_module(module)


def _reach(mesh: Mesh, timeout: float) -> str:
    try:
        mesh.wait_ready(timeout)
    except MeshError as error:
        return str(error)
    client = mesh._client
    if client is not None and not client.status.connected:
        return f"control plane {mesh.settings.server_address} did not answer: " + (
            client.status.error or "no connection"
        )
    return ""


_MARK = {"error": "✗", "warning": "!", "info": "·"}


def _text(found: Mapping[str, Any]) -> str:
    mesh = found["mesh"]
    lines = [f"meshsdk {found['meshsdk']} on Python {found['python']}", ""]
    if mesh.get("control_plane"):
        state = "reachable" if mesh.get("reachable") else "not reachable"
        lines += [
            f"control plane  {mesh['control_plane']} ({state}; from {mesh['source']})",
            f"node           {mesh['node_id']}",
            f"WorkloadGroup  {mesh['auto_register_group'] or 'none: servers are not registered'}",
        ]
    attached = "attached" if found["attached"] else "not attached: use the adapters, or `run`"
    lines += [f"this process   {attached}", "", "clients"]
    for row in found["clients"]:
        mark = "✓" if row["covered"] else "✗"
        lines.append(f"  {mark} {row['library']:12} {row['version'] or '-':12} {row['how']}")
    lines += ["", "servers"]
    lines += [
        f"  ✓ {r['library']:12} {r['version'] or '-':12} {r['how']}" for r in found["servers"]
    ]
    if found["findings"]:
        lines += ["", "findings"]
        for finding in found["findings"]:
            lines += [
                f"  {_MARK[finding['level']]} {finding['message']}",
                f"    → {finding['fix']}",
            ]
    return "\n".join(lines)


def dump_main(args: argparse.Namespace) -> int:
    """`python -m meshsdk dump`: 0 when the configuration of every service arrived."""
    from meshsdk.mesh import Mesh

    try:
        mesh = Mesh()
    except ConfigurationError as error:
        print(f"meshsdk dump: {error}", file=sys.stderr)
        return USAGE
    code = 0
    with mesh:
        try:
            if not args.service:
                mesh.wait_ready(args.timeout)
            for service in args.service:
                mesh.wait_for(mesh.listener_name(service, 80), args.timeout)
        except MeshError as error:
            print(f"meshsdk dump: {error}", file=sys.stderr)
            code = 1
        json.dump(dump(mesh), sys.stdout, indent=2)
        sys.stdout.write(os.linesep)
    return code
