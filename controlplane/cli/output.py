"""What commands print: mistakes on standard error, tables and data on standard output."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table


class Format(enum.StrEnum):
    """Values of `-o`."""

    SHORT = "short"
    JSON = "json"
    YAML = "yaml"


class Failure(Exception):
    """A command cannot do what it was asked; its text is for the user.

    Args:
        code: exit code, 1 unless it is the data's (65) or the caller's (64) fault.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def complain(line: str) -> None:
    """One line to standard error."""
    print(line, file=sys.stderr)


def say(line: str = "") -> None:
    """One line to standard output."""
    print(line)


def data(value: Any, form: Format) -> None:
    """A value as JSON or YAML on standard output."""
    if form is Format.YAML:
        # protobuf's JSON has mappings of its own, which PyYAML does not know.
        plain = json.loads(json.dumps(value))
        yaml.safe_dump(plain, sys.stdout, sort_keys=False, default_flow_style=False)
    else:
        json.dump(value, sys.stdout, indent=2)
        print()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as istioctl prints them: no lines, two spaces between."""
    view = Table(box=None, pad_edge=False, header_style="bold" if sys.stdout.isatty() else "")
    for column in columns:
        view.add_column(column, no_wrap=True, overflow="ignore")
    for row in rows:
        view.add_row(*row)
    wide = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    wide.print(view)
