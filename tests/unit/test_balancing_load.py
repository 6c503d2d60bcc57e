"""Weights of load reports, and the reports themselves."""

from __future__ import annotations

import base64
import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xds.data.orca.v3 import orca_load_report_pb2

from meshsdk.balancing import ClusterPool, ClusterView, LoadReport
from meshsdk.balancing.endpoint import EndpointState, LoadWeight, Usability, weight_of
from meshsdk.balancing.pickers import stride_picker, strides
from meshsdk.model import (
    Assignment,
    Balancing,
    Cluster,
    Endpoint,
    LbConfig,
    LoadReports,
    LocalityEndpoints,
)
from meshsdk.xds.decode.orca import REPORT, REPORT_BIN, load_report, load_report_of_headers

WRR = Balancing.CLIENT_SIDE_WEIGHTED_ROUND_ROBIN


@pytest.mark.parametrize(
    ("report", "how", "weight"),
    [
        (LoadReport(cpu_utilization=0.5, qps=100), LoadReports(), 200),
        (
            LoadReport(application_utilization=0.25, cpu_utilization=0.5, qps=100),
            LoadReports(),
            400,
        ),
        (LoadReport(cpu_utilization=0.5, qps=100, eps=50), LoadReports(), 100),
        (
            LoadReport(cpu_utilization=0.5, qps=100, eps=50),
            LoadReports(error_utilization_penalty=0),
            200,
        ),
        (LoadReport(cpu_utilization=0.5), LoadReports(), 0),
        (LoadReport(qps=100), LoadReports(), 0),
        (
            LoadReport(cpu_utilization=0.9, qps=10, named_metrics={"x": 0.1, "y": 0.2}),
            LoadReports(metric_names=("named_metrics.x", "named_metrics.y", "mem_utilization")),
            50,
        ),
        (
            LoadReport(cpu_utilization=0.5, qps=10, utilization={"a": 0.1, "b": 0.2}),
            LoadReports(metric_names=("utilization.*",)),
            50,
        ),
        (
            LoadReport(cpu_utilization=0.5, qps=10),
            LoadReports(metric_names=("named_metrics.none", "nonsense", "what.ever")),
            20,
        ),
    ],
)
def test_weights_of_reports(report: LoadReport, how: LoadReports, weight: float) -> None:
    assert weight_of(report, how) == pytest.approx(weight)


def test_a_weight_is_used_after_the_blackout_and_until_it_expires() -> None:
    weight = LoadWeight(LoadReports(blackout_period=10, weight_expiration_period=60))
    report = LoadReport(cpu_utilization=0.5, qps=100)
    assert weight.at(0.0) == (0.0, Usability.NOT_YET)
    weight.report(report, 100.0)
    assert weight.at(109.9) == (0.0, Usability.NOT_YET)
    assert weight.at(110.0) == (200.0, Usability.USABLE)
    weight.report(LoadReport(), 150.0)  # says nothing, changes nothing
    assert weight.at(159.9) == (200.0, Usability.USABLE)
    assert weight.at(160.0) == (0.0, Usability.STALE)
    weight.report(report, 170.0)
    assert weight.at(175.0) == (0.0, Usability.NOT_YET)
    assert weight.at(180.0) == (200.0, Usability.USABLE)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_strides(weights: list[float]) -> None:
    parts = strides(weights)
    known = [weight for weight in weights if weight > 0]
    if len(known) < 2:
        assert parts is None
        return
    assert parts is not None
    assert all(1 <= part <= 65535 for part in parts)
    assert max(parts) <= 10.5 * sum(parts) / len(parts) or len(parts) < 11
    unknown = {part for part, weight in zip(parts, weights, strict=True) if weight <= 0}
    assert len(unknown) <= 1


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_a_stride_gives_each_its_part(weights: list[int]) -> None:
    states = tuple(EndpointState(Endpoint("a", 1 + i), Cluster("c")) for i in range(len(weights)))
    parts = strides([float(weight) for weight in weights])
    assert parts is not None
    pick = stride_picker(states, parts, itertools.count(0).__next__)
    turns = 200 * sum(weights)
    got = Counter(pick(random.random).endpoint.port for _ in range(turns))
    for i, weight in enumerate(weights):
        assert got[1 + i] / turns == pytest.approx(weight / sum(weights), rel=0.05)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def weighted(clock: Clock, count: int = 3, **how: float) -> ClusterView:
    load = LocalityEndpoints(tuple(Endpoint("10.0.0.1", 1 + i) for i in range(count)))
    lb = LbConfig(load_reports=LoadReports(**how))  # type: ignore[arg-type]
    pool = ClusterPool(random.Random(1).random, clock)
    return pool.view(Cluster("c", balancing=WRR, lb=lb), Assignment("c", (load,)))


