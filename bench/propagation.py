"""How long a changed VirtualService takes to be in effect in many connected processes.

The processes are real SDK processes that route a request by their snapshot in a tight loop and
report the moment at which the decision changed. The clock starts before the file is written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from bench import peers
from bench.processes import bootstrap

Child = subprocess.Popen[str]

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: bench-grpc, namespace: default}}
spec:
  hosts: [bench-grpc.default.svc.cluster.local]
  http:
  - directResponse: {{status: {status}}}
"""

WATCHER = """\
import random, sys, time
import meshsdk
from meshsdk.call import Reply, Request, decide

mesh = meshsdk.default_mesh()
name = mesh.listener_name("bench-grpc:9080", 80)
request = Request("GET", "/", authority="bench-grpc:9080")
mesh.wait_for(name, 20)
print("ready", flush=True)
seen = 0
until = time.monotonic() + 300
while time.monotonic() < until:
    decision = decide(mesh.snapshot.view(name), request, random.random)
    status = decision.status if isinstance(decision, Reply) else 0
    if status != seen:
        seen = status
        print(status, time.time(), flush=True)
    time.sleep(0.005)
"""


def run(count: int, changes: int) -> list[float]:
    """Seconds from the write of the file until the last process decides by it, per change."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        rules = folder / "rules"
        rules.mkdir()
        documents = peers.service_yaml("bench-grpc", [9], "grpc")
        address = stack.enter_context(
            peers.control_plane(folder / "cp", rules, documents=documents)
        )
        environ = bootstrap(address)
        watchers = [stack.enter_context(_watcher(environ)) for _ in range(count)]
        for watcher in watchers:
            _line(watcher)
        return [_change(rules, watchers, 200 + number) for number in range(changes)]


def _watcher(environ: dict[str, str]) -> AbstractContextManager[Child]:
    argv = [sys.executable, "-c", WATCHER]
    return peers.process(argv, stdout=subprocess.PIPE, env=os.environ | environ, cwd=peers.ROOT)


def _line(watcher: Child) -> str:
    assert watcher.stdout is not None
    line = watcher.stdout.readline()
    if not line:
        raise peers.Missing("a watching process ended")
    return line


def _change(rules: Path, watchers: list[Child], status: int) -> float:
    start = time.time()
    part = rules / "rule.yaml.part"
    part.write_text(RULE.format(status=status))
    part.rename(rules / "rule.yaml")
    arrived = []
    for watcher in watchers:
        while True:
            word, moment = _line(watcher).split()
            if int(word) == status:
                arrived.append(float(moment))
                break
    return max(arrived) - start
