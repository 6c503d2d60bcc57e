"""What the xDS client knows of one resource, and how a resource type is decoded."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from meshsdk.errors import InvalidResource

LISTENER: Final = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE: Final = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
CLUSTER: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT: Final = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


@dataclass(frozen=True, slots=True)
class Decoder:
    """How the resources of one type are read.

    Attributes:
        type_url: what `DiscoveryResponse.type_url` and `Any.type_url` say.
        kind: how error messages call such a resource (`Listener`).
        full_state: a response holds every resource that was asked for; one that is missing does
            not exist. True for LDS and CDS. Source: xDS protocol, "Knowing When a Requested
            Resource Does Not Exist".
        parse: bytes to message; raises `google.protobuf.message.DecodeError`.
        name_field: the field of the message that holds the resource's name.
        decode: message to a frozen value of `meshsdk.model`; appends to the list what is not
            honoured but does no harm (one sentence each); raises `InvalidResource`.
    """

    type_url: str
    kind: str
    full_state: bool
    parse: Callable[[bytes], Any]
    name_field: str
    decode: Callable[[Any, list[str]], Any]


class Status(enum.Enum):
    """Source: `envoy.admin.v3.ClientResourceStatus`, gRFC A40 and A88."""

    REQUESTED = "REQUESTED"
    ACKED = "ACKED"
    NACKED = "NACKED"
    DOES_NOT_EXIST = "DOES_NOT_EXIST"
    RECEIVED_ERROR = "RECEIVED_ERROR"


@dataclass(slots=True)
class ResourceState:
    """One resource of the cache. Only the xDS thread changes it; others take a momentary look.

    Attributes:
        value: the last good value (a frozen type of `meshsdk.model`), None when there is none.
        raw: the bytes inside the `Any` that `value` was decoded from.
        version: the version under which `value` was accepted.
        status: REQUESTED until the control plane speaks of it. NACKED: the newest version was
            rejected; an older `value` stays in use.
        error: why the newest version was rejected, or what the control plane said instead of
            sending it.
        error_version: the version that was rejected.
        restored: `value` comes from disk, the control plane has not confirmed it yet.
        updated: the caller's clock when the control plane last sent or rejected a change.
    """

    type_url: str
    name: str
    status: Status = Status.REQUESTED
    value: Any = None
    raw: bytes = b""
    version: str = ""
    error: InvalidResource | None = None
    error_version: str = ""
    restored: bool = False
    updated: float = 0.0

    @property
    def arrived(self) -> bool:
        """Whether there is nothing more to wait for: a value, or the word that there is none."""
        return self.value is not None or self.status is not Status.REQUESTED

    @property
    def why_missing(self) -> str:
        """Why there is no value, for a person; empty when there is one or it is on its way."""
        if self.value is not None or self.status is Status.REQUESTED:
            return ""
        kind = self.type_url.rpartition(".")[2]
        if self.error is not None:
            return f"{kind} {self.name} was rejected: {self.error}"
        return f"{kind} {self.name} does not exist"
