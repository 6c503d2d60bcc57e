"""Entries of the shared cases as parameters of a test."""

from __future__ import annotations

import json
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
