"""Client libraries of an unchanged program: `grpc.insecure_channel`, httpx."""

from __future__ import annotations

import functools
import logging
from types import ModuleType
from typing import Any

from meshsdk.errors import MeshError

_log = logging.getLogger("meshsdk.attach")


def patch_grpc(module: ModuleType) -> None:
    """`insecure_channel` of grpc and grpc.aio, `server` of both.

    `secure_channel` stays: the program has decided whom to trust, and how.
    """
    from meshsdk.attach import servers

    _patch_channel(module)
    servers.patch_grpc_server(module)
    aio = getattr(module, "aio", None)
    if aio is not None:
        _patch_aio_channel(aio)
        servers.patch_grpc_aio_server(aio)


# `inspect.unwrap(grpc.insecure_channel)` finds the library's own, which the mesh itself uses.


def _patch_channel(grpc: Any) -> None:
    raw = grpc.insecure_channel

    @functools.wraps(raw)
    def insecure_channel(target: Any, options: Any = None, compression: Any = None) -> Any:
        mesh = _mesh_for(target)
        if mesh is None:
            return raw(target, options, compression)
        return mesh.channel(target, options=options, compression=compression)

    grpc.insecure_channel = insecure_channel


def _patch_aio_channel(aio: Any) -> None:
    raw = aio.insecure_channel

    @functools.wraps(raw)
    def insecure_channel(
        target: Any, options: Any = None, compression: Any = None, interceptors: Any = None
    ) -> Any:
        mesh = _mesh_for(target)
        if mesh is None:
            return raw(target, options, compression, interceptors)
        return mesh.aio_channel(
            target, options=options, compression=compression, interceptors=interceptors
        )

    aio.insecure_channel = insecure_channel


def _mesh_for(target: Any) -> Any:
    """The mesh, where it has a say about `target`; None for Unix sockets, `xds:///` and such."""
    from meshsdk._grpc.values import authority_of
    from meshsdk.mesh import default_mesh

    if not isinstance(target, str) or authority_of(target) is None:
        return None
    try:
        mesh = default_mesh()
    except MeshError as error:
        _log.warning("gRPC goes out without the mesh: %s", error)
        return None
    return mesh if mesh.settings.enabled else None


def patch_httpx(module: ModuleType) -> None:
    """Every client of httpx that is made from now on."""
    import meshsdk.httpx
    from meshsdk.mesh import default_mesh

    meshsdk.httpx.attach(default_mesh())


def patch_httpx2(module: ModuleType) -> None:
    """Every client of httpx2, as `patch_httpx`."""
    patch_httpx(module)
