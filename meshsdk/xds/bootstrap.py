"""Where the control plane is and who this process is to it.

The first of these that is there says where the control plane is:

1. the argument `Mesh(bootstrap=...)` or `Mesh(control_plane=...)`
2. `GRPC_XDS_BOOTSTRAP` (path of a file), then `GRPC_XDS_BOOTSTRAP_CONFIG` (the JSON itself),
   in the format of gRPC (gRFC A27, A65, A97); fields and features not known here are ignored
3. `MESHSDK_CONTROL_PLANE` (`host:port`)
4. 127.0.0.1:15010, where a mesh is used if there is one (`Bootstrap.explicit` is False)

Who this process is: argument, then `MESHSDK_*`, then the bootstrap's node, then the variables that
Istio injects, then a default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshsdk.errors import ConfigurationError
from meshsdk.model import Locality

DEFAULT_SERVER = "127.0.0.1:15010"
_DEFAULT_PORT = 15010


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files of channel credentials of type `tls` (gRFC A65); empty: not given."""

    ca_certificate_file: str = ""
    certificate_file: str = ""
    private_key_file: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """One control plane.

    Attributes:
        uri: gRPC target (`host:port`, `dns:///...`, `unix:///...`).
        tls: None for a plain-text connection.
        token_file: file whose content is sent as bearer token (gRFC A97), empty for none.
    """

    uri: str
    tls: TlsFiles | None = None
    token_file: str = ""
    features: frozenset[str] = frozenset()

    @property
    def ignore_resource_deletion(self) -> bool:
        """gRFC A53: keep using a Listener or Cluster that the server stops sending."""
        return "ignore_resource_deletion" in self.features


@dataclass(frozen=True, slots=True)
class Node:
    """The node as the bootstrap has it; empty where it says nothing."""

    id: str = ""
    cluster: str = ""
    locality: Locality = field(default_factory=Locality)
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """
    Attributes:
        source: what said so, for messages: a path, a variable or `Mesh(bootstrap=...)`.
        explicit: False when nothing was configured and the default address is tried.
        server_listener_template: name of a server's listener, with `%s` for its `ip:port`.
    """

    server: Server
    source: str
    explicit: bool = True
    node: Node = Node()
    server_listener_template: str = ""


def find(
    argument: Mapping[str, Any] | str | None,
    control_plane: str | None,
    environ: Mapping[str, str],
) -> Bootstrap:
    """The bootstrap of this process.

    Args:
        argument: a bootstrap as a mapping, as JSON text, or the path of a file with it.
        control_plane: `host:port` given in code.

    Raises:
        ConfigurationError: names the source and the field, and says what would be right.
    """
    if argument is not None:
        return _from_argument(argument)
    if control_plane is not None:
        return _plain(control_plane, "Mesh(control_plane=...)")
    path = environ.get("GRPC_XDS_BOOTSTRAP", "")
    if path:
        return _from_file(path, f"{path} (named by GRPC_XDS_BOOTSTRAP)")
    text = environ.get("GRPC_XDS_BOOTSTRAP_CONFIG", "")
    if text:
        return _from_text(text, "GRPC_XDS_BOOTSTRAP_CONFIG")
    address = environ.get("MESHSDK_CONTROL_PLANE", "")
    if address:
        return _plain(address, "MESHSDK_CONTROL_PLANE")
    return Bootstrap(Server(DEFAULT_SERVER), f"the default, {DEFAULT_SERVER}", explicit=False)


def _from_argument(argument: Mapping[str, Any] | str) -> Bootstrap:
    if not isinstance(argument, str):
        return parse(argument, "Mesh(bootstrap=...)")
    if argument.lstrip().startswith("{"):
        return _from_text(argument, "Mesh(bootstrap=...)")
    return _from_file(argument, f"{argument} (given as Mesh(bootstrap=...))")


def _from_file(path: str, source: str) -> Bootstrap:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"bootstrap {source} cannot be read: {reason}") from error
    return _from_text(text, source)


def _from_text(text: str, source: str) -> Bootstrap:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"bootstrap {source} is not JSON: {error}") from error
    return parse(value, source)


def _plain(address: str, source: str) -> Bootstrap:
    return Bootstrap(Server(_checked_uri(address, source, _DEFAULT_PORT)), source)


# --- the JSON format of gRPC -----------------------------------------------------------------


