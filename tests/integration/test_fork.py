"""A parent with an open stream forks: the children start anew, the parent goes on unharmed.

The forking process is one of its own, so that no thread of the test's server is forked with it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ads import AdsProcess, AdsServer
from tests.support.resources import endpoints, service

NAME = "reviews.default.svc.cluster.local:9080"
CLUSTER = "outbound|9080||reviews.default.svc.cluster.local"
ROOT = Path(__file__).resolve().parents[2]
CHILDREN = 20

_PARENT = f"""
import multiprocessing, os, sys, threading, time, traceback
import meshsdk
from meshsdk.model import Snapshot

NAME = {NAME!r}
mesh = meshsdk.Mesh(control_plane=sys.argv[1], auto_register_group="g")

def targets():
    view = mesh.wait_for(NAME, 30)
    return sorted(e.target for c in view.clusters.values() for e in c.endpoints)

def tell(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()

class Owner:
    forgotten = 0
    def forget(self):
        self.forgotten += 1

owner = Owner()
mesh.on_fork(owner.forget)
"""

_AT_ONCE = (
    _PARENT
    + f"""
def child(results):
    try:
        assert mesh.snapshot.view(NAME) is None
        assert owner.forgotten == 1
        names = [t.name for t in threading.enumerate()]
        assert names == ["MainThread"], names
        for _ in range(100):
            assert targets() == ["127.0.0.1:1"]
        results.put("ok")
    except BaseException:
        results.put(traceback.format_exc())

context = multiprocessing.get_context("fork")
results = context.SimpleQueue()
before = targets()
view = mesh.snapshot.view(NAME)
children = [context.Process(target=child, args=(results,)) for _ in range({CHILDREN})]
for process in children:
    process.start()
answers = [results.get() for _ in children]
for process in children:
    process.join()
    assert process.exitcode == 0, process.exitcode
assert mesh.snapshot.view(NAME) is view
assert owner.forgotten == 0
tell(*set(answers))
hear()
deadline = time.monotonic() + 30
while targets() != ["127.0.0.1:2"] and time.monotonic() < deadline:
    time.sleep(0.01)
tell(*targets())
"""
)


@pytest.fixture
def parent(ads_server: AdsServer) -> Iterator[list[subprocess.Popen[str]]]:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_twenty_children_at_once(
    ads_server: AdsServer, parent: list[subprocess.Popen[str]]
) -> None:
    process = start(_AT_ONCE, ads_server.address)
    parent.append(process)
    assert line_of(process) == "ok"
    assert ads_server.streams_total == 1 + CHILDREN
    ads_server.wait(lambda: len(ads_server.streams) == 1)
    assert ads_server.streams[0].number == 1  # the parent's own, never broken
    ads_server.set(endpoints(CLUSTER, [("127.0.0.1", 2)]))
    go_on(process)
    assert line_of(process) == "127.0.0.1:2"
    assert process.wait(timeout=30) == 0
    assert ads_server.streams_total == 1 + CHILDREN


_FULL_EXIT = (
    _PARENT
    + """
targets()
for _ in range(5):
    child = os.fork()
    if child == 0:
        mesh.register(port=80)
        del mesh
        sys.exit(0)  # with everything that the interpreter frees at its end
    assert os.waitpid(child, 0)[1] == 0
for _ in range(5):
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
tell("done")
hear()
tell(*targets())
"""
)


def test_children_that_end_like_programs_break_nothing(
    ads_server: AdsServer, parent: list[subprocess.Popen[str]]
) -> None:
    process = start(_FULL_EXIT, ads_server.address)
    parent.append(process)
    assert line_of(process) == "done"
    ads_server.wait(lambda: len(ads_server.streams) == 1)
    assert ads_server.streams[0].number == 1
    go_on(process)
    assert line_of(process) == "127.0.0.1:1"
    assert process.wait(timeout=30) == 0


_STARTING = (
    _PARENT
    + """
mesh.register(port=80)  # starts the thread, which now imports grpc
for moment in range(8):
    child = os.fork()
    if child == 0:
        try:
            assert targets() == ["127.0.0.1:1"], mesh.snapshot
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0, (moment, status)
    time.sleep(moment / 100)
tell(*targets())
"""
)


def test_a_fork_while_the_parent_starts(
    ads_server: AdsServer, parent: list[subprocess.Popen[str]]
) -> None:
    process = start(_STARTING, ads_server.address)
    parent.append(process)
    assert line_of(process) == "127.0.0.1:1"
    assert process.wait(timeout=30) == 0


_GRANDCHILD = (
    _PARENT
    + """
targets()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        tell(*targets())
        os._exit(0)
    status = os.waitpid(grandchild, 0)[1]
    tell(*targets())
    os._exit(status)
assert os.waitpid(child, 0)[1] == 0
tell(*targets())
"""
)


@pytest.mark.parametrize("script", [_GRANDCHILD])
def test_children_have_children(
    ads_server: AdsServer, parent: list[subprocess.Popen[str]], script: str
) -> None:
    process = start(script, ads_server.address)
    parent.append(process)
    assert [line_of(process) for _ in range(3)] == ["127.0.0.1:1"] * 3


def test_a_child_keeps_what_its_parent_knew_while_the_control_plane_is_away(
    tmp_path: Path, parent: list[subprocess.Popen[str]]
) -> None:
    script = (
        _PARENT
        + """
targets()
tell("ready")
hear()
child = os.fork()
if child == 0:
    # The child of a child that never asked, too.
    grandchild = os.fork()
    if grandchild == 0:
        tell(*targets(), mesh.snapshot.stale_since is not None)
        os._exit(0)
    os._exit(os.waitpid(grandchild, 0)[1])
assert os.waitpid(child, 0)[1] == 0
"""
    )
    with AdsProcess(tmp_path, service(NAME, [("127.0.0.1", 1)])) as control_plane:
        process = start(script, control_plane.address)
        parent.append(process)
        assert line_of(process) == "ready"
        control_plane.kill()
        go_on(process)
        assert line_of(process) == "127.0.0.1:1 True"
        assert process.wait(timeout=30) == 0


def test_a_child_registers_for_itself(
    ads_server: AdsServer, parent: list[subprocess.Popen[str]]
) -> None:
    script = (
        _PARENT
        + """
registration = mesh.register(port=80)
mesh.wait_ready(30)
child = os.fork()
if child == 0:
    targets()
    tell("asked")
    hear()
    registration.set_health("UNHEALTHY")
    tell("registered")
    hear()
    registration.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
tell("done")
hear()
"""
    )
    process = start(script, ads_server.address)
    parent.append(process)
    assert line_of(process) == "asked"
    assert "MESHSDK_PORTS" in ads_server.nodes[0].metadata
    assert "MESHSDK_PORTS" not in ads_server.streams[-1].node.metadata
    go_on(process)
    assert line_of(process) == "registered"
    ads_server.wait(lambda: len(ads_server.health) >= 2)
    assert ads_server.health[-1].node.metadata["MESHSDK_HEALTH"] == "UNHEALTHY"
    go_on(process)
    assert line_of(process) == "done"
    assert ads_server.health[-1].error_detail.message == "deregister"
    ads_server.wait(lambda: [s.number for s in ads_server.streams] == [1])
    go_on(process)
    assert process.wait(timeout=30) == 0
