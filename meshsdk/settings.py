"""What a mesh was told: arguments of `Mesh(...)` over `MESHSDK_*` variables over defaults.

Each variable has the name of the argument in capitals. Where both are silent, the bootstrap's node
and then the variables that Istio injects (`POD_NAME`, `POD_NAMESPACE`, `INSTANCE_IP`,
`SERVICE_ACCOUNT`) say who this process is.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meshsdk.errors import ConfigurationError
from meshsdk.model import Locality
from meshsdk.xds.bootstrap import Bootstrap, find

_log = logging.getLogger("meshsdk.settings")

VARIABLES = {
    "enabled": "MESHSDK_ENABLED",
    "required": "MESHSDK_REQUIRED",
    "control_plane": "MESHSDK_CONTROL_PLANE",
    "namespace": "MESHSDK_NAMESPACE",
    "node_id": "MESHSDK_NODE_ID",
    "labels": "MESHSDK_LABELS",
    "service_account": "MESHSDK_SERVICE_ACCOUNT",
    "cluster": "MESHSDK_CLUSTER",
    "locality": "MESHSDK_LOCALITY",
    "domain": "MESHSDK_DOMAIN",
    "state_dir": "MESHSDK_STATE_DIR",
    "auto_register_group": "MESHSDK_AUTO_REGISTER_GROUP",
    "workload_name": "MESHSDK_WORKLOAD_NAME",
    "address": "MESHSDK_ADDRESS",
    "ready_timeout": "MESHSDK_READY_TIMEOUT",
    "reconnect_max": "MESHSDK_RECONNECT_MAX",
    "max_listeners": "MESHSDK_MAX_LISTENERS",
}
"""Argument of `Mesh` → environment variable."""

_OTHERS = frozenset(
    {
        "MESHSDK_DRAIN",  # meshsdk.serving
        "MESHSDK_PORT",
        "MESHSDK_PORTS",
        "MESHSDK_PROPAGATE",  # meshsdk.propagation
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    Attributes:
        bootstrap: None when the mesh is not enabled.
        address: the IP address of this process, as others reach it.
        state_dir: where the last good configuration is kept; empty for nowhere.
        ready_timeout: seconds that a caller without a limit of its own waits for configuration.
        reconnect_max: upper limit of the reconnect back-off in seconds.
        max_listeners: how many listener names are subscribed to at most.
    """

    enabled: bool = True
    required: bool = False
    bootstrap: Bootstrap | None = None
    namespace: str = "default"
    domain: str = "cluster.local"
    node_id: str = ""
    cluster: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    service_account: str = "default"
    locality: Locality = field(default_factory=Locality)
    address: str = "127.0.0.1"
    auto_register_group: str = ""
    workload_name: str = ""
    state_dir: str = ""
    ready_timeout: float = 20.0
    reconnect_max: float = 5.0
    max_listeners: int = 1000

    @property
    def server_address(self) -> str:
        """Where the control plane is, for messages."""
        return self.bootstrap.server.uri if self.bootstrap else "none"

    def node_metadata(self) -> dict[str, Any]:
        """Node metadata by istiod's conventions, over what the bootstrap's node has."""
        given = dict(self.bootstrap.node.metadata) if self.bootstrap else {}
        given.setdefault("GENERATOR", "grpc")
        given |= {
            "NAMESPACE": self.namespace,
            "SERVICE_ACCOUNT": self.service_account,
            "WORKLOAD_NAME": self.workload_name,
            "INSTANCE_IPS": self.address,
        }
        if self.labels:
            given["LABELS"] = dict(self.labels)
        return given

    def at(self, address: str) -> Settings:
        """The same workload at another IP address: the node id carries the address."""
        parts = self.node_id.split("~")
        if len(parts) == 4:
            parts[1] = address
        return replace(self, address=address, node_id="~".join(parts))


