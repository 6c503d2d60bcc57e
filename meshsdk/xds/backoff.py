"""When to connect again. Pure: the random source is an argument."""

from __future__ import annotations

from collections.abc import Callable

_INITIAL = 1.0
_FACTOR = 1.6
_JITTER = 0.2
_STEADY = 2.0
_QUICK = (0.05, 0.25)


class Backoff:
    """Seconds to wait before the next stream.

    Exponential with jitter as gRFC A57 (1 s, x1.6, jitter 0.2), with two differences: the limit
    is low, as a control plane that was restarted is expected to be found soon, and after a stream
    that had been working for a while the first attempt comes at once.

    Args:
        limit: upper limit in seconds, before jitter.
        random: uniform numbers in [0, 1).
    """

    def __init__(self, limit: float, random: Callable[[], float]) -> None:
        self._limit = limit
        self._random = random
        self._next = min(_INITIAL, limit)

    def after(self, *, answered: bool, lasted: float) -> float:
        """The delay after a stream that ended.

        Args:
            answered: a response was seen on it; only then the back-off starts anew.
            lasted: seconds that it was open.
        """
        if answered:
            self._next = min(_INITIAL, self._limit)
            if lasted >= _STEADY:
                low, high = _QUICK
                return low + (high - low) * self._random()
        delay = self._next
        self._next = min(self._next * _FACTOR, self._limit)
        return delay * (1 - _JITTER + 2 * _JITTER * self._random())
