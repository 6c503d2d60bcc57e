"""`meshctl serve` as a process; its log is read line by line."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
import weakref

from tests.support.programs import ROOT


class Serving:
    """Ports are free ones unless `argv` names others."""

    def __init__(self, *argv: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "controlplane", "serve", "--xds-port", "0",
             "--http-port", "0", *argv],
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("MESHSDK")},
        )  # fmt: skip
        weakref.finalize(self, self.process.kill)  # a test that fails leaves nothing behind
        self._rest = b""
        self.xds = ""
        self.server = ""

    def ready(self) -> Serving:
        line = self.until(r"serving .* HTTP on ")
        found = re.search(r"xDS on ([][\w.:]+), HTTP on ([][\w.:]+)", line)
        assert found
        self.xds = found[1]
        self.server = f"http://{found[2]}"
        return self

    def until(self, pattern: str, seconds: float = 20) -> str:
        """The next log line that matches."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            while b"\n" in self._rest:
                raw, _, self._rest = self._rest.partition(b"\n")
                self.lines.append(raw.decode())
                if re.search(pattern, self.lines[-1]):
                    return self.lines[-1]
            if select.select([self.process.stderr], [], [], left)[0]:
                chunk = os.read(self.process.stderr.fileno(), 65536)
                if not chunk:
                    break
                self._rest += chunk
        raise AssertionError(f"no line matches {pattern!r} in:\n" + "\n".join(self.lines))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def rest(self) -> str:
        """All that it says until its end."""
        assert self.process.stderr is not None
        text = self._rest + self.process.stderr.read()
        self.lines += text.decode().splitlines()
        return text.decode()