class _Reader:
    """One JSON object with the path that led to it, so that each error names its field."""

    def __init__(self, value: object, source: str, path: str = "") -> None:
        self.source = source
        self.path = path
        if not isinstance(value, Mapping):
            raise self.error("", f"must be an object, is {_kind(value)}")
        self._value = value

    def error(self, name: str, problem: str) -> ConfigurationError:
        where = f"{self.path}.{name}".strip(".") or "the document"
        return ConfigurationError(f"bootstrap {self.source}: {where}: {problem}")

    def text(self, name: str, default: str = "") -> str:
        value = self._value.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, is {_kind(value)}")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._value.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(name, f"must be an object, is {_kind(value)}")
        return value

    def object(self, name: str) -> _Reader:
        return _Reader(self.mapping(name), self.source, f"{self.path}.{name}".strip("."))

    def sequence(self, name: str) -> Sequence[Any]:
        value = self._value.get(name)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)):
            raise self.error(name, f"must be a list, is {_kind(value)}")
        return value

    def objects(self, name: str) -> list[_Reader]:
        base = f"{self.path}.{name}".strip(".")
        items = enumerate(self.sequence(name))
        return [_Reader(item, self.source, f"{base}[{index}]") for index, item in items]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def parse(value: object, source: str) -> Bootstrap:
    """A bootstrap from its JSON value.

    Source: gRFC A27 (servers, node), A36 (server template), A65 (tls), A97 (call credentials).

    Raises:
        ConfigurationError: names `source` and the field.
    """
    top = _Reader(value, source)
    servers = top.objects("xds_servers")
    if not servers:
        raise top.error(
            "xds_servers",
            'names no server; give [{"server_uri": "host:port", '
            '"channel_creds": [{"type": "insecure"}]}]',
        )
    top.mapping("certificate_providers")
    top.mapping("authorities")
    template = top.text("server_listener_resource_name_template")
    return Bootstrap(
        server=_server(servers[0]),
        source=source,
        node=_node(top.object("node")),
        server_listener_template=template,
    )


def _server(reader: _Reader) -> Server:
    uri = reader.text("server_uri")
    if not uri:
        raise reader.error("server_uri", "is missing; give host:port")
    token_file = ""
    for creds in reader.objects("call_creds"):
        if creds.text("type") == "jwt_token_file":
            token_file = creds.object("config").text("jwt_token_file")
            if not token_file:
                raise creds.error("config.jwt_token_file", "is missing; give the path of a file")
            break
    features = frozenset(item for item in reader.sequence("server_features") if type(item) is str)
    return Server(
        uri=_checked_uri(uri, f"bootstrap {reader.source}: {reader.path}.server_uri"),
        tls=_channel_credentials(reader),
        token_file=token_file,
        features=features,
    )


def _channel_credentials(reader: _Reader) -> TlsFiles | None:
    """The first type that is known here wins."""
    offered = reader.objects("channel_creds")
    for creds in offered:
        kind = creds.text("type")
        if not kind:
            raise creds.error("type", "is missing; give insecure or tls")
        if kind == "insecure":
            return None
        if kind == "tls":
            return tls_files(creds.mapping("config"), reader.source, f"{creds.path}.config")
    kinds = ", ".join(creds.text("type") for creds in offered) or "none"
    raise reader.error("channel_creds", f"offers {kinds}; one must be of type insecure or tls")


def tls_files(config: Mapping[str, Any], source: str, path: str) -> TlsFiles:
    """The files of `tls` channel credentials. Source: gRFC A65."""
    reader = _Reader(config, source, path)
    files = TlsFiles(
        ca_certificate_file=reader.text("ca_certificate_file"),
        certificate_file=reader.text("certificate_file"),
        private_key_file=reader.text("private_key_file"),
    )
    if bool(files.certificate_file) != bool(files.private_key_file):
        raise reader.error(
            "private_key_file" if files.certificate_file else "certificate_file",
            "is missing; certificate_file and private_key_file belong together",
        )
    return files


def _node(reader: _Reader) -> Node:
    locality = reader.object("locality")
    metadata = dict(reader.mapping("metadata"))
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise reader.error("metadata", f"must be JSON: {error}") from error
    return Node(
        id=reader.text("id"),
        cluster=reader.text("cluster"),
        locality=Locality(
            locality.text("region"), locality.text("zone"), locality.text("sub_zone")
        ),
        metadata=metadata,
    )


_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+)(?::(\d+))?", re.ASCII)
_SCHEME = re.compile(r"(unix|unix-abstract|dns|ipv4|ipv6|passthrough):\S+")


def _checked_uri(uri: str, source: str, default_port: int | None = None) -> str:
    """A gRPC target that can be dialled at all; a bare host gets `default_port`."""
    if _SCHEME.fullmatch(uri):
        return uri
    match = _HOST_PORT.fullmatch(uri)
    if match is None:
        raise ConfigurationError(
            f"{source} is {uri!r}; give host:port without a scheme, or unix:///path"
        )
    if match[2] is None:
        return f"{uri}:{default_port}" if default_port else uri
    if not 0 < int(match[2]) < 65536:
        raise ConfigurationError(f"{source} is {uri!r}; give host:port, port from 1 to 65535")
    return uri
