"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh
    from tests.support.ads import AdsServer

# A busy machine is no defect: no test is judged by its speed. CI asks the same questions each time.
settings.register_profile("mesh", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mesh")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the shell that started it says about meshes."""
    for name in os.environ.keys() - {"MESHSDK_TEST_DATA"}:
        if name.startswith(("MESHSDK_", "GRPC_XDS_BOOTSTRAP")):
            monkeypatch.delenv(name)


@pytest.fixture
def ads_server() -> Iterator[AdsServer]:
    """A control plane that serves what the test sets (`tests.support.resources`)."""
    from tests.support.ads import AdsServer

    with AdsServer() as server:
        yield server


@pytest.fixture
def mesh(ads_server: AdsServer) -> Iterator[Mesh]:
    """A mesh that takes its configuration from `ads_server`, in namespace `default`."""
    from meshsdk.mesh import Mesh

    with Mesh(bootstrap=ads_server.bootstrap, namespace="default") as made:
        yield made