def load(arguments: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of one mesh.

    Args:
        arguments: arguments of `Mesh`; None counts as not given.

    Raises:
        ConfigurationError: names the argument or variable and says what would be right.
    """
    source = _Source(arguments, environ)
    for name, meant in misspelt(environ).items():
        _log.warning("environment variable %s is not known; did you mean %s?", name, meant)
    if not source.flag("enabled", True):
        return Settings(
            enabled=False,
            namespace=source.text("namespace") or environ.get("POD_NAMESPACE") or "default",
            domain=source.text("domain") or "cluster.local",
        )
    bootstrap = find(arguments.get("bootstrap"), arguments.get("control_plane"), environ)
    return _identity(source, bootstrap, environ)


def _identity(source: _Source, bootstrap: Bootstrap, environ: Mapping[str, str]) -> Settings:
    node = bootstrap.node
    parts = node.id.split("~") if node.id.count("~") == 3 else ["", "", "", ""]
    in_metadata = {key: value for key, value in node.metadata.items() if isinstance(value, str)}
    namespace = (
        source.text("namespace")
        or in_metadata.get("NAMESPACE")
        or parts[3].partition(".")[0]
        or environ.get("POD_NAMESPACE")
        or "default"
    )
    labels = source.labels() or _text_items(node.metadata.get("LABELS"))
    group = source.text("auto_register_group") or in_metadata.get("AUTO_REGISTER_GROUP", "")
    name = (
        source.text("workload_name")
        or in_metadata.get("WORKLOAD_NAME")
        or parts[2].removesuffix(f".{namespace}")
        or environ.get("POD_NAME")
        or "-".join(filter(None, (labels.get("app"), labels.get("version"))))
        or group  # as Istio names virtual machines
        or socket.gethostname()
    )
    address = (
        source.text("address") or parts[1] or environ.get("INSTANCE_IP") or _own_address(bootstrap)
    )
    domain = source.text("domain") or "cluster.local"
    return Settings(
        required=source.flag("required", False),
        bootstrap=bootstrap,
        namespace=namespace,
        domain=domain,
        node_id=source.text("node_id")
        or node.id
        or f"sidecar~{address}~{name}.{namespace}~{namespace}.svc.{domain}",
        cluster=source.text("cluster") or node.cluster or f"{labels.get('app', name)}.{namespace}",
        labels=labels,
        service_account=source.text("service_account")
        or in_metadata.get("SERVICE_ACCOUNT")
        or environ.get("SERVICE_ACCOUNT")
        or "default",
        locality=source.locality() or node.locality,
        address=address,
        auto_register_group=group,
        workload_name=name,
        state_dir=source.text("state_dir"),
        ready_timeout=source.number("ready_timeout", 20.0),
        reconnect_max=source.number("reconnect_max", 5.0),
        max_listeners=int(source.number("max_listeners", 1000)),
    )


class _Source:
    """One setting at a time, from the argument or else the variable, checked."""

    def __init__(self, arguments: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._environ = environ

    def _raw(self, name: str) -> tuple[Any, str]:
        """The value, or None, and what to call it in a message."""
        value = self._arguments.get(name)
        if value is not None:
            return value, f"Mesh({name}=...)"
        variable = VARIABLES[name]
        return self._environ.get(variable) or None, variable

    def text(self, name: str) -> str:
        value, label = self._raw(name)
        if value is None:
            return ""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str):
            raise ConfigurationError(f"{label} is {value!r}; give a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value, label = self._raw(name)
        if value is None:
            return default
        known = {"true": True, "1": True, "yes": True, "on": True}
        known |= {"false": False, "0": False, "no": False, "off": False}
        answer = known.get(str(value).strip().lower())
        if answer is None:
            raise ConfigurationError(f"{label} is {value!r}; give true or false")
        return answer

    def number(self, name: str, default: float) -> float:
        value, label = self._raw(name)
        if value is None:
            return default
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0 < number < 1e9:
            raise ConfigurationError(f"{label} is {value!r}; give a number above 0")
        return number

    def labels(self) -> Mapping[str, str]:
        value, label = self._raw("labels")
        if value is None:
            return {}
        wanted = f'{label} is {value!r}; give app=reviews,version=v1 or {{"app": "reviews"}}'
        if isinstance(value, str):
            value = _parsed_labels(value, wanted)
        if not isinstance(value, Mapping) or len(_text_items(value)) != len(value):
            raise ConfigurationError(wanted)
        return dict(value)

    def locality(self) -> Locality | None:
        value, label = self._raw("locality")
        if value is None or isinstance(value, Locality):
            return value
        parts = value.split("/") if isinstance(value, str) else []
        if not 1 <= len(parts) <= 3:
            raise ConfigurationError(f"{label} is {value!r}; give region/zone/subzone")
        return Locality(*parts)


def _parsed_labels(text: str, wanted: str) -> object:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"{wanted} ({error})") from error
    pairs = [item.strip().partition("=") for item in text.split(",") if item.strip()]
    if not all(key and equals for key, equals, _ in pairs):
        raise ConfigurationError(wanted)
    return {key: value for key, _, value in pairs}


def _text_items(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}


def _own_address(bootstrap: Bootstrap) -> str:
    """The address that traffic towards the control plane leaves from; no packet is sent.

    A name is not resolved for this: then it is the address of the default route.
    """
    host = bootstrap.server.uri.rpartition(":")[0].rpartition("/")[2].strip("[]")
    if host in ("localhost", "") or bootstrap.server.uri.startswith("unix"):
        return "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    literal = ":" in host or host.replace(".", "").isdigit()
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host if literal else "192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def misspelt(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that are none of ours and look like one; each with the one that is meant."""
    known = _OTHERS.union(VARIABLES.values())
    unknown = [name for name in environ if name.startswith("MESHSDK_") and name not in known]
    if not unknown:
        return {}
    import difflib

    close = {name: difflib.get_close_matches(name, known, 1, 0.88) for name in unknown}
    return {name: found[0] for name, found in close.items() if found}
