"""The ADS client machine: nonces, versions, ACK, NACK, absence, timers, the cache from disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshsdk.errors import InvalidResource
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, Status
from meshsdk.xds.stream import AdsMachine, Received
from tests.support.resources import cluster, endpoints, listener, pack, route, route_configuration

NODE = base_pb2.Node(id="sidecar~10.0.0.1~app.default~default.svc.cluster.local")


def machine() -> AdsMachine:
    return AdsMachine(NODE, DECODERS, does_not_exist_after=15.0)


def response(
    type_url: str,
    resources: Iterable[Message | any_pb2.Any],
    version: str = "1",
    nonce: str = "",
    errors: dict[str, tuple[int, str]] | None = None,
) -> discovery_pb2.DiscoveryResponse:
    made = discovery_pb2.DiscoveryResponse(
        type_url=type_url, version_info=version, nonce=nonce or f"n{version}"
    )
    for item in resources:
        made.resources.append(item if isinstance(item, any_pb2.Any) else pack(item))
    for name, (code, text) in (errors or {}).items():
        error = made.resource_errors.add()
        error.resource_name.name = name
        error.error_detail.code, error.error_detail.message = code, text
    return made


def started(names: Iterable[str] = ("a",), type_url: str = CLUSTER) -> AdsMachine:
    """Connected, with these names asked for in the first request."""
    made = machine()
    made.subscribe(type_url, set(names), 0.0)
    made.connected(0.0)
    return made


def bad_cluster(name: str) -> Message:
    message = cluster(name)
    message.connect_timeout.seconds = -1
    return message


def status(m: AdsMachine, name: str, type_url: str = CLUSTER) -> Status:
    state = m.resource(type_url, name)
    assert state is not None
    return state.status


# --- requests --------------------------------------------------------------------------------


def test_node_only_in_the_first_request_of_a_stream() -> None:
    m = machine()
    m.subscribe(LISTENER, {"l"}, 0.0)
    m.subscribe(CLUSTER, {"c"}, 0.0)
    first, second = m.connected(0.0)
    assert (first.type_url, first.node.id) == (LISTENER, NODE.id)
    assert (second.type_url, second.HasField("node")) == (CLUSTER, False)
    m.disconnected(1.0, "gone")
    assert m.connected(2.0)[0].node.id == NODE.id


def test_first_requests_are_in_the_order_of_the_join() -> None:
    m = machine()
    for url in (ENDPOINT, CLUSTER, ROUTE, LISTENER):
        m.subscribe(url, {"x"}, 0.0)
    assert [r.type_url for r in m.connected(0.0)] == [LISTENER, ROUTE, CLUSTER, ENDPOINT]


def test_node_goes_with_the_first_subscription_when_the_stream_was_empty() -> None:
    m = machine()
    assert m.connected(0.0) == []
    assert m.subscribe(CLUSTER, set(), 0.0) == []
    (request,) = m.subscribe(CLUSTER, {"b", "a"}, 0.0)
    assert request.node.id == NODE.id
    assert list(request.resource_names) == ["a", "b"]


def test_unsubscribing_from_all_is_sent_but_never_as_the_first_request() -> None:
    m = started()
    (request,) = m.subscribe(CLUSTER, set(), 1.0)
    assert list(request.resource_names) == []
    m.disconnected(2.0, "gone")
    assert m.connected(3.0) == []


def test_the_same_names_again_send_nothing() -> None:
    m = started(["a"])
    assert m.subscribe(CLUSTER, ["a"], 1.0) == []
    assert m.subscribed(CLUSTER) == {"a"}


def test_ack_carries_the_new_version_and_nonce() -> None:
    m = started(["a"])
    (ack,) = m.received(response(CLUSTER, [cluster("a")], "7", "n7"), 1.0).requests
    assert (ack.version_info, ack.response_nonce, list(ack.resource_names)) == ("7", "n7", ["a"])
    assert not ack.HasField("error_detail")
    assert m.version(CLUSTER) == "7"


def test_types_have_their_own_versions_and_nonces() -> None:
    m = machine()
    m.subscribe(CLUSTER, {"a"}, 0.0)
    m.subscribe(ENDPOINT, {"a"}, 0.0)
    m.connected(0.0)
    m.received(response(CLUSTER, [cluster("a")], "c1", "nc"), 1.0)
    ack = m.received(response(ENDPOINT, [endpoints("a", [])], "e1", "ne"), 1.0).requests[0]
    assert (ack.version_info, ack.response_nonce) == ("e1", "ne")
    (request,) = m.subscribe(CLUSTER, {"a", "b"}, 2.0)
    assert (request.version_info, request.response_nonce) == ("c1", "nc")


def test_reconnect_sends_the_last_accepted_version_and_no_nonce() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    m.received(response(CLUSTER, [bad_cluster("a")], "2"), 2.0)
    m.disconnected(3.0, "reset")
    assert (m.streaming, m.last_error) == (False, "reset")
    (request,) = m.connected(4.0)
    assert (request.version_info, request.response_nonce) == ("1", "")
    assert (m.streaming, m.last_error, m.answered) == (True, "", False)


def test_reconnect_claims_no_version_while_something_is_awaited() -> None:
    m = started(["a", "b"], ENDPOINT)
    m.received(response(ENDPOINT, [endpoints("a", []), endpoints("b", [])], "1"), 1.0)
    m.subscribe(ENDPOINT, {"a"}, 2.0)
    m.disconnected(3.0, "reset")
    m.subscribe(ENDPOINT, {"a", "b"}, 4.0)
    # A server that knows version 1 as that of a and b would take them for known.
    assert m.connected(5.0)[0].version_info == ""


# --- NACK ------------------------------------------------------------------------------------


def test_nack_names_every_bad_resource_and_its_field_and_keeps_the_version() -> None:
    m = started(["a", "b", "c"])
    m.received(response(CLUSTER, [cluster("a"), cluster("b")], "1"), 1.0)
    bad = [bad_cluster("a"), cluster("b", connect_timeout=9), bad_cluster("c")]
    result = m.received(response(CLUSTER, bad, "2"), 2.0)
    (nack,) = result.requests
    assert (nack.version_info, nack.response_nonce, nack.error_detail.code) == ("1", "n2", 3)
    text = nack.error_detail.message
    assert "2 of 3" in text
    assert NODE.id in text
    assert "Cluster a: connect_timeout" in text
    assert "Cluster c: connect_timeout" in text
    assert [error.field for error in result.rejected] == ["connect_timeout"] * 2


def test_valid_resources_of_a_rejected_response_apply() -> None:
    m = started(["a", "b"])
    result = m.received(response(CLUSTER, [bad_cluster("a"), cluster("b")], "1"), 1.0)
    assert result.changed == {(CLUSTER, "a"), (CLUSTER, "b")}
    a, b = m.resource(CLUSTER, "a"), m.resource(CLUSTER, "b")
    assert a is not None
    assert b is not None
    assert (a.status, a.value, a.error_version) == (Status.NACKED, None, "1")
    assert "was rejected" in a.why_missing
    assert (b.status, b.value.name, b.version) == (Status.ACKED, "b", "1")


def test_last_good_stays_in_use_and_is_confirmed_by_the_same_bytes() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    state = m.resource(CLUSTER, "a")
    assert state is not None
    good = state.value
    result = m.received(response(CLUSTER, [bad_cluster("a")], "2"), 2.0)
    assert result.changed == frozenset()
    assert (state.value, state.status, state.version) == (good, Status.NACKED, "1")
    assert state.error is not None
    assert state.why_missing == ""
    result = m.received(response(CLUSTER, [cluster("a")], "3"), 3.0)
    assert (state.status, state.version, state.error) == (Status.ACKED, "3", None)
    assert result.changed == frozenset()


def test_unchanged_bytes_are_not_decoded_again() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    state = m.resource(CLUSTER, "a")
    assert state is not None
    value = state.value
    result = m.received(response(CLUSTER, [cluster("a")], "2"), 2.0)
    assert state.value is value
    assert (result.changed, state.version) == (frozenset(), "2")


def test_other_bytes_of_the_same_meaning_change_nothing() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    state = m.resource(CLUSTER, "a")
    assert state is not None
    value, other = state.value, cluster("a")
    other.alt_stat_name = "something that the SDK does not look at"
    result = m.received(response(CLUSTER, [other], "2"), 2.0)
    assert state.value is value
    assert state.raw == other.SerializeToString()
    assert result.changed == frozenset()


def test_malformed_bytes_are_rejected_and_nothing_is_concluded_from_absence() -> None:
    m = started(["a", "b"])
    m.received(response(CLUSTER, [cluster("a"), cluster("b")], "1"), 1.0)
    garbage = any_pb2.Any(type_url=CLUSTER, value=b"\xff\xff\xff")
    result = m.received(response(CLUSTER, [cluster("a"), garbage], "2"), 2.0)
    assert "resources[1]" in result.requests[0].error_detail.message
    assert status(m, "b") is Status.ACKED


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (any_pb2.Any(type_url=ENDPOINT, value=b""), "type_url"),
        (pack(cluster("")), "name: must not be empty"),
        (
            any_pb2.Any(
                type_url="type.googleapis.com/envoy.service.discovery.v3.Resource", value=b"\xff"
            ),
            "not an envoy.service.discovery.v3.Resource",
        ),
    ],
)
def test_what_is_no_resource_of_the_type_is_rejected(item: any_pb2.Any, told: str) -> None:
    m = started(["a"])
    result = m.received(response(CLUSTER, [item], "1"), 1.0)
    assert told in result.requests[0].error_detail.message


def test_a_name_that_comes_twice_is_rejected_and_the_first_one_counts() -> None:
    m = started(["a"])
    twice = [cluster("a", connect_timeout=3), cluster("a", connect_timeout=4)]
    result = m.received(response(CLUSTER, twice, "1"), 1.0)
    assert "Cluster a: comes twice" in result.requests[0].error_detail.message
    state = m.resource(CLUSTER, "a")
    assert state is not None
    assert state.value.connect_timeout == 3
    again = m.received(response(CLUSTER, [cluster("a", connect_timeout=3)] * 2, "2"), 1.0)
    assert again.rejected


def test_unknown_type_is_rejected() -> None:
    m = started()
    result = m.received(response("type.googleapis.com/what.Ever", [], "1", "n"), 1.0)
    (nack,) = result.requests
    assert (nack.type_url, nack.response_nonce) == ("type.googleapis.com/what.Ever", "n")
    assert nack.error_detail.code == 3
    assert nack.version_info == ""


def test_a_type_that_was_not_asked_for_is_rejected() -> None:
    m = started()
    result = m.received(response(LISTENER, [listener("l", [route("c")])], "1"), 1.0)
    assert "never asked" in result.requests[0].error_detail.message
    assert m.resource(LISTENER, "l") is None


def test_resources_that_nobody_wants_are_ignored() -> None:
    m = started(["a"])
    result = m.received(response(CLUSTER, [cluster("a"), bad_cluster("z")], "1"), 1.0)
    assert result.rejected == ()
    assert m.resource(CLUSTER, "z") is None
    assert list(m.resources(CLUSTER)) == [m.resource(CLUSTER, "a")]


def test_a_response_when_nothing_is_wanted_any_more_is_acked() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    m.subscribe(CLUSTER, set(), 2.0)
    (ack,) = m.received(response(CLUSTER, [cluster("a")], "2"), 3.0).requests
    assert (ack.version_info, list(ack.resource_names)) == ("2", [])


def test_warnings_name_the_resource() -> None:
    m = started(["a"])
    noted = cluster("a", lb="LEAST_REQUEST")
    noted.least_request_lb_config.active_request_bias.default_value = -1
    result = m.received(response(CLUSTER, [noted], "1"), 1.0)
    assert result.rejected == ()
    assert result.warnings == (
        "Cluster a: least_request_lb_config.active_request_bias: is -1.0, 1 is used, as by Envoy",
    )


# --- wrapped resources -----------------------------------------------------------------------


def wrapped(name: str, inner: Message | None, version: str = "") -> Message:
    made = discovery_pb2.Resource(name=name, version=version)
    if inner is not None:
        made.resource.CopyFrom(pack(inner))
    return made


def test_wrapped_resources_carry_their_own_version() -> None:
    m = started(["a", "b"])
    items = [wrapped("a", cluster("a"), "a7"), wrapped("b", cluster("b"))]
    m.received(response(CLUSTER, items, "1"), 1.0)
    assert [state.version for state in m.resources()] == ["a7", "1"]


def test_a_heartbeat_without_content_means_still_there() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    m.received(response(CLUSTER, [wrapped("a", None)], "2"), 2.0)
    assert status(m, "a") is Status.ACKED


# --- absence and timers ----------------------------------------------------------------------


def test_a_cluster_that_is_missing_in_a_full_answer_is_deleted() -> None:
    m = started(["a", "b"])
    m.received(response(CLUSTER, [cluster("a"), cluster("b")], "1"), 1.0)
    result = m.received(response(CLUSTER, [cluster("b")], "2"), 2.0)
    assert result.changed == {(CLUSTER, "a")}
    assert status(m, "a") is Status.DOES_NOT_EXIST
    assert m.received(response(CLUSTER, [cluster("b")], "3"), 3.0).changed == frozenset()
    back = m.received(response(CLUSTER, [cluster("a"), cluster("b")], "4"), 4.0)
    assert back.changed == {(CLUSTER, "a")}


def test_a_name_of_the_first_request_that_is_not_answered_does_not_exist() -> None:
    m = started(["a", "b"])
    result = m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    assert (CLUSTER, "b") in result.changed
    state = m.resource(CLUSTER, "b")
    assert state is not None
    assert state.why_missing == "Cluster b does not exist"
    assert m.deadline() is None


def test_an_answer_under_way_does_not_delete_what_was_asked_for_later() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    m.subscribe(CLUSTER, {"a", "b"}, 2.0)
    m.received(response(CLUSTER, [cluster("a")], "2"), 3.0)
    m.received(response(CLUSTER, [cluster("a")], "3"), 4.0)
    assert status(m, "b") is Status.REQUESTED
    assert m.deadline() == 17.0


def test_an_answer_with_a_later_name_proves_what_the_server_had_seen() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    m.subscribe(CLUSTER, {"a", "b", "c"}, 2.0)
    result = m.received(response(CLUSTER, [cluster("a"), cluster("b")], "2"), 3.0)
    assert result.changed == {(CLUSTER, "b"), (CLUSTER, "c")}
    assert status(m, "c") is Status.DOES_NOT_EXIST


def test_a_name_that_was_known_before_proves_nothing_new() -> None:
    m = started(["a"])
    m.subscribe(CLUSTER, set(), 1.0)
    m.subscribe(CLUSTER, {"a", "b"}, 2.0)
    # The answer to the very first request, still under way.
    m.received(response(CLUSTER, [cluster("a")], "1"), 3.0)
    assert status(m, "b") is Status.REQUESTED


def test_after_a_reconnect_every_name_is_in_the_first_request() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    m.subscribe(CLUSTER, {"a", "b"}, 2.0)
    m.disconnected(3.0, "reset")
    m.connected(4.0)
    m.received(response(CLUSTER, [cluster("b")], "2"), 5.0)
    assert status(m, "a") is Status.DOES_NOT_EXIST


def test_routes_and_endpoints_that_are_missing_stay() -> None:
    m = started(["a", "b"], ENDPOINT)
    m.received(response(ENDPOINT, [endpoints("a", []), endpoints("b", [])], "1"), 1.0)
    m.received(response(ENDPOINT, [endpoints("a", [])], "2"), 2.0)
    assert status(m, "b", ENDPOINT) is Status.ACKED


def test_does_not_exist_timer_runs_only_on_a_stream_and_only_for_what_never_came() -> None:
    m = machine()
    m.subscribe(ENDPOINT, {"a", "b"}, 0.0)
    assert m.deadline() is None
    m.connected(10.0)
    assert m.deadline() == 25.0
    m.received(response(ENDPOINT, [endpoints("a", [])], "1"), 11.0)
    assert m.deadline() == 25.0
    m.disconnected(12.0, "reset")
    assert m.deadline() is None
    m.connected(20.0)
    assert m.deadline() == 35.0
    assert m.tick(34.9) == frozenset()
    assert m.tick(35.0) == {(ENDPOINT, "b")}
    assert status(m, "b", ENDPOINT) is Status.DOES_NOT_EXIST
    m.disconnected(36.0, "reset")
    m.connected(37.0)
    assert m.deadline() is None


def test_receipt_cancels_the_timer_be_it_good_or_bad() -> None:
    m = started(["a", "b"], CLUSTER)
    m.received(response(CLUSTER, [cluster("a"), bad_cluster("b")], "1"), 1.0)
    assert m.deadline() is None
    assert m.tick(1e9) == frozenset()


def test_unsubscribing_forgets_state_and_timer() -> None:
    m = started(["a", "b"], ENDPOINT)
    m.received(response(ENDPOINT, [endpoints("a", [])], "1"), 1.0)
    m.subscribe(ENDPOINT, set(), 2.0)
    assert list(m.resources()) == []
    assert m.deadline() == 7.0
    assert m.tick(7.0) == frozenset()
    assert m.deadline() is None
    assert m.resource(ENDPOINT, "a") is None
    m.subscribe(ENDPOINT, {"a"}, 8.0)
    assert status(m, "a", ENDPOINT) is Status.REQUESTED


def test_what_is_wanted_again_at_once_is_taken_back() -> None:
    """The server may not have seen that it was let go, and sends it no more."""
    m = started(["a", "b"], ENDPOINT)
    m.received(response(ENDPOINT, [endpoints("a", [])], "1"), 1.0)
    m.subscribe(ENDPOINT, set(), 2.0)
    state = m.resource(ENDPOINT, "a")
    m.subscribe(ENDPOINT, {"a", "b"}, 3.0)
    assert m.resource(ENDPOINT, "a") is state
    assert status(m, "a", ENDPOINT) is Status.ACKED
    assert status(m, "b", ENDPOINT) is Status.REQUESTED
    assert m.received(response(ENDPOINT, [endpoints("a", [])], "2"), 4.0).changed == frozenset()


def test_what_was_taken_back_and_is_not_there_any_more_is_given_up_in_time() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    m.subscribe(CLUSTER, set(), 2.0)
    m.subscribe(CLUSTER, {"a"}, 3.0)
    # Sent before or after the server saw the last request: nobody knows.
    assert m.received(response(CLUSTER, [], "2"), 4.0).changed == frozenset()
    assert m.deadline() == 19.0
    assert m.tick(19.0) == {(CLUSTER, "a")}


def test_what_was_let_go_is_forgotten_with_the_stream() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    m.subscribe(CLUSTER, set(), 2.0)
    m.disconnected(3.0, "reset")
    m.subscribe(CLUSTER, {"a"}, 3.0)
    assert status(m, "a") is Status.REQUESTED


# --- resource errors (xRFC TP3) --------------------------------------------------------------


def test_not_found_ends_the_wait_at_once() -> None:
    m = started(["a"], ENDPOINT)
    result = m.received(response(ENDPOINT, [], "1", errors={"a": (5, "unknown subset")}), 1.0)
    assert result.changed == {(ENDPOINT, "a")}
    assert status(m, "a", ENDPOINT) is Status.DOES_NOT_EXIST
    assert m.deadline() is None


def test_other_errors_keep_what_is_good_and_say_why() -> None:
    m = started(["a", "b"])
    m.received(response(CLUSTER, [cluster("a")], "1", errors={"b": (7, "not for you")}), 1.0)
    assert status(m, "b") is Status.RECEIVED_ERROR
    b = m.resource(CLUSTER, "b")
    assert b is not None
    assert "code 7: not for you" in b.why_missing
    m.received(response(CLUSTER, [], "2", errors={"a": (13, "oops"), "b": (5, "")}), 2.0)
    a = m.resource(CLUSTER, "a")
    assert a is not None
    assert a.value is not None
    assert a.error is not None
    assert status(m, "b") is Status.DOES_NOT_EXIST


def test_errors_of_names_that_came_or_are_not_wanted_are_ignored() -> None:
    m = started(["a"])
    m.received(response(CLUSTER, [cluster("a")], "1", errors={"a": (5, ""), "z": (5, "")}), 1.0)
    assert status(m, "a") is Status.ACKED
    assert m.resource(CLUSTER, "z") is None


# --- from disk -------------------------------------------------------------------------------


def restored(m: AdsMachine, message: Message, name: str = "a") -> None:
    m.restore(CLUSTER, name, message.SerializeToString(), "disk")


def test_what_was_restored_serves_and_is_asked_for_without_its_version() -> None:
    m = machine()
    restored(m, cluster("a"))
    m.subscribe(CLUSTER, {"a"}, 0.0)
    state = m.resource(CLUSTER, "a")
    assert state is not None
    assert (state.value.name, state.restored, state.arrived) == ("a", True, True)
    assert m.unconfirmed
    (request,) = m.connected(0.0)
    assert request.version_info == ""
    assert m.deadline() is None
    result = m.received(response(CLUSTER, [cluster("a")], "1"), 1.0)
    assert result.changed == frozenset()
    assert not m.unconfirmed


def test_a_restored_resource_may_come_after_its_subscription() -> None:
    m = started(["a"])
    assert m.deadline() is not None
    restored(m, cluster("a"))
    assert m.deadline() is None
    assert m.unconfirmed


def test_the_control_plane_has_the_last_word() -> None:
    m = machine()
    restored(m, cluster("a"))
    restored(m, cluster("b"), "b")
    restored(m, cluster("c"), "c")
    m.subscribe(CLUSTER, {"a", "b"}, 0.0)
    m.subscribe(CLUSTER, {"a"}, 0.0)
    kept = m.resource(CLUSTER, "b")
    assert kept is not None
    m.connected(0.0)
    m.received(response(CLUSTER, [], "1"), 1.0)
    assert status(m, "a") is Status.DOES_NOT_EXIST
    assert m.resource(CLUSTER, "b") is None
    restored(m, cluster("c"), "c")
    assert m.resource(CLUSTER, "c") is None


def test_restoring_over_what_is_known_changes_nothing() -> None:
    m = machine()
    restored(m, cluster("a", connect_timeout=1))
    restored(m, cluster("a", connect_timeout=2))
    state = m.resource(CLUSTER, "a")
    assert state is not None
    assert state.value.connect_timeout == 1


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"\xff", "not a envoy.config.cluster"),
        (cluster("other").SerializeToString(), "name: the name is 'other'"),
        (bad_cluster("a").SerializeToString(), "connect_timeout"),
    ],
)
def test_unusable_bytes_from_disk_are_refused(raw: bytes, told: str) -> None:
    m = machine()
    with pytest.raises(InvalidResource, match=told):
        m.restore(CLUSTER, "a", raw, "1")
    assert m.resource(CLUSTER, "a") is None


# --- properties ------------------------------------------------------------------------------


class Conversation(RuleBasedStateMachine):
    """A client and a lossless but slow server; the server keeps the rules of xDS.

    Requests and responses travel in queues, so that they cross each other in every way.
    """

    names = st.sets(st.sampled_from("abcd"))

    def __init__(self) -> None:
        super().__init__()
        self.client = machine()
        self.client.connected(0.0)
        self.now = 0.0
        self.exists: dict[str, bool] = {}
        self.to_server: list[Any] = []
        self.to_client: list[Any] = []
        self.nonces = 0
        self.last_nonce = ""
        self.asked: frozenset[str] = frozenset()
        self.good_version = ""

    @rule(wanted=names)
    def subscribe(self, wanted: set[str]) -> None:
        for request in self.client.subscribe(CLUSTER, wanted, self.now):
            self.to_server.append(request)

    @rule(name=st.sampled_from("abcd"), good=st.booleans(), there=st.booleans())
    def change_world(self, name: str, good: bool, there: bool) -> None:
        if there:
            self.exists[name] = good
        else:
            self.exists.pop(name, None)

    @precondition(lambda self: not self.client.streaming)
    @rule()
    def connect(self) -> None:
        self.to_server, self.to_client = [], []
        self.last_nonce, self.asked = "", frozenset()
        if any(s.status is Status.REQUESTED for s in self.client.resources(CLUSTER)):
            self.good_version = ""
        requests = self.client.connected(self.now)
        for request in requests:
            assert request.response_nonce == ""
            assert request.version_info == self.good_version
        self.to_server += requests

    # Now and then only: what crosses on one stream is the interesting part.
    @precondition(lambda self: self.client.streaming and self.nonces % 4 == 3)
    @rule()
    def disconnect(self) -> None:
        self.client.disconnected(self.now, "reset")
        self.to_server, self.to_client = [], []

    @precondition(lambda self: self.to_server)
    @rule()
    def server_reads(self) -> None:
        request = self.to_server.pop(0)
        if request.response_nonce != self.last_nonce:
            return  # stale: dropped, the next request repeats all names
        self.asked = frozenset(request.resource_names)

    @precondition(lambda self: self.asked and self.client.streaming)
    @rule()
    def server_sends(self) -> None:
        self.nonces += 1
        self.last_nonce = str(self.nonces)
        found = [
            cluster(name) if self.exists[name] else bad_cluster(name)
            for name in sorted(self.asked & self.exists.keys())
        ]
        message = response(CLUSTER, found, f"v{self.nonces}", self.last_nonce)
        self.to_client.append((message, self.asked, frozenset(self.exists)))

    @precondition(lambda self: self.to_client)
    @rule()
    def client_reads(self) -> None:
        message, asked, existed = self.to_client.pop(0)
        wanted = self.client.subscribed(CLUSTER)
        result: Received = self.client.received(message, self.now)
        (reply,) = result.requests
        assert reply.response_nonce == message.nonce
        assert set(reply.resource_names) == wanted
        if result.rejected:
            assert reply.error_detail.code == 3
            assert reply.version_info == self.good_version
        else:
            self.good_version = message.version_info
            assert reply.version_info == message.version_info
        self.to_server.append(reply)
        for _, name in result.changed:
            if status(self.client, name) is Status.DOES_NOT_EXIST:
                # Sound: the server had been asked for it and had not got it.
                assert name in asked - existed

    @rule(seconds=st.sampled_from([1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.client.deadline()
        if self.client.tick(self.now):
            assert deadline is not None
            assert deadline <= self.now
        following = self.client.deadline()
        assert following is None or following > self.now

    @invariant()
    def the_cache_holds_what_is_subscribed(self) -> None:
        names = {state.name for state in self.client.resources(CLUSTER)}
        assert names == self.client.subscribed(CLUSTER)

    @invariant()
    def a_timer_runs_for_what_is_awaited_on_a_stream(self) -> None:
        waiting = any(s.status is Status.REQUESTED for s in self.client.resources(CLUSTER))
        if waiting and self.client.streaming:
            assert self.client.deadline() is not None
        if not self.client.streaming:
            assert self.client.deadline() is None

    def teardown(self) -> None:
        """Whatever happened: with a quiet world both ends come to agree."""
        if self.client.streaming:
            self.disconnect()
        self.connect()
        if self.to_server:
            self.server_reads()
            self.server_sends()
            self.client_reads()
        for state in self.client.resources(CLUSTER):
            if state.name not in self.exists:
                assert state.status is Status.DOES_NOT_EXIST
            else:
                good = self.exists[state.name]
                assert state.status is (Status.ACKED if good else Status.NACKED)
                assert state.value is not None or not good


Conversation.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestConversation = Conversation.TestCase


@given(raw=st.binary(max_size=60), url=st.sampled_from([LISTENER, ROUTE, CLUSTER, ENDPOINT]))
def test_no_bytes_make_it_fail(raw: bytes, url: str) -> None:
    m = started(["a"], url)
    result = m.received(response(url, [any_pb2.Any(type_url=url, value=raw)], "1"), 1.0)
    assert len(result.requests) == 1


def test_route_configurations_go_through_the_same_machine() -> None:
    m = started(["r"], ROUTE)
    result = m.received(response(ROUTE, [route_configuration("r", [route("c")])], "1"), 1.0)
    assert result.changed == {(ROUTE, "r")}
