"""The network stream of one connection, over httpcore's network backends.

Both classes have the same coroutines; those of `SyncWire` never suspend.
"""

from __future__ import annotations

from typing import Any

import anyio


class SyncWire:
    """For httpcore's sync backends."""

    __slots__ = ("_backend", "stream")

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.stream: Any = None

    async def connect_tcp(self, **how: Any) -> Any:
        self.stream = self._backend.connect_tcp(**how)
        return self.stream

    async def connect_unix_socket(self, **how: Any) -> Any:
        self.stream = self._backend.connect_unix_socket(**how)
        return self.stream

    async def start_tls(self, **how: Any) -> Any:
        self.stream = self.stream.start_tls(**how)
        return self.stream

    async def read(self, limit: float | None) -> bytes:
        data: bytes = self.stream.read(65536, limit)
        return data

    async def write(self, data: bytes, limit: float | None) -> None:
        self.stream.write(data, limit)

    async def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


class AsyncWire:
    """For httpcore's async backends."""

    __slots__ = ("_backend", "stream")

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.stream: Any = None

    async def connect_tcp(self, **how: Any) -> Any:
        self.stream = await self._backend.connect_tcp(**how)
        return self.stream

    async def connect_unix_socket(self, **how: Any) -> Any:
        self.stream = await self._backend.connect_unix_socket(**how)
        return self.stream

    async def start_tls(self, **how: Any) -> Any:
        self.stream = await self.stream.start_tls(**how)
        return self.stream

    async def read(self, limit: float | None) -> bytes:
        data: bytes = await self.stream.read(65536, limit)
        return data

    async def write(self, data: bytes, limit: float | None) -> None:
        await self.stream.write(data, limit)

    async def close(self) -> None:
        if self.stream is not None:
            # A cancelled caller closes what it leaves, too.
            with anyio.CancelScope(shield=True):
                await self.stream.aclose()


Wire = SyncWire | AsyncWire
