"""Envoy's router check files, run as `meshctl route-check` runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.cli import run
from tests.support.cases import Case, each_case, entries
from tests.support.programs import require_data


@each_case(
    "envoy/router_check",
    [
        "ClusterHeader",
        "ComprehensiveRoutes",
        "ContentType",
        "DetailedCoverage",
        "DirectResponse",
        "DynamicMetadata",
        "HeaderMatchedRouting",
        "Redirect",
        "Redirect2",
        "Redirect3",
        "Redirect4",
        "Runtime",
        "TestRoutes",
        "TestRoutesFailures",
        "Weighted",
    ],
)
def test_route_check(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routes = require_data("envoy/router_check") / "config" / case["config"]
    test = {name: case[name] for name in ("test_name", "input", "validate")}
    tests = tmp_path / "tests.json"
    tests.write_text(json.dumps({"tests": [test]}))
    code = run(["route-check", str(routes), str(tests), "-o", "json"])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["passed"] == 1) == case["expect_pass"], answer["failures"]
    assert code == (0 if case["expect_pass"] else 1)
    if not case["expect_pass"]:
        wanted = len(case["validate"]["response_header_matches"])
        assert len(answer["failures"]) == wanted


def test_every_file_is_run() -> None:
    folder = require_data("envoy/router_check")
    known = {path.stem for path in folder.glob("*.json")}
    mark = next(m for m in test_route_check.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert {param.id.partition("/")[0] for param in mark.args[1]} == known
    assert sum(len(entries("envoy/router_check", name)) for name in known) == len(mark.args[1])
