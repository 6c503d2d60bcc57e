"""What is said of the configuration in the log: each thing once, and nothing too early. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.model.resource import Finding

SETTLE = 30.0
"""Seconds in which workloads come up after a change, or one another."""

AWAITS_WORKLOADS = frozenset({"MSH0131", "MSH0140"})
"""Findings that are ordinary for as long as workloads are still coming up."""

_Gist = tuple[str, str, str]


class Notices:
    """Remembers what has been said.

    Args:
        settle: seconds for which a finding that awaits workloads must have persisted.
    """

    def __init__(self, settle: float = SETTLE) -> None:
        self._settle = settle
        self._said: dict[str, _Gist] = {}
        self._waiting: dict[_Gist, tuple[float, Finding]] = {}
        self._edited = True

    def edited(self) -> None:
        """The configuration was changed: what is said differently now is said again."""
        self._edited = True

    def take(self, findings: Iterable[Finding], now: float) -> list[Finding]:
        """Takes in all findings as they are now; those to say at once.

        Args:
            findings: about everything that is configured.
            now: monotonic seconds.
        """
        found = {str(finding): finding for finding in findings}
        # Workloads that come and go change numbers in a text, not what is wrong.
        known = set() if self._edited else set(self._said.values())
        self._edited = False
        new = [
            finding
            for text, finding in found.items()
            if text not in self._said and _gist(finding) not in known
        ]
        self._said = {text: _gist(finding) for text, finding in found.items()}
        gists = set(self._said.values())
        self._waiting = {gist: kept for gist, kept in self._waiting.items() if gist in gists}
        for finding in found.values():
            if (gist := _gist(finding)) in self._waiting:
                self._waiting[gist] = (self._waiting[gist][0], finding)
        for finding in new:
            if finding.code in AWAITS_WORKLOADS:
                self._waiting.setdefault(_gist(finding), (now + self._settle, finding))
        return [finding for finding in new if finding.code not in AWAITS_WORKLOADS]

    def due(self, now: float) -> list[Finding]:
        """Those that awaited workloads long enough, as they read now."""
        over = [gist for gist, (due, _) in self._waiting.items() if due <= now]
        return [self._waiting.pop(gist)[1] for gist in over]


def _gist(finding: Finding) -> _Gist:
    return (finding.code, finding.resource, finding.path)
