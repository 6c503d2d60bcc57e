"""Host names of clusters: when they are looked up, and what becomes of the answers."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from meshsdk.model import Assignment, Cluster, ClusterKind, Dns, DnsFamily, Endpoint, Locality
from meshsdk.model import LocalityEndpoints as Group
from meshsdk.xds.dns import Answer, Name, Names, at_place, names_of, resolved
from meshsdk.xds.lookup import Lookups, system_resolve
from tests.support.ads import wait_until

A = Name("a.example", Dns())


def names(*wanted: Name, random: float = 1.0) -> Names:
    made = Names(lambda: random)
    made.want(wanted, 0.0)
    return made


def answer(names: Names, name: Name, *addresses: str, now: float = 0.0, **more: Any) -> str:
    return names.answered(Answer(name, addresses, **more), now)


def fail(names: Names, name: Name, now: float) -> str:
    return names.answered(Answer(name, None, error="no answer"), now)


# --- when ------------------------------------------------------------------------------------


def test_a_name_is_looked_up_once_at_a_time_and_again_after_its_refresh() -> None:
    found = names(A)
    assert (found.deadline, found.due(0.0)) == (0.0, [A])
    assert (found.deadline, found.due(1.0)) == (None, [])
    answer(found, A, "10.0.0.1", now=2.0)
    assert (found.deadline, found.due(6.9), found.due(7.0)) == (7.0, [], [A])


@pytest.mark.parametrize(("respect", "ttl", "due"), [(True, 60.0, 60.0), (False, 60.0, 5.0)])
def test_ttl(respect: bool, ttl: float, due: float) -> None:
    name = Name("a", Dns(respect_ttl=respect))
    found = names(name)
    found.due(0.0)
    answer(found, name, "10.0.0.1", ttl=ttl)
    assert found.deadline == due


def test_no_ttl_and_ttl_zero_are_the_refresh_rate() -> None:
    name = Name("a", Dns(respect_ttl=True))
    found = names(name)
    for ttl in (None, 0.0):
        answer(found, name, "10.0.0.1", ttl=ttl)
        assert found.deadline == 5.0


def test_a_failed_lookup_is_repeated_with_a_back_off() -> None:
    name = Name("a", Dns(retry=1.0, retry_max=5.0))
    found = names(name)
    pauses = []
    for _ in range(5):
        fail(found, name, 0.0)
        pauses.append(found.deadline)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    answer(found, name, "10.0.0.1")
    fail(found, name, 0.0)
    assert found.deadline == 1.0


def test_the_back_off_has_jitter_and_is_never_nothing() -> None:
    name = Name("a", Dns(retry=1.0, retry_max=5.0))
    for random, pause in ((0.5, 0.5), (0.0, 0.01)):
        found = names(name, random=random)
        fail(found, name, 0.0)
        assert found.deadline == pause


def test_without_a_back_off_a_failed_lookup_is_repeated_after_the_refresh_rate() -> None:
    found = names(A)
    fail(found, A, 0.0)
    assert found.deadline == 5.0


def test_a_failure_is_told_once_and_keeps_the_addresses() -> None:
    found = names(A)
    answer(found, A, "10.0.0.1")
    assert fail(found, A, 1.0) == (
        "a.example cannot be resolved: no answer; its last addresses stay in use, tried again"
    )
    assert fail(found, A, 2.0) == ""
    state = found.get(A)
    assert state is not None
    assert state.addresses == ("10.0.0.1",)
    answer(found, A, "10.0.0.1")
    assert fail(found, A, 3.0)


def test_a_name_that_nobody_wants_any_more_is_forgotten() -> None:
    found = names(A)
    found.want([], 1.0)
    assert (found.get(A), found.deadline, answer(found, A, "10.0.0.1")) == (None, None, "")


# --- which addresses -------------------------------------------------------------------------

BOTH = ("10.0.0.1", "fd00::1", "10.0.0.2")


@pytest.mark.parametrize(
    ("family", "addresses", "found"),
    [
        (DnsFamily.AUTO, BOTH, ("fd00::1",)),
        (DnsFamily.AUTO, ("10.0.0.1",), ("10.0.0.1",)),
        (DnsFamily.V4_ONLY, BOTH, ("10.0.0.1", "10.0.0.2")),
        (DnsFamily.V4_ONLY, ("fd00::1",), ()),
        (DnsFamily.V6_ONLY, BOTH, ("fd00::1",)),
        (DnsFamily.V4_PREFERRED, BOTH, ("10.0.0.1", "10.0.0.2")),
        (DnsFamily.V4_PREFERRED, ("fd00::1",), ("fd00::1",)),
        (DnsFamily.ALL, BOTH, BOTH),
    ],
)
def test_families(family: DnsFamily, addresses: tuple[str, ...], found: tuple[str, ...]) -> None:
    name = Name("a", Dns(family))
    known = names(name)
    answer(known, name, *addresses)
    state = known.get(name)
    assert state is not None
    assert state.addresses == found


def cluster(kind: ClusterKind, *groups: Group) -> Cluster:
    return Cluster("c", kind, assignment=Assignment("c", groups))


def targets(assignment: Assignment | None) -> list[list[tuple[str, int, str]]]:
    assert assignment is not None
    return [[(e.target, e.weight, e.hostname) for e in g.endpoints] for g in assignment.localities]


def test_strict_dns_has_every_address_with_the_weight_and_place_of_its_entry() -> None:
    here, there = Locality("here"), Locality("there")
    made = cluster(
        ClusterKind.STRICT_DNS,
        Group((Endpoint("a", 80, 3), Endpoint("10.9.9.9", 80)), here, 0, 7),
        Group((Endpoint("b", 81, 2, hostname="own"), Endpoint("a", 80)), there, 1),
    )
    a, b = Name("a", Dns()), Name("b", Dns())
    assert names_of(made) == {a, b}
    known = names(a, b)
    answer(known, a, "10.0.0.1", "10.0.0.2")
    answer(known, b, "10.0.0.1")
    found = resolved(made, known.get)
    assert targets(found) == [
        [("10.0.0.1:80", 3, "a"), ("10.0.0.2:80", 3, "a"), ("10.9.9.9:80", 1, "")],
        [("10.0.0.1:81", 2, "own")],
    ]
    assert found is not None
    assert [(g.locality, g.priority, g.weight) for g in found.localities] == [
        (here, 0, 7),
        (there, 1, 1),
    ]


def test_an_answer_without_addresses_empties_strict_dns_and_not_logical_dns() -> None:
    """As Envoy 1.40 does."""
    for kind, left in ((ClusterKind.STRICT_DNS, []), (ClusterKind.LOGICAL_DNS, ["10.0.0.1:80"])):
        made = cluster(kind, Group((Endpoint("a.example", 80),)))
        known = names(A)
        answer(known, A, "10.0.0.1")
        answer(known, A)
        assert [target for target, _, _ in targets(resolved(made, known.get))[0]] == left


def test_logical_dns_has_one_address_that_stays_while_it_is_among_the_answers() -> None:
    made = cluster(ClusterKind.LOGICAL_DNS, Group((Endpoint("a.example", 80),)))
    known = names(A)
    seen = []
    for addresses in (("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), ("10.0.0.3",)):
        answer(known, A, *addresses)
        seen += targets(resolved(made, known.get))[0]
    assert seen == [
        ("10.0.0.1:80", 1, "a.example"),
        ("10.0.0.1:80", 1, "a.example"),
        ("10.0.0.3:80", 1, "a.example"),
    ]


def test_a_place_that_is_an_address_needs_no_lookup() -> None:
    made = Cluster("any", ClusterKind.ORIGINAL_DST)
    placed, assignment = at_place(made, "[fd00::1]:8080", names().get)
    assert (placed.key, targets(assignment)) == (
        "any [fd00::1]:8080",
        [[("[fd00::1]:8080", 1, "fd00::1")]],
    )


# --- lookups ---------------------------------------------------------------------------------


def test_lookups_are_done_beside_each_other_and_at_most_four_at_a_time() -> None:
    go = threading.Event()
    lock = threading.Lock()
    busy: list[str] = []
    most = 0

    def resolve(host: str, family: DnsFamily) -> Any:
        nonlocal most
        with lock:
            busy.append(host)
            most = max(most, len(busy))
        go.wait(20)
        with lock:
            busy.remove(host)
        if host == "h1":
            raise OSError(5, "told so")
        return [f"10.0.0.{host[1:]}"], 9.0

    answers: dict[str, Answer] = {}
    lookups = Lookups(resolve, lambda a: answers.__setitem__(a.name.host, a))
    lookups.start([Name(f"h{n}", Dns()) for n in range(10)])
    wait_until(lambda: len(busy) == 4)
    go.set()
    wait_until(lambda: len(answers) == 10)
    assert most == 4
    assert (answers["h1"].addresses, answers["h1"].error) == (None, "told so")
    assert (answers["h7"].addresses, answers["h7"].ttl) == (("10.0.0.7",), 9.0)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "meshsdk-dns"])
    lookups.start([A])
    wait_until(lambda: "a.example" in answers)


def test_nothing_is_begun_after_close() -> None:
    go = threading.Event()
    asked = []

    def resolve(host: str, family: DnsFamily) -> Any:
        asked.append(host)
        go.wait(20)
        return [], None

    answers: list[Answer] = []
    lookups = Lookups(resolve, answers.append)
    lookups.start([Name(f"h{n}", Dns()) for n in range(10)])
    wait_until(lambda: len(asked) == 4)
    lookups.close()
    go.set()
    wait_until(lambda: len(answers) == 4)
    assert len(asked) == 4


def test_this_machines_resolver() -> None:
    assert system_resolve("localhost", DnsFamily.V4_ONLY) == (("127.0.0.1",), None)
