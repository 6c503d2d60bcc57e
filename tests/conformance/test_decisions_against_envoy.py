"""The decision core and real Envoy, given the same route configuration and the same requests.

Hypothesis draws configurations (`drawing`); one Envoy serves some hundred virtual hosts under
several route configurations, and echo servers behind it say what arrived. Status, cluster, path,
authority, headers, redirect target, body, copies and the host chosen for a hash key must be equal.

`make diff N=10000` asks for so many virtual hosts; DIFF_CASES and DIFF_SEED do the same by hand.
"""

from __future__ import annotations

import os
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from meshsdk import routing
from meshsdk.matching import CookieMatch, HeaderMatch, PathKind, PathMatch, QueryMatch, StringMatch
from meshsdk.model import ListenerView
from tests.conformance import drawing
from tests.conformance.decision_cases import EDGES, FIXED
from tests.support.envoy import Envoy
from tests.support.referee import Asked, Echoes, Envoys, ask_us, listener, same, view_of

Json = dict[str, Any]
_HOSTS_PER_LISTENER = 25
_HOSTS_PER_ENVOY = 250


def drawn(strategy: Any, count: int, seed: int) -> list[Any]:
    """Different values drawn by hypothesis, the same ones for the same seed."""
    found: dict[str, Any] = {}

    # After its first examples hypothesis varies those it has: many short runs give more.
    @settings(
        max_examples=11,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(strategy, min_size=12, max_size=12))
    def collect(values: list[Any]) -> None:
        found.update((repr(value), value) for value in values)

    run = 0
    while len(found) < count:
        seeded(seed * 1000 + run)(collect)()
        run += 1
    return list(found.values())[:count]


def domain(kind: str, number: int) -> tuple[str, str]:
    """(a domain of a virtual host, a host that it takes)"""
    name = f"case-{number}.test"
    return {
        "exact": (name.title(), name),
        "port": (f"{name}:80", f"{name}:80"),
        "suffix": (f"*.{name}", f"w.{name}"),
        "prefix": (f"case-{number}.*", name.upper()),
    }[kind]


@dataclass
class Question:
    """One request, and what Envoy made of it."""

    config: Json
    host: Json
    view: ListenerView
    port: int
    number: str
    asked: Asked
    theirs: tuple[Any, ...] = ()


def static(name: str, ports: list[int], **more: Any) -> Json:
    endpoints = [
        {
            "endpoint": {
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "hostname": f"{name}.endpoint",
            }
        }
        for port in ports
    ]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "metadata": {"filter_metadata": {"ns": {"k": f"meta-{name}"}}},
        **more,
    }


@pytest.fixture(scope="module")
def echoes() -> Iterator[Echoes]:
    made = Echoes({"alpha": 1, "beta": 1, "ring": 3, "maglev": 3, "shadow": 1})
    yield made
    made.close()


def clusters_of(echoes: Echoes) -> list[Json]:
    policies: dict[str, Json] = {
        "ring": {"lb_policy": "RING_HASH"},
        "maglev": {"lb_policy": "MAGLEV"},
    }
    return [static(name, ports, **policies.get(name, {})) for name, ports in echoes.ports.items()]


def ask_envoy(echoes: Echoes, configs: list[tuple[Json, list[Any]]]) -> list[Question]:
    """Every request of every configuration, asked of one Envoy.

    Args:
        configs: (route configuration with its hosts, for each host its requests).
    """
    clusters = clusters_of(echoes)
    listeners = [listener(f"l{i}", config) for i, (config, _) in enumerate(configs)]
    questions = []
    client = Envoys()
    echoes.copies.clear()
    with Envoy(listeners, clusters) as envoy:
        try:
            for i, (config, requests) in enumerate(configs):
                view = view_of(config, clusters)
                for host, asked in requests:
                    number = f"{i}-{len(questions)}"
                    question = Question(config, host, view, envoy.port(f"l{i}"), number, asked)
                    question.theirs = client.ask(question.port, number, asked)
                    questions.append(question)
            await_copies(envoy, echoes)
        finally:
            client.close()
    return questions


