"""A request, as decisions see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Headers = Sequence[tuple[str, str]]
Random = Callable[[], float]

_NO_METADATA: Mapping[str, Any] = {}


class Request:
    """What a decision may look at. Headers are (lower-case name, value), `host` not among them.

    Args:
        path: with query, as it stands on the request line; empty for a CONNECT without one.
        grpc: the request is a gRPC call (content-type application/grpc).
        start: Unix time at which the call began, for values that tell it; None: they are empty.
        metadata: dynamic metadata by namespace, which tools and tests may give.
    """

    __slots__ = (
        "authority", "grpc", "headers", "metadata", "method", "path", "query", "scheme", "start",
        "target",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: str,
        *,
        authority: str,
        scheme: str = "http",
        headers: Headers = (),
        grpc: bool = False,
        start: float | None = None,
        metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        self.method = method
        self.target = path
        self.path, _, rest = path.partition("?")
        self.query = rest.partition("#")[0]
        if "#" in self.path:
            self.path = self.path.partition("#")[0]
        self.authority = authority
        self.scheme = scheme
        self.headers = headers
        self.grpc = grpc
        self.start = start
        self.metadata = metadata

    def values(self, name: str) -> list[str]:
        """All values of a header, in order; answers pseudo headers and `host` too."""
        pseudo = _PSEUDO.get(name)
        if pseudo is not None:
            return [getattr(self, pseudo)]
        values = [value for key, value in self.headers if key == name]
        if not values and self.grpc and name == "content-type":
            return ["application/grpc"]
        return values

    def having(
        self, headers: Headers, *, path: str | None = None, authority: str | None = None
    ) -> Request:
        """The same request with other headers, and possibly another path or authority."""
        return Request(
            self.method,
            self.target if path is None else path,
            authority=self.authority if authority is None else authority,
            scheme=self.scheme,
            headers=headers,
            grpc=self.grpc,
            start=self.start,
            metadata=self.metadata,
        )


_PSEUDO = {
    ":method": "method",
    ":path": "target",
    ":authority": "authority",
    ":scheme": "scheme",
    "host": "authority",
}
