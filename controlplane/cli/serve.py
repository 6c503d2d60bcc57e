"""`meshctl serve`: the control plane."""

from __future__ import annotations

import asyncio
import enum
from pathlib import Path
from typing import Annotated

import typer

from controlplane import logs, ports, registration, server
from controlplane.cli.output import Failure
from controlplane.model.validation.checks import fqdn_problem


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
        list[Path],
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
    if not config:
        raise Failure("--config DIR is needed: the directory with the mesh's YAML", 64)
    for path in config:
        if not path.exists():
            raise Failure(f"--config {path}: no such file or directory", 64)
    if (problem := fqdn_problem(domain)) is not None:
        raise Failure(f"--domain {domain}: {problem}", 64)
    logs.configure(log_format.value, log_level)
    options = server.Options(
        config=config,
        host=address,
        xds_port=xds_port,
        http_port=http_port,
        overrides=set_,
        allow_unenforced=allow_unenforced,
        domain=domain,
        grace=grace,
        state_dir=state_dir,
    )
    try:
        asyncio.run(server.serve(options))
    except (server.Refused, ports.PortTaken) as refused:
        raise Failure(str(refused)) from None
