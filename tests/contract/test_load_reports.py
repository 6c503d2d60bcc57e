"""Load reports of servers reach the balancer.

Over HTTP: of gRPC's trailers the core keeps the load report to itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshsdk.model import Balancing
from tests.support.http_api import NAME, URL, Api, OpenMesh
from tests.support.http_backend import Backend
from tests.support.static_mesh import StaticMesh, forward

BY_LOAD = Balancing.CLIENT_SIDE_WEIGHTED_ROUND_ROBIN
SIDES = [("httpx", "sync"), ("httpx", "asyncio"), ("httpx2", "sync"), ("httpx2", "asyncio")]


def weight(mesh: StaticMesh) -> float:
    """The weight that the only endpoint has by its reports, usable or not."""
    (view,) = mesh.snapshot.listeners.values()
    (cluster,) = view.clusters.values()
    (state,) = cluster.endpoints
    assert state.load is not None
    known = state.load._known
    return known[0] if known else 0.0


@pytest.fixture(params=SIDES, ids="-".join)
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    library, side = request.param
    api = Api("mesh", library, side, OpenMesh(), URL)
    yield api
    api.close()
    api.assert_released()


@pytest.mark.parametrize(
    ("value", "expected"),
    [("TEXT cpu_utilization=0.5,rps_fractional=100", 200.0), ("TEXT nonsense", 0.0)],
)
def test_http(api: Api, value: str, expected: float) -> None:
    with Backend("one") as one:
        one.headers = [("endpoint-load-metrics", value)]
        api.mesh.endpoints("one", one.target, balancing=BY_LOAD)
        api.mesh.listen(NAME, forward("one"))
        with api.client() as client:
            assert client.get(f"{URL}/who").text == "one"
    assert weight(api.mesh) == expected
