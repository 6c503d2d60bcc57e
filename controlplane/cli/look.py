"""`meshctl translate` and `route`: what a node would get, and where a request would go."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from google.protobuf import json_format

from controlplane.cli import files
from controlplane.cli.explain import explain
from controlplane.cli.output import Failure, Format, data, say, table
from controlplane.translate import resources as xds
from controlplane.translate.node import SDK_USER_AGENT, Node
from controlplane.translate.relevance import relevant
from controlplane.world import World
from meshsdk.balancing import ClusterPool
from meshsdk.errors import InvalidResource
from meshsdk.model import Cluster, ListenerView
from meshsdk.routing import Request
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.naming import ByName

DEFAULT_NODE = "sidecar~127.0.0.1~meshctl.default~default.svc.cluster.local"
_TYPES = {"listeners": xds.LDS, "routes": xds.RDS, "clusters": xds.CDS, "endpoints": xds.EDS}
_NAMES = {
    **{name: name for name in (*_TYPES, "secrets")},
    "lds": "listeners", "rds": "routes", "cds": "clusters", "eds": "endpoints", "sds": "secrets",
    "listener": "listeners", "route": "routes", "cluster": "clusters", "endpoint": "endpoints",
}  # fmt: skip

NodeId = Annotated[
    str,
    typer.Option("--node", help="Node id: sidecar~IP~NAME.NAMESPACE~NAMESPACE.svc.cluster.local"),
]
Metadata = Annotated[
    str, typer.Option("--metadata", help='Node metadata, e.g. \'{"LABELS": {"app": "reviews"}}\'.')
]


def register(app: typer.Typer) -> None:
    app.command("translate", help=_TRANSLATE)(translate)
    app.command("route", help=_ROUTE)(route)


_TRANSLATE = """\
Show the xDS that a node would get from this configuration.

[bold]Examples[/]

  meshctl translate -f config/ --node sidecar~10.0.0.1~a.default~default.svc.cluster.local

  meshctl translate -f config/ --type routes -o yaml

  meshctl translate -f config/ --user-agent grpc --type clusters
"""


def translate(
    filename: files.Files,
    more: files.MoreFiles = [],  # noqa: B006 - typer copies it
    node: NodeId = DEFAULT_NODE,
    metadata: Metadata = "{}",
    kind: Annotated[
        str, typer.Option("--type", help="Only listeners, routes, clusters, endpoints or secrets.")
    ] = "",
    user_agent: Annotated[
        str,
        typer.Option(help="user_agent_name of the node: meshsdk, or grpc for gRPC's own client."),
    ] = SDK_USER_AGENT,
    output: Annotated[Format, typer.Option("-o", "--output", help="Form of the answer.")] = (
        Format.JSON
    ),
) -> None:
    wanted = _kind(kind)
    world = files.load([*filename, *more])
    found = xds.everything(world, make_node(node, metadata, user_agent))
    result = {
        name: [json_format.MessageToDict(item) for item in found[url]]
        for name, url in _TYPES.items()
    } | {"secrets": []}  # fmt: skip
    if wanted:
        result = {wanted: result[wanted]}
    if output is not Format.SHORT:
        data(result, output)
        return
    rows = [(name, item.get("name") or item.get("clusterName", "")) for name, items in
            result.items() for item in items]  # fmt: skip
    table(("TYPE", "NAME"), rows)


def _kind(text: str) -> str:
    name = _NAMES.get(text.lower(), "") if text else ""
    if text and not name:
        raise Failure(f"--type {text}: not a type; one of {', '.join([*_TYPES, 'secrets'])}", 64)
    return name


def make_node(node_id: str, metadata: str, user_agent: str = SDK_USER_AGENT) -> Node:
    """The node of the command line.

    Raises:
        Failure: the metadata is not a JSON object.
    """
    try:
        given = json.loads(metadata)
    except json.JSONDecodeError as error:
        raise Failure(f"--metadata: not JSON: {error}", 64) from None
    if not isinstance(given, dict):
        raise Failure('--metadata: must be a JSON object such as {"LABELS": {"app": "a"}}', 64)
    return Node.make(node_id, given, user_agent=user_agent)


_REMARKS = {"retries": " (not done by the SDK yet: a request is sent once)"}
_ROUTE = """\
Say where a request would go and why: every rule that was looked at.

[bold]Examples[/]

  meshctl route -f config/ http://reviews:9080/reviews/1 -H end-user:jason

  meshctl route -f config/ http://ratings:9081/ratings.Ratings/Get --grpc

  meshctl route -f config/ http://details:9080/details/0 -X POST -o json
