"""pytest fixture `mesh_off`: a test in which calls go out as if there were no mesh.

Importing this loads no grpc: pytest imports it in every project that has meshsdk installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def mesh_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Switch the mesh off: for meshes that exist, for new ones, and for subprocesses.

    No control plane is looked for, nothing is logged and no thread is started.
    """
    monkeypatch.setenv("MESHSDK_ENABLED", "false")
    from meshsdk.mesh import switched_off

    with switched_off():
        yield
