"""Durations as Istio reads them: the text of Go's time.ParseDuration."""

from __future__ import annotations

import re

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_LONGEST = (2**63 - 1) / 1e9
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


class Duration(float):
    """A time in seconds, read from text such as `7s`, `100ms`, `1h30m`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Reads a duration.

        Raises:
            ValueError: the text is not a duration; says what one looks like.
        """
        sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
        if rest == "0":
            return cls(0.0)
        total, position = 0.0, 0
        for part in _PART.finditer(rest):
            if part.start() != position:
                break
            total += float(part[1]) * _UNITS[part[2]]
            position = part.end()
        if position != len(rest) or not rest:
            raise ValueError(f"{text!r} is not a duration; write for example 7s, 0.5s, 100ms or 1h")
        if total > _LONGEST:
            raise ValueError(f"{text!r} is longer than 290 years")
        return cls(sign * total)
