"""A script that has used the mesh ends at once, whatever state the stream is in."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.ads import AdsServer, free_port
from tests.support.programs import unmeasured
from tests.support.resources import service

NAME = "reviews.default.svc.cluster.local:9080"
ROOT = Path(__file__).resolve().parents[2]

_START = """
import sys, threading, time
import meshsdk
mesh = meshsdk.Mesh(control_plane=sys.argv[1], auto_register_group="g")
"""
_CALL = f"mesh.wait_for({NAME!r}, 30)\n"
_NEVER = f"""
try: mesh.wait_for({NAME!r}, 0.05)
except meshsdk.NotReady: pass
"""
_LAST = "print(time.time(), flush=True)\n"

SCRIPTS = {
    "after a call": _START + _CALL + _LAST,
    "connecting": _START + _NEVER + _LAST,
    "registered": _START + _CALL + "mesh.register(port=80)\n" + _LAST,
    "closed": _START + _CALL + "mesh.close()\n" + _LAST,
    "sys.exit": _START + _CALL + _LAST + "sys.exit(0)\n",
    "in a thread": _START + f"threading.Thread(target=mesh.wait_for, args=({NAME!r}, 30)).start()\n"
    "while mesh.snapshot.view(" + repr(NAME) + ") is None: time.sleep(0.01)\n" + _LAST,
    "two meshes": _START + _CALL + _START + _CALL + _LAST,
}


def seconds_to_exit(script: str, address: str) -> float:
    """Seconds between the script's last line and the end of its process."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, address],
        cwd=ROOT,
        env=unmeasured(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    last_line = float(process.stdout.readline())
    try:
        _, errors = process.communicate(timeout=40)
    finally:
        process.kill()
    elapsed = time.time() - last_line
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return elapsed


@pytest.mark.parametrize("state", SCRIPTS)
def test_a_script_exits_within_half_a_second_of_its_last_line(
    ads_server: AdsServer, state: str
) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    # On a busy machine one exit may be slow; being slow each time is a fault.
    assert any(seconds_to_exit(SCRIPTS[state], ads_server.address) < 0.5 for _ in range(5))


def test_a_script_without_its_control_plane_exits_as_fast() -> None:
    address = f"127.0.0.1:{free_port()}"
    assert any(seconds_to_exit(SCRIPTS["connecting"], address) < 0.5 for _ in range(5))


def test_a_registered_process_takes_its_leave(ads_server: AdsServer) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    seconds_to_exit(SCRIPTS["registered"], ads_server.address)
    last = ads_server.wait(lambda: ads_server.health and ads_server.health[-1])
    ads_server.wait(lambda: ads_server.health[-1].error_detail.message == "deregister")
    assert last.node.user_agent_name == "meshsdk"


def test_many_exits_never_hang(ads_server: AdsServer) -> None:
    ads_server.set(service(NAME, [("127.0.0.1", 1)]))
    code = SCRIPTS["sys.exit"]
    for _ in range(6):
        batch = [
            subprocess.Popen(
                [sys.executable, "-c", code, ads_server.address],
                cwd=ROOT, stdout=subprocess.DEVNULL,
            )
            for _ in range(4)
        ]  # fmt: skip
        for process in batch:
            try:
                assert process.wait(timeout=60) == 0
            finally:
                process.kill()
