"""Whose limit ends a call, and what its end means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshsdk._grpc.attempt import Limit

CANCELLED = grpc.StatusCode.CANCELLED
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
SECONDS = st.none() | st.integers(1, 5).map(float)


def forward(route: float | None, cap: float | None = None) -> Any:
    return SimpleNamespace(timeout=route, max_grpc_timeout=cap)


@given(own=SECONDS, route=SECONDS, cap=SECONDS)
def test_the_least_bound_counts_and_the_cap_is_for_own_deadlines(
    own: float | None, route: float | None, cap: float | None
) -> None:
    limit = Limit(own, forward(route, cap), 100.0)
    bounds = [b for b in (own, route, cap if own is not None else None) if b is not None]
    least = min(bounds, default=None)
    assert limit.left(100.0) == least
    assert (limit.expires is None) == (least == own)
    if least is not None:
        assert limit.left(100.0 + least + 1) == 0.0


@given(own=SECONDS, route=SECONDS, cap=SECONDS)
def test_a_stream_of_requests_has_the_timeout_from_its_end(
    own: float | None, route: float | None, cap: float | None
) -> None:
    limit = Limit(own, forward(route, cap), 100.0, streams=True)
    bounds = [b for b in (own, cap if own is not None and cap != route else None) if b is not None]
    deadline = min(bounds, default=None)
    assert limit.left(100.0) == deadline
    before = route is not None and (deadline is None or 2.0 + route < deadline)
    assert limit.of_request_end(102.0) == (route if before else None)


@pytest.mark.parametrize(
    ("code", "details", "now", "passed"),
    [
        (DEADLINE_EXCEEDED, "Deadline Exceeded", 101.0, True),
        (DEADLINE_EXCEEDED, "Stream removed (Deadline Exceeded)", 101.0, True),
        (DEADLINE_EXCEEDED, "Deadline Exceeded", 100.9, False),
        (DEADLINE_EXCEEDED, "the server says so", 101.0, False),
        (CANCELLED, "Deadline Exceeded", 101.0, False),
    ],
)
def test_an_end_by_the_limit(code: Any, details: str, now: float, passed: bool) -> None:
    assert Limit(5.0, forward(1.0), 100.0).passed(code, details, now) is passed
    assert not Limit(1.0, forward(1.0), 100.0).passed(code, details, now)
    assert not Limit(None, forward(None), 100.0).passed(code, details, now)


def test_a_stream_that_was_cut() -> None:
    limit = Limit(None, forward(1.0), 100.0, streams=True)
    assert not limit.passed(CANCELLED, "", 102.0)
    limit.cut = True
    assert limit.passed(CANCELLED, "", 102.0)
    assert not limit.passed(DEADLINE_EXCEEDED, "Deadline Exceeded", 102.0)
