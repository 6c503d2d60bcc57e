"""`meshctl` against what is no control plane: one line, the right exit code, no traceback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.cli import remote, run

RULE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews}
"""
COMMANDS = [
    ["ps"],
    ["ps", "-o", "json"],
    ["get", "vs"],
    ["get", "vs", "-o", "json"],
    ["apply", "-f", "rule.yaml"],
    ["apply", "-f", "rule.yaml", "-o", "json"],
    ["delete", "vs", "reviews", "-o", "json"],
]


def http(body: str, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]
    return "\r\n".join(lines).encode()


class Foreign:
    """Answers every request with the same bytes, or, without any, never."""

    def __init__(self) -> None:
        self.answer: bytes | None = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
                connection.recv(65536)
                if self.answer is None:
                    self._open.append(connection)
                else:
                    connection.sendall(self.answer)
                    connection.close()
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Foreign]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule.yaml").write_text(RULE)
    server = Foreign()
    yield server
    server.close()


@pytest.mark.parametrize(
    "answer",
    [
        http("<html>hello</html>"),
        http('["a"]'),
        http('{"a": 1}'),
        http("null"),
        http('[{"node": "a"}]'),
        http('{"items": 3, "results": 3}'),
        http('{"items": [{}], "results": [{}]}'),
        http("[" * 100_000),
        http("\udcff".encode("utf-8", "surrogatepass").decode("latin-1")),
        http("no", "404 Not Found"),
        http('{"errors": "abc"}', "422 Unprocessable"),
        http("", "302 Found", "Location: /config"),
        http("oops", "500 Internal Server Error"),
        b"SSH-2.0-OpenSSH\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    ],
)
def test_foreign_answers(
    foreign: Foreign, answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.answer = answer
    for command in COMMANDS:
        assert run([*command, "--server", foreign.address]) in (1, 65)
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert foreign.address in line
        assert "--server or MESHCTL_SERVER" in line
        assert said.out == ""


def test_silence_has_an_end(
    foreign: Foreign, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_TIMEOUT", 0.2)
    foreign.answer = None
    assert run(["ps", "--server", foreign.address]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not answer within 0 s: " in line
    assert run(["apply", "-f", "rule.yaml", "--server", foreign.address]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "whether anything was changed is not known" in line


@pytest.mark.parametrize("server", ["http://", "127.0.0.1:99999", "127.0.0.1:x", "ftp://a", ""])
def test_what_is_no_address_is_usage(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ps", "--server", server]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--server {server}: must be an address such as http://" in line


def test_files_that_are_not_there_are_data_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rule.yaml").write_text(RULE)
    names = ["/does/not/exist.yaml", str(tmp_path / "rule.yaml")]
    assert run(["validate", "-o", "json", "-f", *names]) == 65
    missing, fine = json.loads(capsys.readouterr().out)
    assert missing == {
        "resource": "file", "file": names[0], "line": 0, "valid": False, "warnings": [],
        "errors": [{"path": "", "message": "No such file or directory"}],
    }  # fmt: skip
    assert (fine["file"], fine["valid"]) == (names[1], True)
