"""Entries of the shared cases as parameters of a test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.support.programs import require_data

Case = dict[str, Any]


def entries(topic: str, name: str) -> list[Any]:
    """The entries of a JSON file as parameters; one that skips where the data is absent.

    Args:
        topic: the folder. name: the file without its ending.
    """
    try:
        path = require_data(topic) / f"{name}.json"
    except pytest.skip.Exception as reason:
        return [pytest.param({}, id=name, marks=pytest.mark.skip(str(reason)))]
    found: list[Case] = json.loads(path.read_text())
    return [pytest.param(case, id=f"{name}/{case['id']}") for case in found]


def each_case(
    topic: str,
    names: Iterable[str] | str,
    *,
    aside: Callable[[Case], str | None] = lambda case: None,
    awaits: Callable[[Case], str | None] = lambda case: None,
) -> Any:
    """Parametrize a test with every entry of files of a topic, as its argument `case`.

    Args:
        aside, awaits: why a case is not asked of this project, or what it waits for; None else.
    """
    files = [names] if isinstance(names, str) else list(names)
    params = [_marked(param, aside, awaits) for name in files for param in entries(topic, name)]

    def decorate(test: Any) -> Any:
        return pytest.mark.topic(topic)(pytest.mark.parametrize("case", params)(test))

    return decorate


def _marked(
    param: Any, aside: Callable[[Case], str | None], awaits: Callable[[Case], str | None]
) -> Any:
    (case,) = param.values
    if not case:
        return param
    if (reason := aside(case)) is not None:
        return pytest.param(case, id=param.id, marks=pytest.mark.aside(reason))
    if (what := awaits(case)) is not None:
        return pytest.param(case, id=param.id, marks=pytest.mark.awaits(what))
    return param
