"""Configuration given by `-f`: files, directories, or `-` for standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.output import Failure, complain
from controlplane.model.parse import Parsed, parse_text
from controlplane.sources.files import config_files, read_text, unreadable
from controlplane.world import ConfigError, World

Files = Annotated[
    list[str],
    typer.Option(
        "-f",
        "--filename",
        help="File or directory with YAML or JSON, - for standard input. May be repeated.",
        show_default=False,
    ),
]

MoreFiles = Annotated[
    list[str], typer.Argument(help="Further files, as in -f a.yaml b.yaml.", show_default=False)
]


def read(names: Sequence[str]) -> list[tuple[str, Parsed]]:
    """Parse every file that the names stand for, in order: (file, what it holds).

    Of directories, the files that `meshctl serve` would read.

    Raises:
        Failure: a file cannot be opened, or there is none.
    """
    return [pair for name in names for pair in _parsed(name)]


def checked(names: Sequence[str]) -> list[tuple[str, Parsed]]:
    """`read`, and refuse it all if anything is wrong.

    Raises:
        ConfigError: with every mistake.
    """
    found = read(names)
    errors = tuple(error for _, parsed in found for error in parsed.errors)
    if errors:
        raise ConfigError(errors)
    return found


def load(names: Sequence[str]) -> World:
    """The world that these files describe; warnings go to standard error.

    Raises:
        ConfigError: a document is wrong.
        Failure: a file cannot be read.
    """
    parsed = [content for _, content in checked(names)]
    world = World.build(r for content in parsed for r in content.resources)
    for content in parsed:
        for finding in content.findings:
            complain(str(finding))
    for finding in world.findings:
        complain(str(finding))
    return world


def _parsed(name: str) -> list[tuple[str, Parsed]]:
    if name == "-":
        return [("<stdin>", _stdin())]
    if not Path(name).is_dir():
        return [(name, _file(name, pipes=True))]
    inside = sorted(config_files(name))
    if not inside:
        raise Failure(f"{name}: no YAML or JSON file in this directory", 65)
    return [(file, _file(file)) for file in inside]


def _file(name: str, *, pipes: bool = False) -> Parsed:
    try:
        return parse_text(read_text(name, pipes=pipes), name)
    except OSError as error:
        raise Failure(f"{name}: {error.strerror or error}", 65) from None
    except ValueError as error:
        return unreadable(name, error)


def _stdin() -> Parsed:
    try:
        return parse_text(sys.stdin.read(), "<stdin>")
    except UnicodeDecodeError as error:
        return unreadable("<stdin>", error)
