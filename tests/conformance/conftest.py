"""The share of each topic of the shared data that the project fulfils, printed at the end.

A test of a case carries `@pytest.mark.topic("envoy/hash")`. Two more marks go on single cases:

- `aside("reason")`: not asked of this project (Wasm, ambient, multi-cluster, Windows, a test double
  of the origin); skipped, listed, and less than 5 % of any topic.
- `awaits("the Envoy dialect")`: asked of it and not built yet; skipped, and counted as failed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

_MOST_ASIDE = 0.05
_PROPERTY = "topic"


@dataclass
class Share:
    passed: int = 0
    failed: int = 0
    awaiting: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    aside: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def total(self) -> int:
        return self.passed + self.failed + sum(self.awaiting.values()) + sum(self.aside.values())


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "topic(name): the topic of the shared data that a case belongs to",
        "aside(reason): a case that is not asked of this project",
        "awaits(what): a case whose subject is not built yet; counted as failed",
    ):
        config.addinivalue_line("markers", line)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Shares(), "conformance-shares")


def pytest_runtest_setup(item: pytest.Item) -> None:
    topic = item.get_closest_marker("topic")
    if topic is None:
        return
    for kind in ("aside", "awaits"):
        mark = item.get_closest_marker(kind)
        if mark is not None:
            item.user_properties.append((_PROPERTY, (topic.args[0], kind, mark.args[0])))
            pytest.skip(f"{kind}: {mark.args[0]}")
    item.user_properties.append((_PROPERTY, (topic.args[0], "run", "")))


class _Shares:
    def __init__(self) -> None:
        self._topics: dict[str, Share] = defaultdict(Share)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties).get(_PROPERTY)
        if told is None or not self._decides(report):
            return
        topic, kind, why = told
        share = self._topics[str(topic)]
        if kind == "aside":
            share.aside[why] += 1
        elif kind == "awaits":
            share.awaiting[why] += 1
        elif report.passed:
            share.passed += 1
        else:
            share.failed += 1

    @staticmethod
    def _decides(report: pytest.TestReport) -> bool:
        """One report a test: its call, or the set-up that it did not get beyond."""
        return report.when == "call" or (report.when == "setup" and not report.passed)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self._topics:
            return
        terminalreporter.section("conformance: cases fulfilled, of all entries of a topic")
        for name, share in sorted(self._topics.items()):
            parts = [f"{share.passed}/{share.total}", f"{share.passed / share.total:.1%}"]
            parts += [f"{n} await {what}" for what, n in share.awaiting.items()]
            parts += [f"{n} set aside: {why}" for why, n in share.aside.items()]
            terminalreporter.write_line(f"{name:40} " + ", ".join(parts))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for name, share in self._topics.items():
            aside = sum(share.aside.values())
            # Single cases chosen by hand are not a share of anything.
            if share.total >= 20 and aside > _MOST_ASIDE * share.total:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
                print(f"\n{name}: {aside} of {share.total} cases set aside; at most 5 % may be")
