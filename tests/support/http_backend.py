"""A small HTTP/1.1 server that misbehaves on request, and remembers what it was asked."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

BIG = 3_000_000


class Backend:
    """Serves on a free loopback port; what it does is chosen by the path.

    Attributes:
        name: what `/who` answers.
        requests: `METHOD path` of every request, in order.
        accepted: how many connections were accepted.
        open: how many of them are open now.
        seen: what `/echo` has answered.
        slow: no answer before `release` is set.
        headers: of every answer.
    """

    def __init__(
        self, name: str = "", *, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
    ) -> None:
        self.name = name
        self.requests: list[str] = []
        self.seen: list[dict[str, Any]] = []
        self.slow = False
        self.headers: list[tuple[str, str]] = []
        self.accepted = 0
        self.open = 0
        self.release = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        backend = self

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def process_request_thread(self, request: Any, address: Any) -> None:
                with backend._lock:
                    backend.accepted += 1
                    backend.open += 1
                    backend._sockets.add(request)
                try:
                    if context is not None:
                        request = context.wrap_socket(request, server_side=True)
                    self.finish_request(request, address)
                except (OSError, ValueError):  # a client that hung up, also within a chunk
                    pass
                finally:
                    with backend._lock:
                        backend.open -= 1
                        backend._sockets.discard(request)
                    self.shutdown_request(request)

        class Handler(_Handler):
            server_backend = backend

        self._server = Server((host, 0), Handler)
        self.port: int = self._server.server_port
        self.target = f"{host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No new connections; the ones that are open are broken."""
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.hang_up()

    def shut(self) -> None:
        """Of a backend that was never started: give the port up."""
        self._server.server_close()

    def hang_up(self) -> None:
        """Close every open connection from this side."""
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def wait_for(self, condition: Callable[[], object], timeout: float = 5.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout} s"
            time.sleep(0.002)


class _Handler(http.server.BaseHTTPRequestHandler):
    server_backend: Backend
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_args: object) -> None:
        pass

    def _serve(self) -> None:
        backend = self.server_backend
        parts = urlsplit(self.path)
        with backend._lock:
            backend.requests.append(f"{self.command} {self.path}")
        if backend.slow:
            backend.release.wait(30)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        name = parts.path.strip("/").partition("/")[0].replace("-", "_") or "who"
        action = getattr(self, f"on_{name}", None)
        if action is None:
            self.on_echo()
        else:
            action()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    # --- tools ---

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, status: int, body: bytes = b"", *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*self.server_backend.headers, *headers):
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True

    # --- what it does ---

    def on_who(self) -> None:
        self.body()
        self.answer(200, self.server_backend.name.encode())

    def on_echo(self) -> None:
        body = self.body()
        seen = {
            "method": self.command,
            "path": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "body": body.decode("latin-1"),
            "name": self.server_backend.name,
        }
        self.server_backend.seen.append(seen)
        kind = ("content-type", "application/json")
        self.answer(200, json.dumps(seen).encode(), kind, ("x-backend", self.server_backend.name))

    def on_length(self) -> None:
        self.answer(200, str(len(self.body())).encode())

    def on_status(self) -> None:
        self.body()
        self.answer(int(self.path.rpartition("/")[2]))

    def on_redirect(self) -> None:
        left = int(urlsplit(self.path).path.rpartition("/")[2])
        self.answer(302, b"", ("location", f"/redirect/{left - 1}" if left > 1 else "/echo"))

    def on_set_cookie(self) -> None:
        self.answer(200, b"", ("set-cookie", "flavour=oat; Path=/"))

    def on_basic(self) -> None:
        want = "Basic " + base64.b64encode(b"user:secret").decode()
        if self.headers.get("authorization") == want:
            self.answer(200, b"welcome")
        else:
            self.answer(401, b"", ("www-authenticate", 'Basic realm="x"'))

    def on_digest(self) -> None:
        given = self.headers.get("authorization", "")
        if not given.startswith("Digest "):
            challenge = 'Digest realm="r", nonce="abc", qop="auth", algorithm=MD5'
            self.answer(401, b"", ("www-authenticate", challenge))
            return
        items = (item.partition("=") for item in given[7:].split(","))
        fields = {key.strip(): value.strip('"') for key, _, value in items}

        def md5(text: str) -> str:
            return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

        ha1, ha2 = md5("user:r:secret"), md5(f"{self.command}:{fields['uri']}")
        want = md5(f"{ha1}:abc:{fields['nc']}:{fields['cnonce']}:auth:{ha2}")
        self.answer(200 if fields["response"] == want else 403, b"welcome")

    def on_chunks(self) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(int(self.query.get("n", "3"))):
            self.wfile.write(b"6\r\npart-%d\r\n" % number)
        self.wfile.write(b"0\r\n\r\n")

    def on_gzip(self) -> None:
        self.answer(200, gzip.compress(b"squeezed " * 100), ("content-encoding", "gzip"))

    def on_big(self) -> None:
        self.answer(200, b"x" * BIG)

    def on_until_close(self) -> None:
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(b"all there is")
        self.hang_up()

    def on_slow(self) -> None:
        """Nothing before `seconds` have passed, or the test lets it go on."""
        self.body()
        self.server_backend.release.wait(float(self.query.get("seconds", "30")))
        self.answer(200, b"at last")

    def on_stall(self) -> None:
        """The head and half of the body, and the rest much later."""
        self.send_response(200)
        self.send_header("content-length", "10")
        self.end_headers()
        self.wfile.write(b"first")
        self.server_backend.release.wait(float(self.query.get("seconds", "30")))
        self.wfile.write(b"after")

    def on_deaf(self) -> None:
        """Does not read the body."""
        self.server_backend.release.wait(float(self.query.get("seconds", "30")))
        self.hang_up()

    def on_close(self) -> None:
        self.answer(200, b"bye", ("connection", "close"))
        self.hang_up()

    def on_abort(self) -> None:
        self.body()
        self.hang_up()

    def on_truncate(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "100")
        self.end_headers()
        self.wfile.write(b"too little")
        self.hang_up()

    def on_garbage(self) -> None:
        self.wfile.write(b"this is no HTTP\r\n\r\n")
        self.hang_up()

    def on_refuse_body(self) -> None:
        """Answers and closes without reading the body."""
        self.answer(413, b"too much", ("connection", "close"))
        self.hang_up()

    def on_hints(self) -> None:
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n")
        self.answer(200, b"after the hint")

    def on_upgrade(self) -> None:
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\nhello"
        )
        while data := self.connection.recv(1000):
            self.connection.sendall(data.upper())
        self.hang_up()

    def on_last(self) -> None:
        """Answers, keeps the connection until the next request is in, and hangs up on that."""
        self.body()
        self.answer(200, b"last")
        self.connection.recv(65536)
        self.hang_up()
