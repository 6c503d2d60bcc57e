"""`meshctl serve`: the control plane."""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import math
import os
from pathlib import Path
from typing import Annotated

import typer

from controlplane import logs, registration, server
from controlplane.cli.output import Failure
from controlplane.model.validation.checks import fqdn_problem
from controlplane.refusal import Refused


class LogFormat(enum.StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


def register(app: typer.Typer) -> None:
    app.command("serve", help=_HELP)(serve)


_HELP = """\
Run the control plane: Istio YAML in, xDS out.

Reads every .yaml, .yml and .json file below the directories, follows their changes, and says at
once when a rule matches nothing. A file that breaks keeps its last good version.

[bold]Examples[/]

  meshctl serve --config config/

  meshctl serve --config config/ --config team-b/ --set outboundTrafficPolicy.mode=REGISTRY_ONLY

  meshctl serve --config config/ --xds-port 16010 --http-port 16014 --log-format json
"""


def serve(
    config: Annotated[
        list[str],
        typer.Option(
            "--config", help="Directory or file with YAML; may be repeated. `apply` writes into "
            "the first.", show_default=False,
        ),
    ] = [],  # noqa: B006 - typer copies it
    set_: Annotated[
        list[str],
        typer.Option("--set", help="One value of the mesh config, KEY=VALUE; may be repeated.",
                     metavar="KEY=VALUE"),
    ] = [],  # noqa: B006
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    xds_port: Annotated[
        int, typer.Option(help="Port of xDS; 0 takes a free one.", min=0, max=65535)
    ] = server.XDS_PORT,
    http_port: Annotated[
        int, typer.Option(help="Port of status, metrics and configuration.", min=0, max=65535)
    ] = server.HTTP_PORT,
    allow_unenforced: Annotated[
        bool,
        typer.Option("--allow-unenforced",
                     help="Start although security policies exist that nobody enforces."),
    ] = False,
    grace: Annotated[
        float,
        typer.Option(help="Seconds that a registered workload stays after it vanished.", min=0),
    ] = registration.GRACE,
    domain: Annotated[str, typer.Option(help="DNS domain of the mesh.")] = "cluster.local",
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where registrations outlive a restart.", show_default=False),
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="How log lines look.")] = LogFormat.TEXT,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:  # fmt: skip
    if log_level.lower() not in ("debug", "info", "warning", "error"):
        raise Failure(f"--log-level {log_level}: must be debug, info, warning or error", 64)
    if not math.isfinite(grace):
        raise Failure(f"--grace {grace}: must be a number of seconds", 64)
    if not config:
        raise Failure("--config DIR is needed: the directory with the mesh's YAML", 64)
    if (problem := fqdn_problem(domain)) is not None:
        raise Failure(f"--domain {domain}: {problem}", 64)
    logs.configure(log_format.value, log_level)
    options = server.Options(
        config=[_path(text) for text in config],
        host=_host(address),
        xds_port=xds_port,
        http_port=http_port,
        overrides=set_,
        allow_unenforced=allow_unenforced,
        domain=domain,
        grace=grace,
        state_dir=_state(state_dir) if state_dir else None,
    )
    try:
        asyncio.run(server.serve(options))
    except Refused as refused:
        raise Failure(str(refused), 64 if refused.usage else 1) from None


def _path(text: str) -> Path:
    path = Path(text)
    if not text:
        raise Failure("--config: is empty; name the directory with the mesh's YAML", 64)
    if not path.exists():
        raise Failure(f"--config {path}: no such file or directory", 64)
    if not path.is_dir() and not path.is_file():
        raise Failure(f"--config {path}: is neither a directory nor a file", 64)
    return path


def _state(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Failure(f"--state-dir {path}: cannot be used: {error.strerror}", 64) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise Failure(f"--state-dir {path}: cannot be used: it cannot be written to", 64)
    return path


def _host(text: str) -> str:
    """An address as sockets take it, without brackets."""
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not host:
        raise Failure("--address: is empty; give one of this machine, such as 127.0.0.1", 64)
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            hint = "takes no port: those are --xds-port and --http-port"
            raise Failure(f"--address {text}: {hint}", 64) from None
    return host
