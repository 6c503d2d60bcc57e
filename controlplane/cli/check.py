"""`meshctl route-check`: unit tests for routes, in the files of Envoy's router check tool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from controlplane import routecheck
from controlplane.cli.output import Failure, Format, data, say
from meshsdk.errors import InvalidResource
from meshsdk.model import RouteConfiguration
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.document import message_of
from meshsdk.xds.resources import ROUTE

_DATA = 65
_HELP = """\
Run unit tests for routes, written for Envoy's router check tool, on a RouteConfiguration.

[bold]Examples[/]

  meshctl route-check routes.yaml tests.json

  meshctl route-check routes.yaml tests.yaml -o json
"""


def register(app: typer.Typer) -> None:
    app.command("route-check", help=_HELP)(route_check)


def route_check(
    routes: Annotated[
        str, typer.Argument(help="A RouteConfiguration, YAML or JSON.", metavar="ROUTES")
    ],
    tests: Annotated[
        str, typer.Argument(help="The tests, YAML or JSON, as Envoy's tool.", metavar="TESTS")
    ],
    output: Annotated[Format, typer.Option("-o", "--output", help="Form of the answer.")] = (
        Format.SHORT
    ),
) -> None:
    config = _routes(routes)
    results = _run(config, tests)
    failures = [failure for found in results.values() for failure in found]
    failed = sum(1 for found in results.values() if found)
    answer = {"passed": len(results) - failed, "failed": failed, "failures": failures}
    if output is not Format.SHORT:
        data(answer, output)
    else:
        for failure in failures:
            say(
                f"{failure['test']}: {failure['check']} is {failure['actual']!r},"
                f" expected {failure['expected']!r}"
            )
        say(f"{answer['passed']} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


def _run(config: RouteConfiguration, file: str) -> dict[tuple[int, str], list[Any]]:
    """The failures of each test."""
    results: dict[tuple[int, str], list[Any]] = {}
    try:
        cases = routecheck.tests_of(_document(file))
    except routecheck.BadTest as error:
        raise Failure(f"{file}: {error}", _DATA) from None
    for index, test in enumerate(cases):
        name = str(test.get("test_name", ""))
        results[index, name] = [
            {
                "test": name,
                "check": failure.check,
                "expected": failure.expected,
                "actual": failure.actual,
            }
            for failure in _checked(config, test, f"{file}: tests[{index}] {name!r}")
        ]
    return results


def _checked(
    config: RouteConfiguration, test: Mapping[str, Any], where: str
) -> list[routecheck.Failure]:
    try:
        return routecheck.check(config, test)
    except (ValueError, TypeError, AttributeError) as error:
        raise Failure(f"{where}: {error}", _DATA) from None


def _routes(file: str) -> RouteConfiguration:
    try:
        message = message_of(_document(file), "envoy.config.route.v3.RouteConfiguration")
        config: RouteConfiguration = DECODERS[ROUTE].decode(message, [])
    except InvalidResource as error:
        raise Failure(f"{file}: {error.field or 'the document'}: {error.problem}", _DATA) from None
    except ValueError as error:
        raise Failure(f"{file}: {error}", _DATA) from None
    return config


def _document(file: str) -> Any:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise Failure(f"{file}: {reason}", _DATA) from None
    try:
        # JSON is YAML but for tabs, which Envoy's own files have none of.
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "is not YAML"
        raise Failure(f"{file}{line}: {problem}", _DATA) from None
