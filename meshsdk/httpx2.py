"""httpx2 through the mesh: `Client` and `AsyncClient`; all else as `meshsdk.httpx` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2 as _httpx2

    from meshsdk.mesh import Mesh

    class Client(_httpx2.Client):  # type: ignore[misc]
        """`httpx2.Client` whose requests go through a mesh."""

        def __init__(self, *, mesh: Mesh | None = None, **options: Any) -> None: ...

    class AsyncClient(_httpx2.AsyncClient):  # type: ignore[misc]
        """`httpx2.AsyncClient` whose requests go through a mesh."""

        def __init__(self, *, mesh: Mesh | None = None, **options: Any) -> None: ...


__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from meshsdk._httpx.clients import client_type

    globals()[name] = client_type("httpx2", name)
    return globals()[name]
