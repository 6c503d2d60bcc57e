"""Node: what a client of the control plane says about itself, by istiod's conventions (X6)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format

from controlplane.model.registry import Locality
from controlplane.model.workloads import labelled_locality

SDK_USER_AGENT = "meshsdk"
GRPC_USER_AGENT = "grpc"


class Dialect(enum.Enum):
    """What a node understands."""

    SDK = "meshsdk"
    """Our library: everything that Envoy can say about a route or a cluster."""
    GRPC = "grpc"
    """gRPC's own xDS client: only what the gRFCs name."""
    ENVOY = "envoy"


REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"
SUBZONE = "topology.istio.io/subzone"
NETWORK = "topology.istio.io/network"
HOSTNAME = "kubernetes.io/hostname"
VERSION = "ISTIO_VERSION"
TOPOLOGY = frozenset({REGION, ZONE, SUBZONE, NETWORK, HOSTNAME})


class Relevant(NamedTuple):
    """What rules look at in their callers: label and metadata keys."""

    labels: frozenset[str] = frozenset()
    metadata: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Variant:
    """The part of a node that resources depend on: equal variants share every byte.

    `labels` also say where the node is (`TOPOLOGY`).
    """

    dialect: Dialect
    namespace: str
    labels: frozenset[tuple[str, str]] = frozenset()
    metadata: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Node:
    """One client. `labels` are the workload's, `ip` is the address in the node id."""

    id: str
    dialect: Dialect
    namespace: str = "default"
    name: str = ""
    ip: str = ""
    kind: str = "sidecar"
    labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = ""
    cluster: str = ""
    locality: Locality = field(default_factory=Locality)
    user_agent: str = ""
    version: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_proto(cls, node: base_pb2.Node) -> Node:
        """Reads the node of a discovery request; what is missing gets Istio's defaults."""
        metadata = json_format.MessageToDict(node.metadata)
        locality = Locality(node.locality.region, node.locality.zone, node.locality.sub_zone)
        return cls.make(
            node.id,
            metadata,
            user_agent=node.user_agent_name,
            version=node.user_agent_version,
            cluster=node.cluster,
            locality=locality,
        )

    @classmethod
    def make(
        cls,
        node_id: str,
        metadata: Mapping[str, Any],
        *,
        user_agent: str = "",
        version: str = "",
        cluster: str = "",
        locality: Locality | None = None,
    ) -> Node:
        """A node from its id `kind~ip~name.namespace~domain` (any other text is a plain name)."""
        parts = node_id.split("~")
        kind, ip, name, domain = parts if len(parts) == 4 else ("sidecar", "", node_id, "")
        short, _, namespace = name.rpartition(".") if len(parts) == 4 else (name, "", "")
        labels = metadata.get("LABELS")
        return cls(
            id=node_id,
            dialect=_dialect(user_agent, metadata, kind),
            namespace=_text(metadata, "NAMESPACE")
            or namespace
            or domain.partition(".")[0]
            or "default",
            name=short or name,
            ip=ip,
            kind=kind,
            labels={str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else {},
            service_account=_text(metadata, "SERVICE_ACCOUNT"),
            cluster=cluster,
            locality=locality or Locality(),
            user_agent=user_agent,
            version=version,
            metadata=metadata,
        )

    @property
    def is_sdk(self) -> bool:
        return self.dialect is Dialect.SDK

    @property
    def place(self) -> Locality:
        """Where it runs: as its node says, else as its labels say (L1)."""
        if self.locality != Locality():
            return self.locality
        labelled = labelled_locality(self.labels)
        return labelled or Locality(*(self.labels.get(key, "") for key in (REGION, ZONE, SUBZONE)))

    def variant(self, relevant: Relevant) -> Variant:
        """The variant of this node when rules look at these facts about their callers only."""
        place = self.place
        facts = {
            REGION: place.region,
            ZONE: place.zone,
            SUBZONE: place.subzone,
            NETWORK: _text(self.metadata, "NETWORK"),
            HOSTNAME: _text(self.metadata, "NODE_NAME"),
        }
        known = {**self.labels, **{key: value for key, value in facts.items() if value}}
        labels = frozenset((k, v) for k, v in known.items() if k in relevant.labels)
        said = ((key, _text(self.metadata, key)) for key in relevant.metadata)
        metadata = frozenset((key, value) for key, value in said if value)
        return Variant(self.dialect, self.namespace, labels, metadata)


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key, "")
    return value if isinstance(value, str) else ""


def _dialect(user_agent: str, metadata: Mapping[str, Any], kind: str) -> Dialect:
    if user_agent == SDK_USER_AGENT:
        return Dialect.SDK
    if user_agent == "envoy" or (kind == "router" and metadata.get("GENERATOR") != "grpc"):
        return Dialect.ENVOY
    return Dialect.GRPC
