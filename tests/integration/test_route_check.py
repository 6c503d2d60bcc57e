"""`meshctl route-check` as an operator uses it: answers, exit codes, mistakes in its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.cli import run

ROUTES = """\
virtual_hosts:
- name: reviews
  domains: ["reviews:9080", reviews]
  routes:
  - match: {prefix: /v2/}
    route: {cluster: v2, prefix_rewrite: /}
    request_headers_to_add: [{header: {key: x-version, value: "2"}}]
  - match: {prefix: /, runtime_fraction: {default_value: {numerator: 10}, runtime_key: canary}}
    route: {cluster: canary, timeout: {seconds: 3}}
  - match: {prefix: /}
    route: {cluster: v1}
"""
GOOD = """\
tests:
- test_name: to v2
  input: {authority: reviews, path: /v2/a, method: GET}
  validate:
    cluster_name: v2
    path_rewrite: /a
    request_header_matches: [{name: x-version, string_match: {exact: "2"}}]
- test_name: canary
  input: {authority: reviews, path: /, method: GET, runtime: canary, random_value: 9}
  validate: {cluster_name: canary}
- test_name: not canary
  input: {authority: reviews, path: /, method: GET, runtime: canary, random_value: 10}
  validate: {cluster_name: v1, virtual_host_name: reviews}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "routes.yaml").write_text(ROUTES)
    (tmp_path / "tests.yaml").write_text(GOOD)
    return tmp_path


def check(folder: Path, *more: str) -> int:
    return run(["route-check", str(folder / "routes.yaml"), str(folder / "tests.yaml"), *more])


def test_all_is_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folder) == 0
    assert capsys.readouterr().out == "3 passed, 0 failed\n"
    assert check(folder, "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"passed": 3, "failed": 0, "failures": []}


def test_a_failure_is_told_and_ends_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tests.yaml").write_text(GOOD.replace("cluster_name: v1", "cluster_name: v9"))
    assert check(folder) == 1
    told = capsys.readouterr().out.splitlines()
    assert told == ["not canary: cluster_name is 'v1', expected 'v9'", "2 passed, 1 failed"]
    assert check(folder, "-o", "json") == 1
    failure = {"test": "not canary", "check": "cluster_name", "expected": "v9", "actual": "v1"}
    found = json.loads(capsys.readouterr().out)
    assert found == {"passed": 2, "failed": 1, "failures": [failure]}


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("routes.yaml", "virtual_hosts: [{", "routes.yaml:1: "),
        ("routes.yaml", "virtual_host: []", 'no field named "virtual_host"'),
        ("routes.yaml", "virtual_hosts: [{name: a, domains: []}]", "virtual_hosts[0].domains"),
        ("tests.yaml", "a: b", "`tests`, a list of tests"),
        ("tests.yaml", "tests: [{test_name: a, input: {}}]", "validate is needed"),
        (
            "tests.yaml",
            "tests: [{test_name: a, input: {authority: a}, validate: {cluster: b}}]",
            "validate.cluster: unknown field",
        ),
        (
            "tests.yaml",
            "tests: [{test_name: a, input: {authority: a, path: /},"
            " validate: {request_header_matches: [{name: ''}]}}]",
            "validate.request_header_matches",
        ),
    ],
)
def test_mistakes_in_files_end_with_65(
    folder: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, told: str
) -> None:
    (folder / file).write_text(text)
    assert check(folder) == 65
    error = capsys.readouterr().err
    assert file in error
    assert told in error
    assert len(error.splitlines()) == 1


def test_a_file_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tests.yaml").unlink()
    assert check(folder) == 65
    assert "tests.yaml: No such file" in capsys.readouterr().err
