"""A mesh and a real control plane: configuration, outages, registration, the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from meshsdk.errors import ConfigurationError, MeshClosed, NotReady
from meshsdk.mesh import Mesh, default_mesh
from meshsdk.model import ListenerView, Snapshot
from tests.support.ads import AdsServer, free_port, wait_until
from tests.support.resources import (
    CDS,
    EDS,
    LDS,
    cluster,
    endpoints,
    listener,
    pack,
    route,
    route_configuration,
    service,
)

NAME = "reviews.default.svc.cluster.local:9080"
CLUSTER = "outbound|9080||reviews.default.svc.cluster.local"


def targets(view: ListenerView | None) -> list[str]:
    """Where calls of this view go, over all its clusters."""
    assert view is not None
    assert not view.absent, view.absent
    return sorted(e.target for c in view.clusters.values() for e in c.endpoints)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("meshsdk")}


# --- configuration ---------------------------------------------------------------------------


def test_nothing_starts_before_the_first_use(ads_server: AdsServer) -> None:
    before = threads()
    with Mesh(bootstrap=ads_server.bootstrap) as mesh:
        assert mesh.listener_name("reviews:9080", 80) == NAME
        assert mesh.snapshot.view(NAME) is None
        assert threads() == before
    assert ads_server.streams_total == 0


def test_a_call_gets_its_configuration(ads_server: AdsServer, mesh: Mesh) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1), ("127.0.0.1", 2)]))
    view = mesh.wait_for(NAME, 5)
    assert targets(view) == ["127.0.0.1:1", "127.0.0.1:2"]
    assert mesh.snapshot.view(NAME) is view
    assert mesh.snapshot.stale_since is None
    assert mesh.wait_for(NAME, 0) is view


def test_the_node_says_who_we_are(ads_server: AdsServer) -> None:
    with Mesh(
        control_plane=ads_server.address,
        namespace="shop",
        labels={"app": "web", "version": "v2"},
        service_account="web-sa",
        locality="eu/eu-1/a",
        auto_register_group="web-v2",
    ) as mesh:
        mesh.wait_ready(5)
        with pytest.raises(NotReady):
            mesh.wait_for("x:80", 0.0)
        node = ads_server.wait(lambda: ads_server.node_seen)
    assert node.id == "sidecar~127.0.0.1~web-v2.shop~shop.svc.cluster.local"
    assert node.cluster == "web.shop"
    assert node.user_agent_name == "meshsdk"
    assert (node.locality.region, node.locality.zone, node.locality.sub_zone) == ("eu", "eu-1", "a")
    metadata = node.metadata
    assert metadata["GENERATOR"] == "grpc"
    assert metadata["NAMESPACE"] == "shop"
    assert metadata["SERVICE_ACCOUNT"] == "web-sa"
    assert dict(metadata["LABELS"]) == {"app": "web", "version": "v2"}
    assert "AUTO_REGISTER_GROUP" not in metadata  # it serves nothing


def test_an_update_replaces_the_snapshot_and_tells_observers(
    ads_server: AdsServer, mesh: Mesh
) -> None:
    class Observer:
        def __init__(self) -> None:
            self.newest = Snapshot()

        def notice(self, snapshot: Snapshot) -> None:
            self.newest = snapshot

    observer = Observer()
    mesh.observe(observer.notice)
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    mesh.wait_for(NAME, 5)
    before = mesh.snapshot
    ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 7)]))
    wait_until(lambda: targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:7"])
    assert targets(before.view(NAME)) == ["127.0.0.1:1"]
    while observer.newest is not mesh.snapshot:
        time.sleep(0.005)
    reference = weakref.ref(observer)
    del observer
    gc.collect()
    assert reference() is None


def test_what_is_acknowledged_is_in_effect(ads_server: AdsServer, mesh: Mesh) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    mesh.wait_for(NAME, 5)
    ads_server.wait(lambda: any(ack.type_url == EDS for ack in ads_server.acks))
    published, go_on = threading.Event(), threading.Event()

    def slow(_snapshot: Snapshot) -> None:
        published.set()
        go_on.wait(20)

    mesh.observe(slow)
    before = len(ads_server.acks)
    ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 7)]))
    assert published.wait(20)
    assert targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:7"]
    time.sleep(0.2)  # ample for an acknowledgement that was sent too early
    assert len(ads_server.acks) == before
    go_on.set()
    ads_server.wait(lambda: len(ads_server.acks) > before)


def test_a_failing_observer_harms_nobody(
    ads_server: AdsServer, mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_snapshot: Snapshot) -> None:
        raise RuntimeError("broken observer")

    mesh.observe(broken)
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    assert targets(mesh.wait_for(NAME, 5)) == ["127.0.0.1:1"]
    wait_until(lambda: "observer" in caplog.text)


def test_many_threads_wait_for_one_name(ads_server: AdsServer, mesh: Mesh) -> None:
    ads_server.set(listener(NAME, [route(CLUSTER)]), cluster(CLUSTER))
    views: list[ListenerView] = []
    waiting = [
        threading.Thread(target=lambda: views.append(mesh.wait_for(NAME, 5))) for _ in range(20)
    ]
    for thread in waiting:
        thread.start()
    ads_server.wait(lambda: CLUSTER in ads_server.subscribed(EDS))
    ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 1)]))
    for thread in waiting:
        thread.join()
    assert len(views) == 20
    assert ads_server.streams_total == 1


async def test_coroutines_wait_without_blocking_the_loop(ads_server: AdsServer, mesh: Mesh) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ads_server.set(listener(NAME, [route(CLUSTER)]), cluster(CLUSTER))
    ticking = asyncio.create_task(tick())
    waiting = [asyncio.create_task(mesh.wait_for_async(NAME, 5)) for _ in range(20)]
    await asyncio.to_thread(wait_until, lambda: CLUSTER in ads_server.subscribed(EDS))
    waiting[0].cancel()
    ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 1)]))
    done = await asyncio.gather(*waiting, return_exceptions=True)
    ticking.cancel()
    assert isinstance(done[0], asyncio.CancelledError)
    assert all(targets(view) == ["127.0.0.1:1"] for view in done[1:])  # type: ignore[arg-type]
    assert ticks > 5
    with pytest.raises(NotReady):
        await mesh.wait_for_async("other:80", 0.05)


def test_a_name_that_does_not_exist_is_known_to_be_absent(
    ads_server: AdsServer, mesh: Mesh
) -> None:
    view = mesh.wait_for("no.such.host:80", 5)
    assert "does not exist" in view.absent


def test_an_empty_endpoint_set_is_a_view_without_endpoints(
    ads_server: AdsServer, mesh: Mesh
) -> None:
    ads_server.set(service(NAME, []))
    assert targets(mesh.wait_for(NAME, 5)) == []


def test_a_route_is_shown_only_with_its_cluster(ads_server: AdsServer, mesh: Mesh) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    mesh.wait_for(NAME, 5)
    ads_server.set(listener(NAME, [route("second")]))
    ads_server.wait(lambda: "second" in ads_server.subscribed(CDS))
    assert targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:1"]
    ads_server.set(cluster("second"), endpoints("second", [("127.0.0.1", 2)]))
    wait_until(lambda: targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:2"])


def test_routes_by_rds(ads_server: AdsServer, mesh: Mesh) -> None:
    ads_server.set(
        listener(NAME, rds="routes"),
        route_configuration("routes", [route("c")]),
        cluster("c", eds_name="e"),
        endpoints("e", [("127.0.0.1", 3)]),
    )
    assert targets(mesh.wait_for(NAME, 5)) == ["127.0.0.1:3"]


# --- bad configuration -----------------------------------------------------------------------


def test_a_malformed_resource_is_refused_by_name_and_the_last_good_one_stays(
    ads_server: AdsServer, mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    mesh.wait_for(NAME, 5)
    bad = endpoints(CLUSTER, [("127.0.0.1", 2)])
    bad.endpoints[0].lb_endpoints[0].load_balancing_weight.value = 0
    bad.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value = 99999
    with caplog.at_level(logging.WARNING, "meshsdk"):
        ads_server.set(bad)
        (nack,) = ads_server.wait(lambda: ads_server.nacks)
    assert CLUSTER in nack.error_detail.message
    assert "lb_endpoints[0]" in nack.error_detail.message
    assert mesh.settings.node_id in nack.error_detail.message
    assert targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:1"]
    wait_until(lambda: "the last good version stays in use" in caplog.text)
    ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 3)]))
    wait_until(lambda: targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:3"])


def test_garbage_is_refused_and_the_stream_goes_on(ads_server: AdsServer, mesh: Mesh) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    mesh.wait_for(NAME, 5)
    garbage = any_pb2.Any(type_url=LDS, value=b"\xff\xff\xff")
    ads_server.send_raw(LDS, [garbage])
    ads_server.wait(lambda: any(n.type_url == LDS for n in ads_server.nacks))
    ads_server.send_raw("type.googleapis.com/some.Unknown", [])
    ads_server.wait(lambda: any(n.type_url.endswith("Unknown") for n in ads_server.nacks))
    ads_server.send_raw(EDS, [pack(cluster("a cluster in an EDS response"))])
    ads_server.wait(lambda: any(n.type_url == EDS for n in ads_server.nacks))
    assert targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:1"]
    ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 9)]))
    wait_until(lambda: targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:9"])
    assert ads_server.streams_total == 1


def test_a_new_name_that_is_malformed_is_an_error_of_that_name_only(
    ads_server: AdsServer, mesh: Mesh
) -> None:
    bad = listener("bad:80", [route("c")])
    bad.api_listener.api_listener.value = b"\xff\xff"
    ads_server.set(bad, service(NAME, [("127.0.0.1", 1)]))
    view = mesh.wait_for("bad:80", 5)
    assert "bad:80" in view.absent
    assert targets(mesh.wait_for(NAME, 5)) == ["127.0.0.1:1"]


# --- outages ---------------------------------------------------------------------------------


def test_a_restarted_control_plane_is_found_soon_and_asked_again(ads_server: AdsServer) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    with Mesh(bootstrap=ads_server.bootstrap, reconnect_max=0.2) as mesh:
        mesh.wait_for(NAME, 5)
        ads_server.stop()
        wait_until(lambda: "not connected" in repr(mesh))
        assert targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:1"]
        mesh.wait_ready(0)  # calls can be served
        ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 2)]))
        ads_server.start()
        wait_until(lambda: targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:2"])
        assert "not connected" not in repr(mesh)


def test_an_outage_is_said_once(ads_server: AdsServer, caplog: pytest.LogCaptureFixture) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    with (
        caplog.at_level(logging.INFO, "meshsdk"),
        Mesh(bootstrap=ads_server.bootstrap, reconnect_max=0.05) as mesh,
    ):
        mesh.wait_for(NAME, 5)
        ads_server.stop()
        time.sleep(0.5)  # several attempts
        ads_server.start()
        ads_server.wait(lambda: ads_server.subscribed())
        wait_until(lambda: "not connected" not in repr(mesh))
    lines = [r.getMessage() for r in caplog.records if r.name == "meshsdk.xds"]
    assert len([line for line in lines if "is away" in line]) == 1, lines
    assert len([line for line in lines if "connected to control plane" in line]) == 2, lines


def test_without_the_configured_control_plane_a_call_fails_with_advice() -> None:
    port = free_port()
    with Mesh(control_plane=f"127.0.0.1:{port}", node_id="me") as mesh:
        started = time.monotonic()
        with pytest.raises(NotReady) as caught:
            mesh.wait_for(NAME, 0.5)
        assert 0.5 <= time.monotonic() - started < 5
    text = str(caught.value)
    assert NAME in text
    assert f"127.0.0.1:{port}" in text
    assert "Connection refused" in text
    assert "node me" in text
    assert "MESHSDK_CONTROL_PLANE" in text
    assert isinstance(caught.value, TimeoutError)


def test_a_control_plane_that_comes_later_serves_those_who_wait() -> None:
    server = AdsServer(port=free_port())
    server.set(service(NAME, [("127.0.0.1", 1)]))
    with Mesh(control_plane=server.address, reconnect_max=0.2) as mesh:
        views: list[ListenerView] = []
        waiting = threading.Thread(target=lambda: views.append(mesh.wait_for(NAME, 10)))
        waiting.start()
        with pytest.raises(NotReady, match="refused"):
            mesh.wait_ready(0.5)
        with server:
            waiting.join()
            assert targets(views[0]) == ["127.0.0.1:1"]


def test_without_a_limit_a_call_waits_for_ready_timeout() -> None:
    with Mesh(control_plane=f"127.0.0.1:{free_port()}", ready_timeout=0.3) as mesh:
        started = time.monotonic()
        with pytest.raises(NotReady):
            mesh.wait_for(NAME)
        with pytest.raises(NotReady, match="the mesh is not ready"):
            mesh.wait_ready()
        assert time.monotonic() - started < 3


# --- readiness and the end -------------------------------------------------------------------


def test_wait_ready_without_a_name_needs_only_the_connection(ads_server: AdsServer) -> None:
    with Mesh(bootstrap=ads_server.bootstrap) as mesh:
        mesh.wait_ready(5)
    assert ads_server.streams_total == 1


def test_wait_ready_waits_for_what_was_asked(ads_server: AdsServer, mesh: Mesh) -> None:
    ads_server.set(listener(NAME, [route(CLUSTER)]), cluster(CLUSTER))
    with pytest.raises(NotReady):
        mesh.wait_for(NAME, 0)
    with pytest.raises(NotReady, match="connected but has not sent"):
        mesh.wait_ready(0.3)
    ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 1)]))
    mesh.wait_ready(5)
    assert targets(mesh.snapshot.view(NAME)) == ["127.0.0.1:1"]


def test_close_ends_everything_and_may_be_repeated(ads_server: AdsServer) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    mesh = Mesh(bootstrap=ads_server.bootstrap)
    mesh.wait_for(NAME, 5)
    ads_server.set(listener("never:1", [route("c")]), cluster("c"))
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            mesh.wait_for("never:1", 30)
        except MeshClosed as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    ads_server.wait(lambda: "never:1" in ads_server.subscribed())
    started = time.monotonic()
    mesh.close()
    waiting.join()
    mesh.close()
    assert time.monotonic() - started < 10
    assert len(failures) == 1
    for use in (mesh.wait_ready, lambda: mesh.wait_for("x:80", 1)):
        with pytest.raises(MeshClosed):
            use()
    ads_server.wait(lambda: not ads_server.streams)


async def test_async_context_and_close_wake_coroutines(ads_server: AdsServer) -> None:
    async with Mesh(control_plane=f"127.0.0.1:{free_port()}") as mesh:
        waiting = asyncio.create_task(mesh.wait_for_async(NAME, 30))
        await asyncio.sleep(0.05)
        await mesh.aclose()
        with pytest.raises(MeshClosed):
            await waiting


def test_a_mesh_that_nobody_holds_ends_its_thread(ads_server: AdsServer) -> None:
    mesh = Mesh(bootstrap=ads_server.bootstrap)
    mesh.wait_ready(5)
    ads_server.wait(lambda: ads_server.streams)
    del mesh
    gc.collect()
    ads_server.wait(lambda: not ads_server.streams)


def test_a_crawler_does_not_grow_without_bound() -> None:
    with (
        AdsServer(unknown="allow_any") as server,
        Mesh(bootstrap=server.bootstrap, max_listeners=16) as mesh,
    ):
        for number in range(100):
            assert not mesh.wait_for(f"host-{number}.example:80", 5).absent
        assert len(mesh.snapshot.listeners) <= 16
        wait_until(lambda: len(server.subscribed()) <= 16)
        assert not mesh.wait_for("host-0.example:80", 5).absent


# --- registration ----------------------------------------------------------------------------


@pytest.fixture
def workload(ads_server: AdsServer) -> Iterator[Mesh]:
    with Mesh(
        bootstrap=ads_server.bootstrap, auto_register_group="reviews-v1", namespace="default"
    ) as mesh:
        yield mesh


def last(requests: list[Any]) -> dict[str, Any]:
    """What the newest health request says."""
    request = requests[-1]
    metadata = request.node.metadata
    return {
        "id": request.node.id,
        "ports": dict(metadata["MESHSDK_PORTS"]) if "MESHSDK_PORTS" in metadata else {},
        "health": dict(metadata).get("MESHSDK_HEALTH", ""),
        "code": request.error_detail.code,
    }


def test_a_registration_is_in_the_first_request(ads_server: AdsServer, workload: Mesh) -> None:
    workload.register(port=9080, address="127.0.0.5")
    node = ads_server.wait(lambda: ads_server.node_seen)
    assert node.id == "sidecar~127.0.0.5~test.default~default.svc.cluster.local"
    assert node.metadata["AUTO_REGISTER_GROUP"] == "reviews-v1"
    assert dict(node.metadata["MESHSDK_PORTS"]) == {"http": 9080}
    assert node.metadata["MESHSDK_HEALTH"] == "HEALTHY"


def test_registrations_after_the_stream_merge_and_end(
    ads_server: AdsServer, workload: Mesh
) -> None:
    workload.wait_ready(5)
    http = workload.register(port=9080)
    ads_server.wait(lambda: ads_server.health)
    assert last(ads_server.health)["ports"] == {"http": 9080}
    grpc = workload.register(port=9081, port_name="grpc")
    ads_server.wait(lambda: last(ads_server.health)["ports"] == {"http": 9080, "grpc": 9081})
    grpc.set_health("UNHEALTHY")
    ads_server.wait(lambda: last(ads_server.health)["health"] == "UNHEALTHY")
    assert last(ads_server.health)["code"] == 13
    grpc.close()
    ads_server.wait(lambda: last(ads_server.health)["ports"] == {"http": 9080})
    assert last(ads_server.health) | {"health": "HEALTHY", "code": 0} == last(ads_server.health)
    started = time.monotonic()
    http.close()
    http.close()
    assert time.monotonic() - started < 5
    ads_server.wait(lambda: last(ads_server.health)["code"] == 1)
    assert ads_server.health[-1].error_detail.message == "deregister"


def test_a_reconnect_registers_again(ads_server: AdsServer) -> None:
    with Mesh(bootstrap=ads_server.bootstrap, auto_register_group="g", reconnect_max=0.1) as mesh:
        mesh.register(port=9080)
        ads_server.wait(lambda: ads_server.nodes)
        ads_server.stop()
        ads_server.nodes.clear()
        ads_server.start()
        node = ads_server.wait(lambda: ads_server.node_seen)
        assert dict(node.metadata["MESHSDK_PORTS"]) == {"http": 9080}


def test_closing_the_mesh_deregisters(ads_server: AdsServer, workload: Mesh) -> None:
    registration = workload.register(port=9080)
    ads_server.wait(lambda: ads_server.health)
    workload.close()
    ads_server.wait(lambda: last(ads_server.health)["code"] == 1)
    registration.close()
    with pytest.raises(MeshClosed):
        registration.set_health("HEALTHY")


def test_without_a_group_nothing_is_registered_or_started(ads_server: AdsServer) -> None:
    with Mesh(bootstrap=ads_server.bootstrap) as mesh:
        with mesh.register(port=9080) as registration:
            registration.set_health("UNHEALTHY")
        assert "not started" in repr(mesh)


def test_a_registration_that_cannot_be_right_is_refused(workload: Mesh) -> None:
    with pytest.raises(ConfigurationError, match="port from 1 to 65535"):
        workload.register(port=0)
    with pytest.raises(ConfigurationError, match="IP address, not a name"):
        workload.register(port=80, address="reviews")
    with pytest.raises(ConfigurationError, match="HEALTHY, UNHEALTHY, DRAINING"):
        workload.register(port=80, health="ok")
    workload.register(port=80, address="0.0.0.0")
    workload.register(port=81, address="127.0.0.2")
    with pytest.raises(ConfigurationError, match="one address"):
        workload.register(port=82, address="127.0.0.3")


# --- the default mesh ------------------------------------------------------------------------


def test_the_default_mesh_is_one_per_process(
    ads_server: AdsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHSDK_CONTROL_PLANE", ads_server.address)
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    with default_mesh() as mesh:
        assert default_mesh() is mesh
        assert targets(mesh.wait_for(NAME, 5)) == ["127.0.0.1:1"]
    with default_mesh() as another:
        assert another is not mesh


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter loads for `statement`."""
    code = (
        f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_importing_loads_neither_grpc_nor_httpx() -> None:
    heavy = {"grpc", "google", "envoy", "httpx", "httpx2", "httpcore", "asyncio", "ssl"}
    modules = loaded_by("import meshsdk.mesh, meshsdk.pytest_plugin")
    assert not heavy & {name.partition(".")[0] for name in modules}
    modules = loaded_by("import meshsdk")
    assert {name for name in modules if name.startswith("meshsdk")} == {"meshsdk"}
    assert not {"re2", "logging", "dataclasses", "json", "threading", "socket"} & modules


def test_a_state_dir_is_a_path(tmp_path: Path) -> None:
    with Mesh(control_plane="127.0.0.1:1", state_dir=tmp_path) as mesh:
        assert mesh.settings.state_dir == str(tmp_path)
