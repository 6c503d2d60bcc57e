"""Row 22 of the day-one configuration: an EnvoyFilter's access log, printed by the SDK.

The application is a process of its own: the lines stand on its standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from tests.day_one.conftest import METHOD, Day
from tests.support.programs import ROOT

HTTP, GRPC = "http://reviews:9080", "reviews:9081"
TRACE = {"x-b3-traceid": "463ac35c9f6413ad48485a3953bb6124", "x-b3-spanid": "a2fb4a1d1a96d312"}
CALLS: dict[str, str] = {
    "httpx": f"""
        import httpx
        with httpx.Client(transport=mesh.transport(), timeout=20) as client:
            client.get("{HTTP}/reviews/1?full=yes")
            client.post("{HTTP}/", content=b"x", headers=TRACE)
    """,
    "httpx async": f"""
        import asyncio, httpx
        async def main():
            async with httpx.AsyncClient(transport=mesh.async_transport(), timeout=20) as client:
                await client.get("{HTTP}/reviews/1?full=yes")
                await client.post("{HTTP}/", content=b"x", headers=TRACE)
        asyncio.run(main())
    """,
    "grpc": f"""
        with mesh.channel("{GRPC}") as channel:
            call = channel.unary_unary("{METHOD}")
            call(b"", timeout=20)
            call(b"", timeout=20, metadata=tuple(TRACE.items()))
    """,
    "grpc aio": f"""
        import asyncio
        async def main():
            async with mesh.aio_channel("{GRPC}") as channel:
                call = channel.unary_unary("{METHOD}")
                await call(b"", timeout=20)
                await call(b"", timeout=20, metadata=tuple(TRACE.items()))
        asyncio.run(main())
    """,
}


def printed(day: Day, adapter: str) -> list[dict[str, Any]]:
    """What an application prints that makes two calls, the second one with a trace."""
    program = (
        "from meshsdk import Mesh\n"
        f"TRACE = {TRACE!r}\n"
        f"mesh = Mesh(control_plane={day.address!r}, namespace='default')\n"
        f"{textwrap.dedent(CALLS[adapter])}\n"
        "mesh.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("adapter", CALLS)
def test_22_each_call_is_a_json_line(day: Day, adapter: str) -> None:
    day.bring("22")
    first, traced = printed(day.start(), adapter)
    over_http = adapter.startswith("httpx")
    assert isinstance(first.pop("duration"), int)
    assert first == {
        "method": "GET" if over_http else "POST",
        "path": "/reviews/1?full=yes" if over_http else METHOD,
        "protocol": "HTTP/1.1" if over_http else "HTTP/2",
        "status": 200,
        "trace_id": None,
    }
    assert traced["method"] == "POST"
    assert traced["trace_id"] == TRACE["x-b3-traceid"]


def test_22_without_the_filter_nothing_is_printed(day: Day) -> None:
    assert printed(day.start(), "httpx") == []
