"""START_TIME's formats: those of strftime, and parts of a second."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

ISO: Final = "%Y-%m-%dT%H:%M:%E3SZ"
ISO_LOCAL: Final = "%Y-%m-%dT%H:%M:%E3S%z"

# %f and %1f to %9f are digits of the fraction, %E3S and %E*S seconds with a fraction, %s the Unix
# time; %E followed by anything else stands for itself.
_SPECIAL: Final = re.compile(r"%%|%([1-9]?)f|%E([0-9]|\*)S|%E|%s")


def check_time_format(pattern: str) -> None:
    """Raises ValueError where Envoy refuses the format."""
    if "\n" in pattern or "\r" in pattern:
        raise ValueError(f"{pattern!r}: a time format must not hold a line break")


def format_time(pattern: str, seconds: float) -> str:
    """A moment, given as Unix time, in a format; in UTC."""
    nanoseconds = round(seconds * 1e9)
    fraction = f"{nanoseconds % 1_000_000_000:09}"
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)

    def fill(found: re.Match[str]) -> str:
        text = found[0]
        if text == "%%":
            return "%%"
        if text == "%s":
            return str(nanoseconds // 1_000_000_000)
        if text.endswith("f"):
            return fraction[: int(found[1] or 9)]
        if text == "%E":
            return "%%E"
        digits = fraction.rstrip("0") if found[2] == "*" else fraction[: int(found[2])]
        return f"%S.{digits}" if digits else "%S"

    try:
        return moment.strftime(_SPECIAL.sub(fill, pattern))
    except (ValueError, UnicodeError):
        return pattern
