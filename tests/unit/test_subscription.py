"""The state of one ADS stream: names, versions, nonces, ACK and NACK, wildcards, order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.translate.resources import CDS, EDS, LDS, RDS
from controlplane.xds.subscription import (
    ACK_OVERDUE,
    Request,
    Resource,
    Response,
    Subscription,
    Sync,
    Verdict,
)


class Store:
    """Resources by type and name, as text."""

    def __init__(self) -> None:
        self.content: dict[tuple[str, str], str] = {}

    def set(self, type_url: str, **content: str) -> None:
        self.content.update({(type_url, name): text for name, text in content.items()})

    def lookup(self, type_url: str, name: str) -> Resource | None:
        text = self.content.get((type_url, name))
        if text is None:
            return None
        body = f"{type_url}/{name}={text}".encode()
        digest = int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "big")
        return Resource(name, digest, body)

    def listing(self, type_url: str) -> list[str]:
        return [name for kind, name in self.content if kind == type_url]


class Stream:
    """A subscription, its store and a clock."""

    def __init__(self, *, deny: bool = False, warming: bool = False) -> None:
        self.store = Store()
        self.subscription = Subscription(deny=deny, warming=warming)
        self.generation = 1
        self.now = 0.0

    def ask(self, type_url: str, *names: str, version: str = "", nonce: str = "") -> Verdict:
        request = Request(type_url, names, version, nonce)
        return self._receive(request)

    def _receive(self, request: Request) -> Verdict:
        return self.subscription.receive(request, self.store.lookup, self.store.listing, self.now)

    def ack(self, response: Response, *names: str) -> Verdict:
        wanted = names or tuple(sorted(self.subscription.types[response.type_url].names))
        return self._receive(Request(response.type_url, wanted, response.version, response.nonce))

    def nack(self, response: Response, error: str = "bad") -> Verdict:
        state = self.subscription.types[response.type_url]
        names = tuple(sorted(state.names))
        return self._receive(
            Request(response.type_url, names, state.acked_version, response.nonce, error)
        )

    def next(self) -> Response | None:
        return self.subscription.next(self.store.lookup, self.generation, self.now)

    def change(self, type_url: str, **content: str | None) -> None:
        for name, text in content.items():
            if text is None:
                self.store.content.pop((type_url, name), None)
            else:
                self.store.set(type_url, **{name: text})
        self.generation += 1
        self.subscription.touch(type_url, content)

    def sync(self, type_url: str) -> Sync:
        return self.subscription.types[type_url].sync


def names(response: Response | None) -> list[str]:
    assert response is not None
    return [resource.name for resource in response.resources]


@pytest.fixture
def stream() -> Stream:
    made = Stream()
    made.store.set(LDS, a="1", b="1")
    made.store.set(CDS, a="1", b="1")
    made.store.set(RDS, a="1", b="1")
    made.store.set(EDS, a="1", b="1")
    return made


def test_what_is_asked_for_is_sent_once(stream: Stream) -> None:
    assert stream.ask(LDS, "a") is Verdict.FIRST
    response = stream.next()
    assert names(response) == ["a"]
    assert stream.sync(LDS) is Sync.STALE
    assert response is not None
    assert stream.ack(response) is Verdict.ACK
    assert stream.sync(LDS) is Sync.SYNCED
    assert stream.next() is None


def test_a_stale_nonce_is_dropped_whole(stream: Stream) -> None:
    stream.ask(LDS, "a")
    first = stream.next()
    assert first is not None
    stream.ack(first)
    stream.change(LDS, a="2")
    second = stream.next()
    assert second is not None
    assert second.nonce != first.nonce
    request = Request(LDS, ("a", "b"), first.version, first.nonce, "too late")
    assert stream._receive(request) is Verdict.STALE
    assert stream.subscription.types[LDS].names == {"a"}
    assert stream.sync(LDS) is Sync.STALE
    assert stream.ack(second) is Verdict.ACK


def test_a_nack_is_kept_and_not_answered_with_the_same_again(stream: Stream) -> None:
    stream.ask(RDS, "a")
    response = stream.next()
    assert response is not None
    assert stream.nack(response, "a: no such field") is Verdict.NACK
    assert stream.sync(RDS) is Sync.NACKED
    state = stream.subscription.types[RDS]
    assert (state.error, state.rejected_version) == ("a: no such field", response.version)
    stream.change(RDS, a="1")
    assert stream.next() is None
    stream.change(RDS, a="2")
    better = stream.next()
    assert better is not None
    stream.ack(better)
    assert stream.sync(RDS) is Sync.SYNCED
    assert not state.error


def test_new_names_are_answered_though_nothing_changed(stream: Stream) -> None:
    stream.ask(EDS, "a")
    response = stream.next()
    assert response is not None
    stream.ack(response, "a", "b")
    assert names(stream.next()) == ["b"]  # partial: what is known already is not sent again


def test_full_state_types_always_hold_everything(stream: Stream) -> None:
    stream.ask(CDS, "a")
    response = stream.next()
    assert response is not None
    stream.ack(response, "a", "b")
    assert names(stream.next()) == ["a", "b"]


def test_an_absent_listener_is_answered_by_leaving_it_out(stream: Stream) -> None:
    stream.ask(LDS, "nowhere")
    assert names(stream.next()) == []


@pytest.mark.parametrize("type_url", [RDS, EDS])
def test_routes_and_endpoints_that_are_absent_are_not_spoken_of(
    stream: Stream, type_url: str
) -> None:
    stream.ask(type_url, "nowhere")
    assert stream.next() is None
    stream.change(type_url, nowhere="1")
    assert names(stream.next()) == ["nowhere"]


@pytest.mark.parametrize("type_url", [LDS, CDS, RDS, EDS])
def test_clients_that_want_to_hear_of_absence_hear_of_it_once(type_url: str) -> None:
    stream = Stream(deny=True)
    stream.ask(type_url, "nowhere")
    response = stream.next()
    assert response is not None
    assert response.missing == ("nowhere",)
    stream.ack(response)
    stream.change(type_url, nowhere=None)
    assert stream.next() is None
    stream.change(type_url, nowhere="1")
    found = stream.next()
    assert names(found) == ["nowhere"]
    assert found is not None
    assert not found.missing


def test_no_names_at_first_is_a_wildcard(stream: Stream) -> None:
    stream.ask(CDS)
    response = stream.next()
    assert names(response) == ["a", "b"]
    assert response is not None
    stream._receive(Request(CDS, (), response.version, response.nonce))
    assert stream.subscription.types[CDS].wildcard
    stream.change(CDS, c="1")
    assert names(stream.next()) == ["a", "b", "c"]


def test_after_naming_something_no_names_is_nothing(stream: Stream) -> None:
    stream.ask(CDS, "a")
    response = stream.next()
    assert response is not None
    stream._receive(Request(CDS, (), response.version, response.nonce))
    state = stream.subscription.types[CDS]
    assert not state.wildcard
    assert not state.told
    stream.change(CDS, a="2")
    assert stream.next() is None


def test_a_star_beside_names_and_its_end(stream: Stream) -> None:
    stream.ask(LDS, "*", "a")
    response = stream.next()
    assert names(response) == ["a", "b"]
    assert response is not None
    stream.ack(response, "a")
    assert set(stream.subscription.types[LDS].told) == {"a"}
    stream.change(LDS, b="2")
    assert stream.next() is None


@pytest.mark.parametrize("type_url", [RDS, EDS])
def test_routes_and_endpoints_have_no_wildcard(stream: Stream, type_url: str) -> None:
    stream.ask(type_url)
    assert not stream.subscription.types[type_url].wildcard
    assert stream.next() is None


def test_make_before_break(stream: Stream) -> None:
    for type_url in (LDS, RDS, CDS, EDS):
        stream.ask(type_url, "a", "b")
        response = stream.next()
        assert response is not None
        stream.ack(response)
    for type_url in (RDS, LDS, EDS, CDS):
        stream.change(type_url, a="2")
    stream.change(CDS, b=None)
    stream.change(LDS, b=None)
    sent = []
    while (response := stream.next()) is not None:
        sent.append((response.type_url, names(response)))
        stream.ack(response)
    assert sent == [
        (CDS, ["a", "b"]),
        (EDS, ["a"]),
        (LDS, ["a", "b"]),
        (RDS, ["a"]),
        (LDS, ["a"]),
        (CDS, ["a"]),
    ]


def test_one_response_of_a_type_is_in_flight_and_the_newest_follows(stream: Stream) -> None:
    stream.ask(EDS, "a")
    first = stream.next()
    assert first is not None
    for text in "234":
        stream.change(EDS, a=text)
        assert stream.next() is None
    stream.ack(first)
    newest = stream.next()
    assert newest is not None
    assert newest.resources[0].body.endswith(b"=4")
    stream.ack(newest)
    assert stream.next() is None


def test_later_types_do_not_overtake_a_cluster_that_waits(stream: Stream) -> None:
    stream.ask(CDS, "a")
    first = stream.next()
    assert first is not None
    stream.ask(RDS, "a")
    routes = stream.next()
    assert routes is not None  # no newer cluster waits
    stream.ack(routes)
    stream.change(CDS, a="2")
    stream.change(RDS, a="2")
    assert stream.next() is None
    stream.ack(first)
    assert [r.type_url for r in (stream.next(), stream.next()) if r] == [CDS, RDS]


def test_a_client_that_never_answers_is_not_starved(stream: Stream) -> None:
    stream.ask(CDS, "a")
    assert stream.next() is not None
    stream.change(CDS, a="2")
    assert stream.next() is None
    stream.now += ACK_OVERDUE
    assert names(stream.next()) == ["a"]


def test_a_client_that_comes_back_gets_only_what_it_does_not_have(stream: Stream) -> None:
    stream.ask(CDS, "a", "b")
    response = stream.next()
    assert response is not None
    again = Stream()
    again.store = stream.store
    again.generation = 77
    again.ask(CDS, "b", "a", version=response.version)
    assert again.next() is None
    assert again.sync(CDS) is Sync.SYNCED
    again.change(CDS, a="2")
    assert names(again.next()) == ["a", "b"]


def test_a_client_that_comes_back_with_another_version_is_told(stream: Stream) -> None:
    stream.ask(EDS, "a", version="0123456789abcdef")
    assert names(stream.next()) == ["a"]


def test_a_client_that_comes_back_and_misses_a_listener_is_answered(stream: Stream) -> None:
    stream.ask(LDS, "a", "nowhere")
    response = stream.next()
    assert response is not None
    again = Stream()
    again.store = stream.store
    again.ask(LDS, "a", "nowhere", version=response.version)
    assert names(again.next()) == ["a"]


def test_envoy_gets_endpoints_again_when_their_cluster_changed() -> None:
    stream = Stream(warming=True)
    stream.store.set(CDS, a="1")
    stream.store.set(EDS, a="1")
    for type_url in (CDS, EDS):
        stream.ask(type_url, "a")
        response = stream.next()
        assert response is not None
        stream.ack(response)
    stream.change(CDS, a="2")
    assert [r.type_url for r in (stream.next(), stream.next()) if r] == [CDS, EDS]


def test_versions_depend_on_content_only(stream: Stream) -> None:
    other = Stream()
    other.store = stream.store
    stream.ask(CDS, "a", "b")
    one = stream.next()
    other.ask(CDS, "b")
    half = other.next()
    assert half is not None
    other.ack(half, "a", "b")
    two = other.next()
    assert one is not None
    assert two is not None
    assert one.version == two.version


NAMES = st.sampled_from("abcd")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([LDS, CDS, RDS, EDS]), st.sets(NAMES)),
        st.tuples(
            st.just("set"),
            st.sampled_from([LDS, CDS, RDS, EDS]),
            st.dictionaries(NAMES, st.sampled_from(["1", "2", None])),
        ),
        st.tuples(st.just("serve"), st.integers(0, 3), st.booleans()),
    ),
    max_size=40,
)


class Model:
    """A client that believes everything it is sent."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.wanted: dict[str, set[str]] = {}
        self.cache: dict[str, dict[str, bytes]] = {LDS: {}, CDS: {}, RDS: {}, EDS: {}}
        self.nonces: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.seen: set[tuple[str, str]] = set()

    def subscribe(self, type_url: str, wanted: set[str]) -> None:
        if not wanted and type_url not in self.wanted:
            return
        self.wanted[type_url] = wanted
        for name in self.cache[type_url].keys() - wanted:
            del self.cache[type_url][name]
        self._send(type_url)

    def _send(self, type_url: str, error: str | None = None) -> None:
        request = Request(
            type_url,
            tuple(sorted(self.wanted[type_url])),
            self.versions.get(type_url, ""),
            self.nonces.get(type_url, ""),
            error,
        )
        self.stream._receive(request)

    def take(self, response: Response) -> None:
        key = (response.type_url, response.nonce)
        assert key not in self.seen, "a nonce came twice"
        self.seen.add(key)
        cache = self.cache[response.type_url]
        if response.type_url in (LDS, CDS):
            cache.clear()
        for resource in response.resources:
            if resource.name in self.wanted[response.type_url]:
                cache[resource.name] = resource.body
        self.nonces[response.type_url] = response.nonce
        self.versions[response.type_url] = response.version
        self._send(response.type_url)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_whatever_happens_client_and_server_agree_in_the_end(
    steps: list[tuple[str, object, object]],
) -> None:
    stream = Stream()
    model = Model(stream)
    act: dict[str, Callable[..., None]] = {
        "ask": model.subscribe,
        "set": lambda type_url, content: stream.change(type_url, **content),
        "serve": lambda count, _: [_serve(stream, model) for _ in range(count)],
    }
    for kind, first, second in steps:
        act[kind](first, second)
    for _ in range(100):
        if not _serve(stream, model):
            break
    else:
        raise AssertionError("it never comes to rest")
    for type_url, wanted in model.wanted.items():
        found = {name: stream.store.lookup(type_url, name) for name in wanted}
        exists = {name: resource.body for name, resource in found.items() if resource}
        held = model.cache[type_url]
        if type_url in (LDS, CDS):
            assert held == exists
        else:  # what vanished stays until its cluster or listener goes
            assert {name: body for name, body in held.items() if name in exists} == exists
        assert stream.sync(type_url) in (Sync.SYNCED, Sync.NOT_SENT)


def _serve(stream: Stream, model: Model) -> bool:
    response = stream.next()
    if response is not None:
        model.take(response)
    return response is not None
