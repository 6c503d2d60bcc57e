"""System tests own the machine's ports and its time: one runs at a time, whatever the workers."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _one_at_a_time() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "meshsdk-system-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