"""


def route(
    url: Annotated[
        list[str],
        typer.Argument(
            help="http://HOST[:PORT]/PATH[?QUERY]; files before it belong to -f.", metavar="URL"
        ),
    ],
    filename: files.Files,
    node: NodeId = DEFAULT_NODE,
    method: Annotated[str, typer.Option("-X", "--request", help="HTTP method.")] = "GET",
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", help="NAME:VALUE, may be repeated.")
    ] = None,
    grpc: Annotated[bool, typer.Option("--grpc", help="The request is a gRPC call.")] = False,
    metadata: Metadata = "{}",
    output: Annotated[Format, typer.Option("-o", "--output", help="Form of the answer.")] = (
        Format.SHORT
    ),
) -> None:
    *more, asked = url
    request, port = _request(asked, "POST" if grpc else method, header or [], grpc)
    world = files.load([*filename, *more])
    caller = make_node(node, metadata)
    name = ByName(caller.namespace, "cluster.local").listener_name(request.authority, port)
    refused: dict[str, str] = {}
    answer = explain(view_of(world, caller, name, refused), request)
    for cluster in answer["weights"].keys() & refused.keys():
        answer["why"].append(f"cluster {cluster}: the SDK refuses it: {refused[cluster]}")
    answer["why"] += _unserved(world, caller, answer["weights"])
    answer["why"] = [*_left_out(world, caller, name), *answer["why"]]
    if output is not Format.SHORT:
        data(answer, output)
        return
    for line in answer.pop("why"):
        say(line)
    for key, value in answer.items():
        if value not in (None, {}, "none"):
            shown = value if isinstance(value, str) else json.dumps(value)
            say(f"{key}: {shown}{_REMARKS.get(key, '')}")


def _unserved(world: World, caller: Node, clusters: Iterable[str]) -> list[str]:
    """What is asked for on the way to these clusters and not done."""
    variant = caller.variant(relevant(world))
    made = {name: xds.make(world, variant, xds.CDS, name) for name in clusters}
    return [f"cluster {name}: {note}" for name, one in made.items() for note in one.notes]


def _left_out(world: World, caller: Node, name: str) -> list[str]:
    """Rules for this host that these callers never get, whatever they ask for."""
    variant = caller.variant(relevant(world))
    try:
        listener = _decoded(xds.LDS, xds.listener(world, caller, name))
    except InvalidResource:
        return []  # said already
    config = listener.route_config_name if listener is not None else ""
    return list(xds.make(world, variant, xds.RDS, config).left_out) if config else []


def _request(url: str, method: str, headers: list[str], grpc: bool) -> tuple[Request, int]:
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
    except ValueError as error:
        raise Failure(f"{url}: {error}: write an IPv6 address as http://[::1]:9080/", 64) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failure(f"{url}: not a URL such as http://reviews:9080/reviews/1", 64)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Failure(f"{url}: the port must be a number from 1 to 65535", 64) from None
    pairs = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise Failure(f"-H {header}: must be NAME:VALUE", 64)
        pairs.append((name.strip().lower(), value.strip()))
    authority = dict(pairs).get("host") or parts.netloc.rpartition("@")[2]
    path = parts.path or "/"
    request = Request(
        method.upper(),
        f"{path}?{parts.query}" if parts.query else path,
        authority=authority,
        scheme=parts.scheme,
        headers=[pair for pair in pairs if pair[0] != "host"],
        grpc=grpc,
    )
    return request, port


def view_of(world: World, node: Node, name: str, refused: dict[str, str]) -> ListenerView:
    """The listener as an SDK process of this node would see it.

    Args:
        refused: is given the clusters that such a process does not accept, and why.
    """
    try:
        return _view(world, node, name, refused)
    except InvalidResource as error:
        return ListenerView(name, absent=f"the SDK refuses what it would get: {error}")


def _view(world: World, node: Node, name: str, refused: dict[str, str]) -> ListenerView:
    listener = _decoded(xds.LDS, xds.listener(world, node, name))
    if listener is None:
        return ListenerView(name, absent=f"the control plane has nothing for {name}")
    config = listener.route_config
    if config is None:
        config = _decoded(xds.RDS, xds.route(world, node, listener.route_config_name))
    pool = ClusterPool(lambda: 0.0)
    clusters: dict[str, Any] = {}
    for target in config.cluster_names if config else ():
        try:
            cluster: Cluster | None = _decoded(xds.CDS, xds.cluster(world, node, target))
        except InvalidResource as error:
            refused[target] = f"{error.field}: {error.problem}"
            continue
        if cluster is not None:
            load = xds.endpoints(world, node, cluster.eds_name or cluster.name)
            clusters[target] = pool.view(cluster, _decoded(xds.EDS, load))
    return ListenerView(
        name,
        config,
        clusters,
        listener.fault,
        listener.max_stream_duration,
        filters=listener.filters,
    )


def _decoded(type_url: str, message: Any) -> Any:
    return None if message is None else DECODERS[type_url].decode(message, [])
