"""The demo as a newcomer runs it: all sixteen steps, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("demo")]


def demo(*arguments: str, temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        # A shell that is set up for another mesh, or for a proxy, changes nothing.
        env=os.environ
        | {
            "TMPDIR": str(temporary),
            "MESHSDK_CONTROL_PLANE": "127.0.0.1:1",
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def started_below(temporary: Path) -> list[int]:
    """Processes whose logs are in `temporary`: what a demo has started and not stopped."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(temporary) in os.readlink(entry / "fd" / "1"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_all_steps_pass_and_nothing_is_left(tmp_path: Path) -> None:
    started = time.monotonic()
    output, _ = demo(temporary=tmp_path).communicate(timeout=280)
    seconds = time.monotonic() - started
    assert output.endswith("\n16 passed, 0 failed\n"), output
    for number in range(1, 17):
        assert re.search(rf"^ ?{number} PASSED ", output, re.M), output
    assert "Traceback" not in output
    assert started_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    print(f"the demo took {seconds:.0f} s")


def test_an_interrupted_demo_stops_what_it_has_started(tmp_path: Path) -> None:
    process = demo("--step", "1", "--step", "8", temporary=tmp_path)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(" 1 PASSED"):
            break
    assert len(started_below(tmp_path)) >= 12
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Everything that was started has been stopped." in rest
    assert "Traceback" not in rest
    assert started_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_does_not_start_is_named_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "flask.py").write_text('raise SystemExit("flask is not what it was")\n')
    monkeypatch.setenv("PYTHONPATH", str(broken))
    process = demo("--step", "1", temporary=tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "details-v1 does not start" in output
    assert "flask is not what it was" in output
    assert re.search(r"^The logs are in \S+$", output, re.M)
    assert "Traceback" not in output
    assert started_below(tmp_path) == []


def test_keep_leaves_everything_running_and_says_how_to_stop_it(tmp_path: Path) -> None:
    process = demo("--keep", "--one-address", "--step", "1", temporary=tmp_path)
    output, _ = process.communicate(timeout=120)
    try:
        assert process.returncode == 0, output
        page = re.search(r"^The page: +(http://127\.0\.0\.1:\d+/productpage)$", output, re.M)
        stop = re.search(r"^To stop it all: +(.*)$", output, re.M)
        assert page, output
        assert stop, output
        curl = [sys.executable, "-c", "import sys,httpx;print(httpx.get(sys.argv[1]).text)"]
        text = subprocess.run([*curl, page[1]], capture_output=True, text=True, timeout=30).stdout
        assert "What readers say" in text
        assert len(started_below(tmp_path)) >= 12
        subprocess.run(["sh", "-c", stop[1]], check=True, timeout=60)
        deadline = time.monotonic() + 30
        while started_below(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert started_below(tmp_path) == []
    finally:
        for pid in started_below(tmp_path):
            os.kill(pid, signal.SIGKILL)
