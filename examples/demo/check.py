"""What a step expects, what it counted, and whether that is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from examples.demo.answers import told
from examples.demo.statistics import interval


@dataclass
class Check:
    """Filled in by a step while it plays."""

    expected: str = ""
    counted: str = ""
    problems: list[str] = field(default_factory=list)

    def that(self, ok: bool, problem: str) -> None:
        """`problem` says what was seen instead."""
        if not ok:
            self.problems.append(problem)

    def count(self, found: Counter[str], shares: Mapping[str, float]) -> None:
        """Accepts `found` when it has the shares, and nobody else had any.

        A share of 1 is met by all calls; any other by a count inside the interval that chance
        leaves in 1 run of 10000.
        """
        total = found.total()
        parts = []
        for name, share in shares.items():
            low, high = interval(total, share)
            parts.append(f"{name} {low}" if low == high else f"{name} {low}-{high}")
            if not low <= found[name] <= high:
                self.problems.append(f"{name} answered {found[name]} of {total}, not {low}-{high}")
        for name in found.keys() - shares.keys():
            self.problems.append(f"{found[name]} of {total} calls ended at {name}")
        ordered = Counter({name: found[name] for name in [*shares, *found] if name in found})
        self.expected = "; ".join(filter(None, (self.expected, ", ".join(parts))))
        self.counted = "; ".join(filter(None, (self.counted, told(ordered))))

    @property
    def passed(self) -> bool:
        return not self.problems
