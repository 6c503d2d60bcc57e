"""The pure parts of the xDS thread: back-off, interest, registration, weak callbacks, waiting."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshsdk.errors import ConfigurationError, NoHealthyUpstream
from meshsdk.fork import WeakCallbacks
from meshsdk.model import Snapshot
from meshsdk.registration import ServedPort, WorkloadHealth, checked, merge
from meshsdk.settings import load
from meshsdk.waiting import Waiters
from meshsdk.xds.backoff import Backoff
from meshsdk.xds.bootstrap import Server
from meshsdk.xds.configuration import Configuration
from meshsdk.xds.interest import Interest
from meshsdk.xds.naming import ByName
from meshsdk.xds.node import health_request, node_message
from meshsdk.xds.store import Saved
from meshsdk.xds.transport import _described, _metadata
from tests.support import resources
from tests.support.resources import CDS, EDS, LDS, RDS, route

# --- back-off --------------------------------------------------------------------------------


def test_back_off_grows_to_its_limit_and_starts_anew_after_an_answer() -> None:
    backoff = Backoff(5, lambda: 0.5)  # in the middle: no jitter
    failed = [backoff.after(answered=False, lasted=0) for _ in range(6)]
    assert failed == pytest.approx([1, 1.6, 2.56, 4.096, 5, 5])
    assert backoff.after(answered=True, lasted=100) == pytest.approx(0.15)
    assert backoff.after(answered=False, lasted=0) == pytest.approx(1)


def test_a_stream_that_ends_soon_after_an_answer_is_no_reason_to_hurry() -> None:
    backoff = Backoff(120, lambda: 0.5)
    delays = [backoff.after(answered=True, lasted=0.1) for _ in range(3)]
    assert delays == pytest.approx([1, 1, 1])


@given(
    limit=st.floats(0.05, 200),
    random=st.floats(0, 1, exclude_max=True),
    failures=st.integers(1, 30),
)
def test_back_off_stays_inside_its_bounds(limit: float, random: float, failures: int) -> None:
    backoff = Backoff(limit, lambda: random)
    for _ in range(failures):
        assert 0 < backoff.after(answered=False, lasted=0) <= limit * 1.2 + 1e-9


# --- interest --------------------------------------------------------------------------------


def test_interest_forgets_what_was_not_asked_for_again() -> None:
    interest = Interest(8)
    for number in range(100):
        interest.want(f"crawled-{number}")
        if number % 2 == 0 and "busy" not in interest.names - interest.hidden:
            interest.want("busy")  # a call that does not find it in the snapshot asks again
    assert "busy" in interest.names
    assert "crawled-99" in interest.names - interest.hidden
    assert "crawled-0" not in interest.names


@given(limit=st.integers(1, 40), wishes=st.lists(st.integers(0, 60), max_size=200))
def test_interest_is_bounded_and_keeps_the_newest(limit: int, wishes: list[int]) -> None:
    interest = Interest(limit)
    for wish in wishes:
        interest.want(str(wish))
        assert str(wish) in interest.names - interest.hidden
        assert len(interest.names) <= limit
        assert interest.hidden <= interest.names


# --- registration ----------------------------------------------------------------------------


def test_ports_merge_into_one_workload() -> None:
    workload = merge(
        [
            ServedPort(9080, labels={"a": "1"}),
            ServedPort(9081, "grpc", address="127.0.0.2"),
            ServedPort(9082, health=WorkloadHealth.UNHEALTHY, labels={"b": "2"}),
            ServedPort(9080),
        ]
    )
    assert workload is not None
    assert workload.ports == {"http": 9080, "grpc": 9081, "http-9082": 9082}
    assert workload.address == "127.0.0.2"
    assert workload.health is WorkloadHealth.UNHEALTHY
    assert workload.labels == {"a": "1", "b": "2"}
    assert merge([]) is None


def test_an_address_is_an_address() -> None:
    assert checked(ServedPort(80, address="::")).address == ""
    assert checked(ServedPort(80, address="0.0.0.0")).address == ""
    assert checked(ServedPort(80, address="::1")).address == "::1"
    with pytest.raises(ConfigurationError, match="IP address"):
        checked(ServedPort(80, address="localhost"))
    with pytest.raises(ConfigurationError, match="65535"):
        checked(ServedPort(70000))


def test_the_node_carries_the_registration() -> None:
    settings = load(
        {
            "control_plane": "127.0.0.1:1",
            "auto_register_group": "g",
            "labels": {"app": "web"},
            "workload_name": "w",
        },
        {},
    )
    idle = node_message(settings, None)
    assert "AUTO_REGISTER_GROUP" not in idle.metadata
    workload = merge([ServedPort(80, address="10.0.0.9", labels={"version": "v2"})])
    node = node_message(settings, workload)
    assert node.id == "sidecar~10.0.0.9~w.default~default.svc.cluster.local"
    assert node.metadata["INSTANCE_IPS"] == "10.0.0.9"
    assert dict(node.metadata["LABELS"]) == {"app": "web", "version": "v2"}
    assert dict(node.metadata["MESHSDK_PORTS"]) == {"http": 80}
    assert not health_request(node, workload).HasField("error_detail")
    ill = merge([ServedPort(80, health=WorkloadHealth.DRAINING)])
    assert health_request(node, ill).error_detail.message == "draining"
    assert health_request(node, None).error_detail.code == 1


# --- callbacks and waiting -------------------------------------------------------------------


def test_callbacks_live_as_long_as_their_owners() -> None:
    called: list[str] = []

    class Owner:
        def method(self) -> None:
            called.append("method")

    owner = Owner()
    callbacks = WeakCallbacks()
    callbacks.add(owner.method)
    callbacks.add(lambda: called.append("function"))
    gc.collect()
    for callback in callbacks:
        callback()
    assert called == ["method", "function"]
    del owner
    gc.collect()
    for callback in callbacks:
        callback()
    assert called == ["method", "function", "function"]


def test_waiters_see_what_becomes_true() -> None:
    waiters = Waiters()
    ready: list[bool] = []
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(waiters.wait(lambda: bool(ready), 5)))
    thread.start()
    ready.append(True)
    waiters.wake()
    thread.join()
    assert seen == [True]
    assert not waiters.wait(lambda: False, 0)


async def test_waiting_coroutines_end_in_time_and_are_forgotten() -> None:
    waiters = Waiters()
    started = time.monotonic()
    assert not await waiters.wait_async(lambda: False, 0.05)
    assert time.monotonic() - started < 2
    task = asyncio.create_task(waiters.wait_async(lambda: False, 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not waiters._coroutines


def test_waking_a_coroutine_whose_loop_is_closed_harms_nobody() -> None:
    waiters = Waiters()
    due: list[bool] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(waiters.wait_async(lambda: bool(due), 60))
    loop.run_until_complete(asyncio.sleep(0))
    left = set(waiters._coroutines)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    waiters._coroutines |= left
    due.append(True)
    waiters.wake()


# --- transport and configuration -------------------------------------------------------------


def test_a_token_goes_over_tls_or_a_unix_socket_only(tmp_path: Any) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    bearer = [("authorization", "Bearer secret")]
    assert _metadata(Server("unix:///etc/istio/proxy/XDS", token_file=str(token))) == bearer
    assert _metadata(Server("10.0.0.1:15010", token_file=str(token))) == []
    assert _metadata(Server("unix:///x")) == []


def test_an_error_without_a_status_is_described_too() -> None:
    import grpc

    assert _described(grpc.RpcError("odd")) == "odd"


def test_the_snapshot_is_the_same_object_while_nothing_changes() -> None:
    settings = load({"control_plane": "127.0.0.1:1"}, {})
    first = Snapshot()
    configuration = Configuration(node_message(settings, None), ByName("default"), 10, first)
    assert configuration.snapshot() is first
    configuration.want(["a:80"], 0.0)
    assert configuration.snapshot() is first
    assert configuration.wanted
    assert not configuration.complete
    assert [r.type_url for r in configuration.machine.connected(0.0)] == [LDS]
    configuration.tick(100.0)  # the control plane never answers: it does not exist
    assert configuration.complete
    view = configuration.snapshot().view("a:80")
    assert view is not None
    assert "does not exist" in view.absent
    assert configuration.subscribed()[EDS] == frozenset()
    assert configuration.want(["a:80"], 101.0) == []


def test_what_saved_routes_name_and_the_file_lacks_holds_up_nothing() -> None:
    # Without a control plane nobody would ever say that the missing cluster does not exist.
    settings = load({"control_plane": "127.0.0.1:1"}, {})
    routes = [route("gone", prefix="/v3"), route("here")]
    parts = {
        LDS: resources.listener("a:80", rds="routes"),
        RDS: resources.route_configuration("routes", routes),
        CDS: resources.cluster("here"),
    }
    names = {LDS: "a:80", RDS: "routes", CDS: "here"}
    saved = {url: {names[url]: part.SerializeToString()} for url, part in parts.items()}
    configuration = Configuration(node_message(settings, None), ByName("default"), 10, Snapshot())
    configuration.restore(Saved(saved, {}, 1.0), 0.0)
    configuration.want_restored(0.0)
    view = configuration.snapshot().view("a:80")
    assert view is not None
    assert set(view.clusters) == {"here"}, "the missing one is 503 NC, as with a control plane"
    with pytest.raises(NoHealthyUpstream):
        view.clusters["here"].pick(random.random)
