"""Which headers of a received request travel on, and where they are visible."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshsdk import propagation
from meshsdk.errors import ConfigurationError
from meshsdk.inbound import Inbound
from meshsdk.propagation import TRACE_HEADERS, carried, extra_names, outgoing, outgoing_metadata

TRACEPARENT = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

names = st.sampled_from([*sorted(TRACE_HEADERS), "accept", "end-user", "cookie", "x-tenant-bin"])
values = st.one_of(st.text(max_size=20), st.binary(max_size=8))
headers = st.lists(st.tuples(names, values), max_size=12)


def fixed() -> str:
    return "made"


@given(headers)
def test_what_is_carried_can_be_sent_by_both_protocols(
    pairs: list[tuple[str, str | bytes]],
) -> None:
    result = carried(pairs, {"end-user"}, fixed)
    for name, value in result.headers:
        assert name in TRACE_HEADERS or name == "end-user"
        assert value == value.strip()
        assert value
        assert value.isascii()
        assert value.isprintable()
        assert not name.endswith("-bin")
    for name, value in result.metadata:
        assert isinstance(value, bytes) == name.endswith("-bin")
        assert value


@given(headers)
def test_every_request_has_exactly_one_id(pairs: list[tuple[str, str | bytes]]) -> None:
    ids = [v for n, v in carried(pairs, (), fixed).headers if n == "x-request-id"]
    assert len(ids) == 1


@given(headers)
def test_carrying_twice_changes_nothing(pairs: list[tuple[str, str | bytes]]) -> None:
    once = carried(pairs, {"end-user"}, fixed)
    assert carried(once.metadata, {"end-user"}, fixed) == once


def test_b3_and_w3c_and_the_request_id_travel() -> None:
    sent = [
        TRACEPARENT,
        ("tracestate", "congo=t61rcWkgMzE"),
        ("baggage", "user=alice"),
        ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ("x-b3-spanid", "a2fb4a1d1a96d312"),
        ("x-b3-parentspanid", "0020000000000001"),
        ("x-b3-sampled", "1"),
        ("x-b3-flags", "0"),
        ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"),
        ("x-request-id", "abc"),
        ("x-ot-span-context", "a;b;c"),
        ("x-cloud-trace-context", "105445aa7843bc8bf206b12000100000/1;o=1"),
    ]
    assert sorted(carried([*sent, ("accept", "*/*")]).headers) == sorted(sent)


def test_an_empty_header_does_not_travel() -> None:
    assert carried([("x-b3-sampled", ""), ("b3", "  ")], (), fixed).headers == (
        ("x-request-id", "made"),
    )


def test_a_missing_request_id_is_a_random_uuid() -> None:
    first, second = (dict(carried([]).headers)["x-request-id"] for _ in range(2))
    assert uuid.UUID(first).version == 4
    assert first != second


def test_lines_of_a_list_are_joined() -> None:
    pairs = [TRACEPARENT, ("tracestate", "a=1"), ("tracestate", "b=2")]
    assert dict(carried(pairs).headers)["tracestate"] == "a=1,b=2"


@pytest.mark.parametrize(
    "lines",
    [
        [TRACEPARENT, TRACEPARENT],
        [("traceparent", f"{TRACEPARENT[1]},{TRACEPARENT[1]}")],
    ],
)
def test_two_parents_are_none(lines: list[tuple[str, str]]) -> None:
    assert dict(carried([*lines, ("tracestate", "a=1")], (), fixed).headers) == {
        "x-request-id": "made"
    }


def test_binary_trace_goes_to_grpc_only() -> None:
    result = carried([("grpc-trace-bin", b"\x00\x01")], (), fixed)
    assert ("grpc-trace-bin", b"\x00\x01") in result.metadata
    assert "grpc-trace-bin" not in dict(result.headers)


def test_a_value_that_grpc_cannot_send_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    propagation._told.clear()
    for _ in range(2):
        result = carried([("end-user", "Jürgen")], {"end-user"}, fixed)
        assert "end-user" not in dict(result.headers)
    assert [r.getMessage() for r in caplog.records] == [
        "header end-user is not carried to outgoing calls: its value is not printable ASCII"
    ]


# --- configured names ---


def test_configured_names_are_carried_with_all_their_values() -> None:
    inbound = Inbound({"MESHSDK_PROPAGATE": " End-User, x-tenant ,"})
    received = inbound.receive([("end-user", "jason"), ("x-tenant", "a"), ("x-tenant", "b")], fixed)
    assert received.carried.headers == (
        ("end-user", "jason"),
        ("x-tenant", "a"),
        ("x-tenant", "b"),
        ("x-request-id", "made"),
    )
    assert received.new_request_id == "made"


def test_a_request_with_an_id_gets_no_other() -> None:
    received = Inbound({}).receive([("x-request-id", "theirs")], fixed)
    assert received.new_request_id == ""


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("end user", "'end user' is not a header name"),
        ("x:y", "give names separated by commas"),
        ("Host", "host belongs to one hop"),
        ("content-length", "cannot be carried"),
        ("grpc-timeout", "grpc-timeout belongs to one hop"),
        ("proxy-authorization", "belongs to one hop"),
    ],
)
def test_a_wrong_name_is_said(value: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        extra_names({"MESHSDK_PROPAGATE": value})


# --- where it is visible ---


def test_outside_of_a_request_nothing_is_added() -> None:
    assert outgoing() == ()
    assert outgoing_metadata() == ()


def test_a_request_ends() -> None:
    with propagation.serving([TRACEPARENT, ("x-request-id", "1")]):
        assert TRACEPARENT in outgoing()
        with propagation.serving([("x-request-id", "2")]):
            assert outgoing() == (("x-request-id", "2"),)
        assert TRACEPARENT in outgoing()
    assert outgoing() == ()


def test_a_token_of_another_context_is_harmless() -> None:
    token = contextvars.copy_context().run(propagation.incoming, [TRACEPARENT])
    propagation.reset(token)
    assert outgoing() == ()


async def test_tasks_and_threads_of_a_request_see_it_and_others_do_not() -> None:
    async def request(number: int) -> list[str]:
        with propagation.serving([("x-request-id", str(number))]):
            await asyncio.sleep(0)
            inner = await asyncio.create_task(asyncio.to_thread(outgoing))
            return [dict(seen)["x-request-id"] for seen in (inner, outgoing())]

    answers = await asyncio.gather(*(request(n) for n in range(20)))
    assert answers == [[str(n), str(n)] for n in range(20)]
    assert outgoing() == ()


def test_a_thread_of_a_pool_inherits_by_copied_context_only() -> None:
    with ThreadPoolExecutor(1) as pool, propagation.serving([("x-request-id", "1")]):
        context = contextvars.copy_context()
        assert pool.submit(context.run, outgoing).result() == (("x-request-id", "1"),)
        assert pool.submit(outgoing).result() == ()
    assert threading.active_count() >= 1
