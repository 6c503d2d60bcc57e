"""One received call, before the application sees it: pure, the same for every server adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from meshsdk.propagation import (
    REQUEST_ID,
    TRACE_HEADERS,
    Carried,
    carried,
    extra_names,
    new_request_id,
)


@dataclass(frozen=True, slots=True)
class Received:
    """What the mesh makes of one received call.

    Attributes:
        carried: what travels on to the calls made while serving this one.
        new_request_id: the `x-request-id` that this call got here, empty when it came with one.
    """

    carried: Carried
    new_request_id: str = ""


class Inbound:
    """How calls are received in this process. Immutable.

    Args:
        environ: `MESHSDK_PROPAGATE` names headers that are carried besides the trace headers.

    Raises:
        ConfigurationError: `MESHSDK_PROPAGATE` is wrong.
    """

    __slots__ = ("extra", "wanted", "wanted_bytes")

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.extra = extra_names(environ)
        self.wanted = TRACE_HEADERS | self.extra
        self.wanted_bytes = frozenset(name.encode() for name in self.wanted)

    def receive(
        self,
        headers: Iterable[tuple[str, str | bytes]],
        new_id: Callable[[], str] = new_request_id,
    ) -> Received:
        """Judge one call by its headers (lower-case name, value; others than `wanted` may lack)."""
        made: list[str] = []

        def make() -> str:
            made.append(new_id())
            return made[0]

        result = carried(headers, self.extra, make)
        return Received(result, made[0] if made else "")


__all__ = ["REQUEST_ID", "Inbound", "Received"]
