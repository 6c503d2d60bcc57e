"""Which listener names a process is interested in, bounded. Pure; only the xDS thread calls it.

A call that finds its name in the snapshot says nothing to anybody, so the last use of a name is
not known. Hence two lists, as a page cache has them: *active* names are in the snapshot; when there
are too many, the oldest become *hidden*: still subscribed, but a call has to ask for them, which
costs it a thread switch and makes the name active again. What stays hidden until the bound is
reached is given up.
"""

from __future__ import annotations


class Interest:
    """Args:
    limit: how many names are subscribed to at most.

    Attributes:
        changes: counts the changes.
    """

    def __init__(self, limit: int) -> None:
        self.changes = 0
        self._max_active = max(1, limit * 3 // 4)
        self._max_hidden = max(0, limit - self._max_active)
        self._active: dict[str, None] = {}
        self._hidden: dict[str, None] = {}

    def want(self, name: str) -> None:
        """A call asks for `name`."""
        if name in self._active:
            return
        self.changes += 1
        self._hidden.pop(name, None)
        self._active[name] = None
        if len(self._active) > self._max_active:
            self._hide()

    def _hide(self) -> None:
        # Several at a time: each time costs a snapshot.
        count = max(1, self._max_active // 8)
        for name in list(self._active)[:count]:
            del self._active[name]
            self._hidden[name] = None
        for name in list(self._hidden)[: max(0, len(self._hidden) - self._max_hidden)]:
            del self._hidden[name]

    @property
    def names(self) -> frozenset[str]:
        """All that is subscribed to."""
        return frozenset(self._active) | frozenset(self._hidden)

    @property
    def hidden(self) -> frozenset[str]:
        """What is subscribed to but not shown."""
        return frozenset(self._hidden)
