"""`meshctl proxy-status`, `apply`, `get`, `delete`: against a running control plane."""

from __future__ import annotations

import json
import urllib.parse
from typing import Annotated, Any

import typer
import yaml

from controlplane.cli import files
from controlplane.cli.output import Failure, Format, complain, data, say, table
from controlplane.cli.remote import DEFAULT_SERVER, Changes, Items, Node, ask
from controlplane.model.enforcement import KUBERNETES
from controlplane.model.resource import Finding, Level, Origin
from controlplane.model.schema import kind_schemas, suggest

TYPES = ("CDS", "LDS", "EDS", "RDS")

Server = Annotated[
    str,
    typer.Option(
        "--server", envvar="MESHCTL_SERVER", help="Admin address of the control plane.",
        metavar="URL",
    ),
]  # fmt: skip
Namespace = Annotated[
    str, typer.Option("-n", "--namespace", help="Only this namespace.", show_default=False)
]
Output = Annotated[Format, typer.Option("-o", "--output", help="Form of the answer.")]


def register(app: typer.Typer) -> None:
    app.command("proxy-status", help=_STATUS)(proxy_status)
    app.command("ps", help="Alias of proxy-status.", hidden=True)(proxy_status)
    app.command("apply", help=_APPLY)(apply)
    app.command("get", help=_GET)(get)
    app.command("delete", help=_DELETE)(delete)


# --- proxy-status ----------------------------------------------------------------------------

_STATUS = """\
Show every connected process: is it in step with the configuration?

SYNCED: acknowledged. STALE: sent, not answered yet. NACKED: refused, the reason is below the
table. NOT SENT: nothing was asked for or there is nothing.

[bold]Examples[/]

  meshctl proxy-status

  meshctl ps reviews-v2.default

  meshctl ps -o json
"""


def proxy_status(
    name: Annotated[
        str, typer.Argument(help="Only nodes with this name, NAME[.NAMESPACE].", show_default=False)
    ] = "",
    namespace: Namespace = "",
    server: Server = DEFAULT_SERVER,
    output: Output = Format.SHORT,
) -> None:
    nodes = [n for n in ask(server, "/debug/syncz", list[Node]) if _is_meant(n, name, namespace)]
    if name and not nodes:
        raise Failure(f"no connected node is named {name}; meshctl proxy-status lists them")
    if output is not Format.SHORT:
        data(nodes, output)
        return
    if not nodes:
        say("No process is connected.")
        return
    rows = [
        (
            f"{node['name']}.{node['namespace']}",
            *(node["types"].get(kind, {}).get("status", "NOT SENT") for kind in TYPES),
            node["user_agent"] or "-",
            node["version"] or "-",
        )
        for node in nodes
    ]
    table(("NAME", *TYPES, "CLIENT", "VERSION"), rows)
    for line in _remarks(nodes):
        say(line)


def _is_meant(node: dict[str, Any], name: str, namespace: str) -> bool:
    if namespace and node["namespace"] != namespace:
        return False
    return name in ("", node["node"], node["name"], f"{node['name']}.{node['namespace']}")


def _remarks(nodes: list[dict[str, Any]]) -> list[str]:
    found = []
    for node in nodes:
        who = f"{node['name']}.{node['namespace']}"
        for kind, state in node["types"].items():
            if state.get("error"):
                found.append(f"{who}: {kind} refused: {state['error']}")
        found += [f"{who}: {note}" for note in node["notes"]]
    return ["", *found] if found else []


# --- apply, get, delete ----------------------------------------------------------------------

_APPLY = """\
Write resources into the configuration of a running control plane.

Each becomes one file in its first --config directory: files stay the only truth.

[bold]Examples[/]

  meshctl apply -f reviews-canary.yaml

  cat rules.yaml | meshctl apply -f -
"""


def apply(
    filename: files.Files,
    server: Server = DEFAULT_SERVER,
    output: Output = Format.SHORT,
) -> None:
    answer = ask(server, "/config/apply", Changes, _joined(filename))
    _print_results(answer, output)


def _joined(filename: list[str]) -> str:
    """All documents as one text. Checked here first, so that errors name file and line."""
    texts = []
    for _, parsed in files.checked(filename):
        texts += [json.dumps(r.document, default=str) for r in parsed.resources]
    if not texts:
        raise Failure(f"{', '.join(filename)}: holds no resource", 65)
    return "\n---\n".join(texts)


