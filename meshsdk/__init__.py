"""Istio's traffic policy for plain grpc and httpx code, in the process, without a sidecar.

Importing this package loads neither grpc nor httpx and starts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshsdk.errors import (
        CallError,
        ConfigurationError,
        InvalidResource,
        MeshClosed,
        MeshError,
        NotReady,
    )
    from meshsdk.mesh import Mesh, default_mesh

_HOME = {
    "CallError": "errors",
    "ConfigurationError": "errors",
    "InvalidResource": "errors",
    "Mesh": "mesh",
    "MeshClosed": "errors",
    "MeshError": "errors",
    "NotReady": "errors",
    "default_mesh": "mesh",
}

__all__ = [
    "CallError",
    "ConfigurationError",
    "InvalidResource",
    "Mesh",
    "MeshClosed",
    "MeshError",
    "NotReady",
    "default_mesh",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"meshsdk.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
