"""Programs that some tests need: where they are missing tests skip, and in CI fail."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def require(program: str, *, how: str) -> str:
    """The path of a program, or skip; in CI a missing program is a failure.

    Args:
        how: what to type to get it.
    """
    found = shutil.which(program)
    if found:
        return found
    return _missing(f"{program} is missing: {how}")


def require_envoy() -> str:
    """The path of the real Envoy that `make test` installs beside the environment."""
    site = ROOT.glob(".venv-envoy/lib/python3*/site-packages/envoy/_bin/envoy")
    for path in site:
        return str(path)
    return _missing("real Envoy is missing: make .venv-envoy/.installed")


def unmeasured() -> dict[str, str]:
    """The environment of a process whose end is timed: coverage would write its data then."""
    return {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_PROCESS")}


def require_data(topic: str) -> Path:
    """A folder of the shared cases, beside the checkout; skipped where it is absent, CI too."""
    for base in (os.environ.get("MESHSDK_TEST_DATA"), ROOT.parent / "shared" / "data"):
        if base and (Path(base) / topic).exists():
            return Path(base) / topic
    pytest.skip(f"the cases of {topic} are not here: set MESHSDK_TEST_DATA to their folder")


def _missing(message: str) -> str:
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