def _print_results(answer: Any, output: Format) -> None:
    if output is not Format.SHORT:
        data(answer, output)
    else:
        for result in answer["results"]:
            say(f"{result['resource']} {result['action']}")
    for finding in answer.get("findings", ()):
        complain(_finding_line(finding))


def _finding_line(finding: dict[str, Any]) -> str:
    """As `str` of a finding, of what the control plane tells of one."""
    origin = Origin(finding.get("file", ""), finding.get("line", 0))
    level = Level[finding["level"].upper()]
    path = finding.get("path", "")
    return str(
        Finding(level, finding["code"], finding["resource"], finding["message"], path, origin)
    )


_GET = """\
Read the configuration of a running control plane.

[bold]Examples[/]

  meshctl get virtualservice

  meshctl get vs reviews -n default -o yaml

  meshctl get -f reviews-canary.yaml
"""

_SHORT = {
    "vs": "virtualservice", "dr": "destinationrule", "se": "serviceentry", "we": "workloadentry",
    "wg": "workloadgroup", "gw": "gateway", "pa": "peerauthentication", "svc": "service",
    "ap": "authorizationpolicy", "ra": "requestauthentication", "cm": "configmap",
    "all": "",
}  # fmt: skip
_OTHER_KINDS = {"ConfigMap", "IstioOperator"}


def get(
    kind: Annotated[str, typer.Argument(help="Kind, e.g. virtualservice or vs.")] = "",
    name: Annotated[str, typer.Argument(help="Only the one with this name.")] = "",
    filename: Annotated[
        list[str] | None,
        typer.Option("-f", "--filename", help="The resources that a file names."),
    ] = None,
    namespace: Namespace = "",
    server: Server = DEFAULT_SERVER,
    output: Output = Format.SHORT,
) -> None:
    asked = [(_SHORT.get(kind.lower(), kind), namespace, name)]
    if filename:
        asked = [
            (r.kind, r.namespace, r.name)
            for _, parsed in files.read(filename)
            for r in parsed.resources
        ]
    items = [item for query in asked for item in _select(server, *query)]
    if kind and not items:
        _check_kind(kind)
    if name and not items:
        raise Failure(f"{kind} {name}: no such resource")
    if output is Format.SHORT:
        table(("KIND", "NAMESPACE", "NAME"), map(_identity, items))
    elif output is Format.YAML:
        say(yaml.safe_dump_all(items, sort_keys=False).rstrip())
    else:
        data(items, output)


def _check_kind(kind: str) -> None:
    """Nothing was found: is that because there is no such kind?"""
    asked = _SHORT.get(kind.lower(), kind).lower()
    known = {schema.kind for schema in kind_schemas().values()} | KUBERNETES | _OTHER_KINDS
    plurals = {schema.plural for schema in kind_schemas().values()}
    singular = {name.lower() for name in known}
    if not asked or asked in plurals or {asked, asked.removesuffix("s")} & singular:
        return
    raise Failure(f"{kind}: no such kind{suggest(kind, known)}", 64)


def _select(server: str, kind: str, namespace: str, name: str) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"kind": kind, "namespace": namespace, "name": name})
    found: list[dict[str, Any]] = ask(server, f"/config?{query}", Items)["items"]
    return found


def _identity(item: dict[str, Any]) -> tuple[str, str, str]:
    metadata = item.get("metadata") or {}
    return item["kind"], metadata.get("namespace", "default"), metadata.get("name", "")


_DELETE = """\
Delete resources from the configuration of a running control plane.

[bold]Examples[/]

  meshctl delete -f reviews-canary.yaml

  meshctl delete virtualservice reviews -n default
"""


def delete(
    kind: Annotated[str, typer.Argument(help="Kind, e.g. virtualservice or vs.")] = "",
    name: Annotated[str, typer.Argument(help="Name of the resource.")] = "",
    filename: Annotated[
        list[str] | None,
        typer.Option("-f", "--filename", help="The resources that a file names."),
    ] = None,
    namespace: Namespace = "",
    server: Server = DEFAULT_SERVER,
    output: Output = Format.SHORT,
) -> None:
    if filename:
        answer = ask(server, "/config/delete", Changes, _joined(filename))
    elif kind and name:
        path = "/".join(
            urllib.parse.quote(part, safe="")
            for part in (_SHORT.get(kind.lower(), kind), namespace or "default", name)
        )
        answer = ask(server, f"/config/{path}", Changes, method="DELETE")
    else:
        raise Failure("say what to delete: -f FILE, or KIND and NAME", 64)
    _print_results(answer, output)
