"""httpx and httpx2: one of them, both, or neither may be there."""

from __future__ import annotations

import sys
from typing import Any

NAMES = ("httpx", "httpx2")


class Library:
    """One of httpx and httpx2, with the httpcore below it."""

    def __init__(self, name: str) -> None:
        import importlib

        self.name = name
        self.httpx: Any = importlib.import_module(name)
        self.core: Any = importlib.import_module(name.replace("httpx", "httpcore"))

    def genuine(self, method: Any) -> bool:
        """Whether a method of httpcore's pool is httpcore's own, and not a mock's."""
        home = getattr(method, "__globals__", {}).get("__name__", "")
        return str(home).startswith(f"{self.core.__name__}.")


def library_of(thing: object) -> Library:
    """The library that an object of httpx or httpx2, or of a subclass of one, belongs to."""
    for kind in type(thing).__mro__:
        name = kind.__module__.partition(".")[0]
        if name in NAMES:
            return library(name)
    raise TypeError(f"{thing!r} belongs to neither httpx nor httpx2")


_libraries: dict[str, Library] = {}


def library(name: str) -> Library:
    """`httpx` or `httpx2`, imported.

    Raises:
        ImportError: it is not installed.
    """
    known = _libraries.get(name)
    if known is None:
        known = _libraries[name] = Library(name)
    return known


def loaded() -> list[str]:
    """Which of httpx and httpx2 this process has imported, the first one first."""
    return [name for name, module in list(sys.modules.items()) if name in NAMES and _whole(module)]


def _whole(module: Any) -> bool:
    """Not in the middle of its import."""
    return hasattr(module, "AsyncHTTPTransport")


def default_library() -> str:
    """A library that is imported already, or else one that is installed.

    Raises:
        ImportError: neither is; says what to install.
    """
    for name in [*loaded(), *NAMES]:
        try:
            return library(name).name
        except ImportError:
            continue
    raise ImportError(
        "neither httpx nor httpx2 is installed: pip install 'meshsdk[httpx]' or 'meshsdk[httpx2]'"
    )
