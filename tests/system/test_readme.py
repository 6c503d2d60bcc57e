"""The README does what it says: its five minutes are typed into a shell, and nothing else is."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import typer

from controlplane.cli import app
from meshsdk.run import _FLAGS
from meshsdk.settings import VARIABLES
from tests.support.markdown import Block, anchors, blocks, links, section
from tests.support.programs import ROOT, require

README = (ROOT / "README.md").read_text()
FIVE_MINUTES = "Mesh your own service in five minutes"
EXAMPLE = ROOT / "examples" / "hello"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_END = "--- end of block ---"
_VARY = "numbers vary"


def five_minutes() -> list[Block]:
    return blocks(section(README, FIVE_MINUTES))


def typed() -> list[tuple[str, Block | None]]:
    """Each shell block with the output that the README shows for it, if it shows one."""
    found: list[tuple[str, Block | None]] = []
    for block in five_minutes():
        if block.language == "sh":
            found.append((block.text, None))
        elif block.language == "text":
            assert found, "an output without a command in front of it"
            assert found[-1][1] is None, "two outputs for one command"
            found[-1] = (found[-1][0], block)
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a reader has in front of him: everything of the checkout, in a place of its own."""
    for entry in ROOT.iterdir():
        if entry.name != ".git":
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def type_into_bash(commands: list[str], folder: Path) -> list[str]:
    """What is seen on the terminal after each of the commands, in one shell."""
    script = "".join(f"{command}echo '{_END}'\n" for command in commands)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MESH", "COVERAGE"))}
    shell = subprocess.Popen(
        ["bash", "-s"],
        cwd=folder,
        env=environ | {"COLUMNS": "100"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(script, timeout=100)
    finally:
        # What the last block should have stopped; the group is the shell's own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    return output.split(f"{_END}\n")[:-1]


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("readme")
def test_five_minutes_as_typed(checkout: Path) -> None:
    require("curl", how="apt-get install -y curl")
    steps = typed()
    outputs = type_into_bash([command for command, _ in steps], checkout)
    logs = "\n".join(f"{log}:\n{log.read_text()}" for log in sorted(checkout.glob("hello/*.log")))
    assert len(outputs) == len(steps), (outputs, logs)
    for (command, expected), output in zip(steps, outputs, strict=True):
        if expected is None:
            assert output == "", (command, logs)
        elif expected.note == _VARY:
            assert _without_numbers(output) == _without_numbers(expected.text), (command, logs)
        else:
            assert output == expected.text, (command, logs)
    assert "Traceback" not in logs
    _check_the_canary(outputs)


def _without_numbers(text: str) -> str:
    return re.sub(r" *\d+(?= front)", "N", text)


def _check_the_canary(outputs: list[str]) -> None:
    """100 calls at 20 %: fewer than 5 or more than 39 once in 60 000 runs."""
    counts = dict(re.findall(r"(\d+) front: hello from (v\d)", "".join(outputs)))
    split = {version: int(count) for count, version in counts.items()}
    assert sum(split.values()) == 100
    assert 5 <= split["v2"] <= 39


def test_the_code_shown_is_the_code_that_runs() -> None:
    files = {path.read_text() for path in EXAMPLE.rglob("*") if path.is_file() and _text(path)}
    shown = [block for block in five_minutes() if block.language in ("python", "yaml")]
    assert shown
    for block in shown:
        assert block.text in files


def _text(path: Path) -> bool:
    return path.suffix in (".py", ".yaml")


def test_the_services_know_nothing_of_the_mesh() -> None:
    for path in EXAMPLE.glob("*.py"):
        assert "mesh" not in path.read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for path, fragment in links(document.read_text()):
        target = document.parent / path if path else document
        assert target.exists(), path
        if fragment:
            assert fragment in anchors(target.read_text()), f"{path}#{fragment}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_and_json_in_documents_parse(document: Path) -> None:
    for block in blocks(document.read_text()):
        if block.language == "python":
            compile(block.text, document.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        elif block.language == "json":
            json.loads(block.text)


def test_every_variable_and_flag_is_documented() -> None:
    python = (ROOT / "docs" / "python.md").read_text()
    for name in {*VARIABLES.values(), *(variable for variable, _ in _FLAGS.values())}:
        assert f"`{name}" in python, name
    operate = (ROOT / "docs" / "operate.md").read_text()
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    for parameter in serve.params:
        for flag in parameter.opts:
            assert flag in operate, flag
