"""What the control plane says of its configuration, and when."""

from __future__ import annotations

from controlplane.model.resource import Finding, Level
from controlplane.notices import Notices


def finding(code: str, message: str = "wrong", path: str = "spec.host") -> Finding:
    return Finding(Level.WARNING, code, "DestinationRule default/reviews", message, path)


def test_each_thing_is_said_once_until_it_comes_again() -> None:
    notices = Notices()
    assert notices.take([finding("MSH0130")], 0.0) == [finding("MSH0130")]
    assert notices.take([finding("MSH0130")], 1.0) == []
    assert notices.take([], 2.0) == []
    assert notices.take([finding("MSH0130")], 3.0) == [finding("MSH0130")]


def test_other_words_for_the_same_are_said_after_an_edit_only() -> None:
    notices = Notices()
    notices.take([finding("MSH0130")], 0.0)
    assert notices.take([finding("MSH0130", "still")], 1.0) == []
    notices.edited()
    assert notices.take([finding("MSH0130", "quite")], 2.0) == [finding("MSH0130", "quite")]


def test_what_awaits_workloads_is_said_when_it_persists() -> None:
    notices = Notices(settle=30.0)
    assert notices.take([finding("MSH0131", "none of 1")], 0.0) == []
    assert notices.due(29.0) == []
    assert notices.take([finding("MSH0131", "none of 2")], 29.0) == []
    assert notices.due(30.0) == [finding("MSH0131", "none of 2")]
    assert notices.due(90.0) == []
    assert notices.take([finding("MSH0131", "none of 3")], 91.0) == []
    assert notices.due(200.0) == []


def test_what_the_next_workload_settles_is_never_said() -> None:
    notices = Notices(settle=30.0)
    notices.take([finding("MSH0131")], 0.0)
    notices.take([], 10.0)
    assert notices.due(60.0) == []
    notices.take([finding("MSH0131")], 100.0)
    assert notices.due(129.0) == []
    assert notices.due(130.0) == [finding("MSH0131")]
