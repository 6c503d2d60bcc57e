"""The mesh for a program that does not know of it: `python -m meshsdk run PROGRAM`.

`attach()` patches each library when the program imports it, and loads none by itself: a program
that uses neither gRPC nor httpx pays for neither. What is patched is listed in `_PATCHES`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_log = logging.getLogger("meshsdk.attach")

# Module of the library → where its patch is (module of this package, function).
_PATCHES = {
    "grpc": ("clients", "patch_grpc"),
    "httpx": ("clients", "patch_httpx"),
    "httpx2": ("clients", "patch_httpx2"),
    "uvicorn.config": ("servers", "patch_uvicorn_config"),
    "uvicorn.server": ("servers", "patch_uvicorn_server"),
    "gunicorn.workers.base": ("servers", "patch_gunicorn"),
    "gunicorn.workers.gasgi": ("servers", "patch_gunicorn_asgi"),
    "werkzeug.serving": ("servers", "patch_werkzeug"),
}

_done: dict[str, str] = {}
"""Patched module → "" or what went wrong. Written under the import lock of that module."""


def attach() -> None:
    """Attach the mesh of the environment to this process; a second call does nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name in _PATCHES:
        module = sys.modules.get(name)
        if module is not None:
            _patch(module)


def attached() -> dict[str, str]:
    """What is patched in this process: module → "" or what went wrong."""
    return dict(_done)


def is_attached() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def _patch(module: ModuleType) -> None:
    """Patch a library; whatever happens, the program gets its library."""
    name = module.__name__
    if name in _done:
        return
    home, function = _PATCHES[name]
    try:
        patch: Callable[[ModuleType], None]
        patch = getattr(importlib.import_module(f"meshsdk.attach.{home}"), function)
        patch(module)
        _done[name] = ""
    except Exception as error:
        _done[name] = f"{type(error).__name__}: {error}"
        _log.warning("%s is not covered by the mesh: %s", name, _done[name])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the others find, and arranges to be called after the import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _PATCHES:
            return None
        spec = self._found_by_others(fullname, path, target)
        loader: Any = spec.loader if spec else None
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # The loader stays what it is: tools that look at it (resources, source) find it whole.
            del loader.exec_module
            execute(module)
            _patch(module)

        try:
            loader.exec_module = exec_module
        except AttributeError:
            _log.warning("%s is not covered by the mesh: its loader is foreign", fullname)
        return spec

    def _found_by_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None