def await_copies(envoy: Envoy, echoes: Echoes) -> None:
    """Until every copy that Envoy sent has arrived."""
    url = f"http://{envoy.admin}/stats?filter=^cluster.shadow.upstream_rq_total$"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        text = urllib.request.urlopen(url, timeout=5).read().decode()
        if sum(map(len, echoes.copies.values())) == int(text.rpartition(":")[2]):
            return
        time.sleep(0.05)
    raise AssertionError("copies that Envoy sent did not arrive")


def configurations(count: int, seed: int) -> list[tuple[Json, list[Any]]]:
    hosts = drawn(drawing.case(), count, seed)
    wholes = drawn(drawing.configuration(), -(-count // _HOSTS_PER_LISTENER), seed)
    made = []
    for start in range(0, len(hosts), _HOSTS_PER_LISTENER):
        chunk = hosts[start : start + _HOSTS_PER_LISTENER]
        whole = dict(wholes[start // _HOSTS_PER_LISTENER], name="rc", validate_clusters=False)
        ported = not whole.get("ignore_port_in_host_matching")
        virtual_hosts, requests = [], []
        for number, (host, kind, asked) in enumerate(chunk, start):
            taken, name = domain(kind if ported or kind != "port" else "exact", number)
            virtual_hosts.append({"name": f"h{number}", "domains": [taken], **host})
            requests += [(virtual_hosts[-1], Asked(name, *request)) for request in asked]
        made.append(({**whole, "virtual_hosts": virtual_hosts}, requests))
    return made


def differences(questions: list[Question], echoes: Echoes | None) -> list[str]:
    """What we do otherwise, in words; the copies are compared where `echoes` are given."""
    found = []
    for question in questions:
        ours, copies = ask_us(question.view, question.number, question.asked)
        theirs = question.theirs
        equal = same(theirs, ours)
        if echoes is not None:
            arrived = echoes.copies.get(question.number, [])
            equal = equal and sorted(arrived) == sorted(copies)
            ours, theirs = (*ours, copies), (*theirs, arrived)
        if not equal:
            rest = {k: v for k, v in question.config.items() if k != "virtual_hosts"}
            found.append(
                f"{question.asked}\nenvoy {theirs}\nus    {ours}\nhost  {question.host}\n"
                f"config {rest}"
            )
    return found


@pytest.fixture(scope="module")
def edges(echoes: Echoes) -> list[Question]:
    """The cases made by hand, with Envoy's answers."""
    return ask_envoy(echoes, by_hand(EDGES))


@pytest.fixture(scope="module")
def answered(echoes: Echoes, edges: list[Question]) -> list[Question]:
    """The first drawn questions and the cases made by hand, with Envoy's answers."""
    return ask_envoy(echoes, configurations(_HOSTS_PER_ENVOY, 1)) + edges


def by_hand(
    cases: dict[str, tuple[Json, Json, Any]],
) -> list[tuple[Json, list[Any]]]:
    configs = []
    for number, (config, host, request) in enumerate(cases.values()):
        named = {"name": "h", "domains": [f"case-{number}.test"], **host}
        asked = Asked(f"case-{number}.test", *request)
        whole = {"name": "rc", "validate_clusters": False, **config, "virtual_hosts": [named]}
        configs.append((whole, [(named, asked)]))
    return configs


def test_every_edge_is_envoys(echoes: Echoes, edges: list[Question]) -> None:
    assert differences(edges, echoes) == []


def test_every_decision_is_envoys(echoes: Echoes, capsys: pytest.CaptureFixture[str]) -> None:
    count = int(os.environ.get("DIFF_CASES", "500"))
    first = int(os.environ.get("DIFF_SEED", "1"))
    drawn_fields: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    asked = 0
    for seed in range(first, first + max(1, count // _HOSTS_PER_ENVOY)):
        configs = configurations(_HOSTS_PER_ENVOY, seed)
        for config, _ in configs:
            drawn_fields += drawing.fields(config)
        questions = ask_envoy(echoes, configs)
        asked += len(questions)
        kinds += Counter(kind_of(question.theirs) for question in questions)
        wrong = differences(questions, echoes)
        assert not wrong, f"seed {seed}: {len(wrong)} differences, the first:\n{wrong[0]}"
    with capsys.disabled():
        print(f"\n{asked} requests, no difference; answers: {dict(kinds)}")
        print("fields drawn, and how often:")
        for name, times in sorted(drawn_fields.items()):
            print(f"  {name:70} {times}")


def kind_of(answer: tuple[Any, ...]) -> str:
    return f"{answer[0]} {answer[1]}"


# --- mutations of our matcher, each of which must be found ------------------------------------


def segments_only(original: Any) -> Any:
    def matches(self: PathMatch, path: str) -> bool:
        if self.kind is PathKind.PREFIX and len(self.value) > 1 and not self.ignore_case:
            rest = path[len(self.value) :]
            return path.startswith(self.value) and (not rest or rest[0] == "/")
        return bool(original(self, path))

    return matches


def case_matters(original: Any) -> Any:
    def matches(self: PathMatch, path: str) -> bool:
        if self.ignore_case and self.kind is PathKind.PREFIX:
            return path.startswith(self.value)
        if self.ignore_case and self.kind is PathKind.EXACT:
            return path == self.value
        return bool(original(self, path))

    return matches


def never_inverted(original: Any) -> Any:
    def matches(self: HeaderMatch, headers: Any) -> bool:
        return bool(original(self, headers)) != (self.invert and bool(headers.values(self.name)))

    return matches


def absent_is_nothing(original: Any) -> Any:
    def matches(self: HeaderMatch, headers: Any) -> bool:
        if self.missing_as_empty and not headers.values(self.name):
            return False
        return bool(original(self, headers))

    return matches


def up_to_the_end(original: Any) -> Any:
    def one(self: HeaderMatch, value: str) -> bool:
        if self.range is not None and value == str(self.range[1]):
            return True
        return bool(original(self, value))

    return one


def any_parameter(original: Any) -> Any:
    def matches(self: QueryMatch, query: str) -> bool:
        return any(original(self, item) for item in (query.split("&") if query else [""]))

    return matches


def cookies_not_inverted(original: Any) -> Any:
    def matches(self: CookieMatch, headers: Any) -> bool:
        return bool(original(self, headers)) != self.invert

    return matches


def case_of_strings_matters(original: Any) -> Any:
    def matches(self: StringMatch, text: str) -> bool:
        if self.ignore_case and self.kind.value == "exact":
            return text == self.value
        return bool(original(self, text))

    return matches


def last_route_wins(original: Any) -> Any:
    def select(config: Any, host: Any, request: Any, number: Any) -> Any:
        path = routing.comparable_path(config, request)
        found = [
            route
            for route in routing.routes_for(host, request, path)
            if routing.matches(route, request, number, path)
        ]
        return found[-1] if found else None

    return select


def without_rotation(original: Any) -> Any:
    def key(policies: Any, request: Any, caller: Any, random: Any) -> Any:
        total, made = None, ()
        for policy in policies:
            value, cookies = original([policy], request, caller, random)
            made += cookies
            if value is not None:
                total = value if total is None else total ^ value
            if policy.terminal and total is not None:
                break
        return total, made

    return key


MUTATIONS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "prefixes end at a slash": (PathMatch, "matches", segments_only),
    "paths are compared with their case": (PathMatch, "matches", case_matters),
    "header conditions are never inverted": (HeaderMatch, "matches", never_inverted),
    "an absent header is never empty": (HeaderMatch, "matches", absent_is_nothing),
    "ranges include their end": (HeaderMatch, "_one", up_to_the_end),
    "any of several query parameters counts": (QueryMatch, "matches", any_parameter),
    "cookie conditions are never inverted": (CookieMatch, "matches", cookies_not_inverted),
    "exact strings are compared with their case": (StringMatch, "matches", case_of_strings_matters),
    "the last route wins": (routing, "select", last_route_wins),
    "hash keys are combined without rotation": (routing, "hash_key", without_rotation),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_of_our_matcher_is_found(
    answered: list[Question], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    owner, attribute, mutate = MUTATIONS[name]
    monkeypatch.setattr(owner, attribute, mutate(getattr(owner, attribute)))
    assert differences(answered, None)


# --- what was found once ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def once(echoes: Echoes) -> dict[str, list[str]]:
    """The differences in cases that differed once, by their names."""
    questions = ask_envoy(echoes, by_hand(FIXED))
    return {
        name: differences([question], echoes)
        for name, question in zip(FIXED, questions, strict=True)
    }


@pytest.mark.parametrize("name", FIXED)
def test_a_case_that_differed_once(once: dict[str, list[str]], name: str) -> None:
    assert not once[name]
