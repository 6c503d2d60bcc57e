"""HTTP/2 by the byte: a server and a client that send header blocks no library would send.

Blocks are written as literals without compression; of what the other side sends only what is
literal too can be read, which is all that gRPC's C core sends besides names in its tables.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_LARGEST = 16384
_SECONDS = 10.0

Fields = Iterable[tuple[str, str]]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends(self) -> bool:
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(stream: int, fields: Fields, *, end: bool) -> bytes:
    """A header block of these fields, in frames that are not too long."""
    block = b"".join(_literal(name, value) for name, value in fields)
    parts = [block[at : at + _LARGEST] for at in range(0, len(block), _LARGEST)] or [b""]
    kinds = [HEADERS] + [CONTINUATION] * (len(parts) - 1)
    flags = [END_STREAM if end else 0] + [0] * (len(parts) - 1)
    flags[-1] |= END_HEADERS
    return b"".join(
        frame(kind, flag, stream, part)
        for kind, flag, part in zip(kinds, flags, parts, strict=True)
    )


def message(stream: int, content: bytes = b"", *, end: bool = False) -> bytes:
    """A gRPC message in a DATA frame."""
    framed = b"\0" + struct.pack(">I", len(content)) + content
    return frame(DATA, END_STREAM if end else 0, stream, framed)


def _literal(name: str, value: str) -> bytes:
    """RFC 7541 6.2.2: a field without indexing, with a new name."""
    return b"\0" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    raw = text.encode()
    size, length = b"", len(raw)
    if length < 127:
        return bytes([length]) + raw
    length -= 127
    while length >= 128:
        size += bytes([length % 128 + 128])
        length //= 128
    return b"\x7f" + size + bytes([length]) + raw


def literals(block: bytes) -> list[tuple[str, str]]:
    """The fields of a block that stand there as text; those of the tables are left out."""
    fields, at = [], 0
    while at < len(block):
        kind = block[at]
        at += 1
        if kind >= 0x80:
            continue
        assert kind in (0, 0x10, 0x40), f"a field of kind {kind:#x} is not read here"
        name, at = _text_at(block, at)
        value, at = _text_at(block, at)
        fields.append((name, value))
    return fields


def _text_at(block: bytes, at: int) -> tuple[str, int]:
    length = block[at]
    assert length < 127, "a compressed or long string is not read here"
    return block[at + 1 : at + 1 + length].decode(), at + 1 + length


def frames(connection: socket.socket) -> Iterator[Frame]:
    """What arrives; answers settings and pings."""
    with connection.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            found = Frame(kind, flags, stream, file.read(int.from_bytes(head[:3], "big")))
            if kind in (SETTINGS, PING) and not flags & ACK:
                payload = found.payload if kind == PING else b""
                connection.sendall(frame(kind, ACK, 0, payload))
            yield found


class Http2Server:
    """Answers each request with the bytes that `answer` makes of its stream.

    Attributes:
        blocks: the header blocks received, as bytes.
    """

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self.blocks: list[bytes] = []
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if connection.recv(len(PREFACE), socket.MSG_WAITALL) != PREFACE:
                return
            connection.sendall(frame(SETTINGS, 0, 0))
            for found in frames(connection):
                if found.kind in (HEADERS, CONTINUATION):
                    self.blocks.append(found.payload)
                if found.ends:
                    connection.sendall(self._answer(found.stream))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for connection in self._connections:
            connection.close()


def ask(port: int, fields: Fields, body: bytes) -> list[Frame]:
    """What a server sends back on the stream of one request, or on the connection that it ends."""
    with socket.create_connection(("127.0.0.1", port), _SECONDS) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + headers(1, fields, end=False))
        connection.sendall(frame(DATA, END_STREAM, 1, body))
        back = []
        for found in frames(connection):
            if found.stream == 1 or found.kind == GOAWAY:
                back.append(found)
            if found.ends or found.kind in (RST_STREAM, GOAWAY):
                break
        return back