def share(found: ClusterView, turns: int = 3000) -> list[float]:
    got = Counter(found.choose(random.random).endpoint.port for _ in range(turns))
    return [got[1 + i] / turns for i in range(len(found.endpoints))]


def test_calls_follow_the_load_that_is_reported() -> None:
    clock = Clock()
    found = weighted(clock, blackout_period=0, weight_expiration_period=60)
    assert share(found) == pytest.approx([1 / 3] * 3, abs=0.01)
    for state, used in zip(found.endpoints, (0.2, 0.4, 0.4), strict=True):
        state.report(LoadReport(cpu_utilization=used, qps=100), clock.now)
    assert share(found) == pytest.approx([1 / 3] * 3, abs=0.01)  # not before the next update
    clock.now += 1
    assert share(found) == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    clock.now += 60
    assert share(found) == pytest.approx([1 / 3] * 3, abs=0.01)


def test_one_that_reports_nothing_gets_the_mean() -> None:
    clock = Clock()
    found = weighted(clock, blackout_period=0)
    for state, used in zip(found.endpoints, (0.2, 0.4), strict=False):
        state.report(LoadReport(cpu_utilization=used, qps=100), clock.now)
    clock.now += 1
    assert share(found) == pytest.approx([4 / 9, 2 / 9, 3 / 9], abs=0.01)


def test_weights_survive_a_change_of_configuration() -> None:
    clock = Clock()
    pool = ClusterPool(random.Random(1).random, clock)
    cluster = Cluster("c", balancing=WRR, lb=LbConfig(load_reports=LoadReports(0.0)))

    def load(count: int) -> Assignment:
        hosts = tuple(Endpoint("10.0.0.1", 1 + i) for i in range(count))
        return Assignment("c", (LocalityEndpoints(hosts),))

    for state, used in zip(pool.view(cluster, load(2)).endpoints, (0.1, 0.3), strict=True):
        state.report(LoadReport(cpu_utilization=used, qps=90), clock.now)
    assert share(pool.view(cluster, load(3))) == pytest.approx([3 / 6, 1 / 6, 2 / 6], abs=0.01)


def test_other_policies_take_no_reports() -> None:
    load = Assignment("c", (LocalityEndpoints((Endpoint("10.0.0.1", 1),)),))
    (state,) = ClusterPool(random.random).view(Cluster("c"), load).endpoints
    state.report(LoadReport(cpu_utilization=0.5, qps=1), 0.0)
    assert state.load is None


# --- reports ---------------------------------------------------------------------------------

MESSAGE = orca_load_report_pb2.OrcaLoadReport(
    cpu_utilization=0.5, rps_fractional=10, eps=1, named_metrics={"x": 2}
)
RAW = MESSAGE.SerializeToString()
FOUND = LoadReport(cpu_utilization=0.5, qps=10, eps=1, named_metrics={"x": 2})


def test_a_report_of_grpc() -> None:
    assert load_report(RAW) == FOUND
    assert load_report(b"\xff") is None


@pytest.mark.parametrize(
    ("headers", "report"),
    [
        ({REPORT_BIN: base64.b64encode(RAW).decode()}, FOUND),
        ({REPORT_BIN: base64.b64encode(RAW).decode().rstrip("=")}, FOUND),
        ({REPORT: "BIN " + base64.b64encode(RAW).decode()}, FOUND),
        (
            {REPORT: "TEXT cpu_utilization=0.5, rps_fractional=10,eps=1,named_metrics.x=2"},
            FOUND,
        ),
        (
            {REPORT: 'JSON {"cpu_utilization": 0.5, "rps_fractional": 10, "eps": 1, '
                     '"named_metrics": {"x": 2}, "future": 1}'},
            FOUND,
        ),
        ({}, None),
        ({REPORT_BIN: "%%"}, None),
        ({REPORT: "TEXT cpu_utilization"}, None),
        ({REPORT: "TEXT nonsense=1"}, None),
        ({REPORT: "JSON {"}, None),
        ({REPORT: "JSON []"}, None),
        ({REPORT: "XML <a/>"}, None),
    ],
)  # fmt: skip
def test_reports_in_headers(headers: dict[str, str], report: LoadReport | None) -> None:
    assert load_report_of_headers(headers.get) == report
