"""The ways to make a gRPC channel that the contract suite runs through, raw ones first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshsdk.matching import Fraction
from meshsdk.model import (
    AppendAction,
    Fault,
    FaultDelay,
    HeaderMutations,
    HeaderOption,
    Route,
    Snapshot,
)
from tests.support.static_mesh import PASSTHROUGH, StaticMesh, forward

NAME = "reviews:9080"

# Nothing that a caller can see differs between these:
#   mesh           the hot path
#   mesh-late      a call starts after a delay, too short to notice
#   mesh-changed   the route looks at the response headers, and changes none
#   mesh-split     each call draws its cluster
#   mesh-outside   the host is not in the registry: PassthroughCluster
#   mesh-off       the mesh is switched off
KINDS = ("raw", "mesh", "mesh-late", "mesh-changed", "mesh-split", "mesh-outside", "mesh-off")

_NOT_AT_ALL = HeaderOption("x-server", "never", AppendAction.ADD_IF_ABSENT)


def mesh_of(kind: str, target: str) -> StaticMesh:
    """A mesh that sends every call to `target`, in the way that `kind` says."""
    mesh = StaticMesh()
    mesh.endpoints("one", target)
    mesh.endpoints("two", target)
    mesh.listen(NAME, _route(kind))
    if kind in ("mesh-off", "mesh-outside"):
        mesh.listen(target, forward(PASSTHROUGH.name))
    if kind == "mesh-off":
        mesh.publish({}, bypass=True)
    return mesh


def _route(kind: str) -> Route:
    if kind == "mesh-late":
        return forward("one", fault=Fault(FaultDelay(0.002, Fraction(100))))
    if kind == "mesh-changed":
        return forward("one", mutations=HeaderMutations(response_set=(_NOT_AT_ALL,)))
    if kind == "mesh-split":
        return forward(("one", 50), ("two", 50))
    return forward("one")


class Maker:
    """Makes channels to one target, raw or through a mesh; says what is still open at the end.

    Args:
        raw, meshed: make a channel from (target) and from (mesh, target).
    """

    def __init__(self, kind: str, raw: Callable[..., Any], meshed: Callable[..., Any]) -> None:
        self.kind = kind
        self._raw = raw
        self._meshed = meshed
        self.meshes: list[StaticMesh] = []
        self.channels: list[Any] = []

    def __call__(self, target: str, **more: Any) -> Any:
        if self.kind == "raw":
            channel = self._raw(target, **more)
        else:
            mesh = mesh_of(self.kind, target)
            self.meshes.append(mesh)
            plain = self.kind in ("mesh-off", "mesh-outside")
            channel = self._meshed(mesh, target if plain else NAME, **more)
        self.channels.append(channel)
        return channel

    def active(self) -> int:
        """Attempts that have not been ended."""
        return sum(attempts(mesh.snapshot) for mesh in self.meshes)


def attempts(snapshot: Snapshot) -> int:
    """Attempts under way on the endpoints of a snapshot."""
    return sum(
        endpoint.active
        for view in snapshot.listeners.values()
        for cluster in view.clusters.values()
        for endpoint in cluster.endpoints
    )
