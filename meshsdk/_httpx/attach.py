"""The mesh under an unchanged program: every `HTTPTransport`, made already or not yet.

Patched are `HTTPTransport.handle_request` and its async twin, so that `httpx.get()`, clients,
transports and subclasses of transports that the program makes itself are all covered. A transport
that is no `HTTPTransport` (a mock, ASGI), a proxy and a Unix socket stay what the program wants.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import logging
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from meshsdk._httpx.library import NAMES, library, loaded
from meshsdk._httpx.pool import adopt
from meshsdk._httpx.watch import Attachment
from meshsdk.mesh import default_mesh

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh

_log = logging.getLogger("meshsdk.httpx")

# The one attachment of this process: every pool that was adopted here looks at it, so that
# detaching needs to find none of them. `_lock` guards attach and detach.
_attachment = Attachment(None)
_lock = threading.Lock()
_patched: dict[tuple[str, str], tuple[Any, Any]] = {}


def attach(mesh: Mesh | None = None) -> None:
    """Make plain `httpx` and `httpx2` go through the mesh, imported already or later.

    Args:
        mesh: None is the mesh of this process. Attaching again replaces the mesh.
    """
    with _lock:
        _attachment.mesh = default_mesh() if mesh is None else mesh
        for name in loaded():
            _patch(sys.modules[name])
        if _hook not in sys.meta_path:
            sys.meta_path.insert(0, _hook)


def detach() -> None:
    """Undo `attach`: from the next request on everything goes out unchanged."""
    with _lock:
        _attachment.mesh = None
        if _hook in sys.meta_path:
            sys.meta_path.remove(_hook)
        for (name, kind), (original, ours) in list(_patched.items()):
            transport, method = getattr(library(name).httpx, kind), original.__name__
            # Whoever has patched on top of us keeps us below, where we now do nothing.
            if getattr(transport, method) is ours:
                setattr(transport, method, original)
                del _patched[name, kind]


def attached() -> list[str]:
    """The libraries that go through the mesh in this process; empty when it is not attached."""
    if _attachment.mesh is None:
        return []
    return [name for name in NAMES if importlib.util.find_spec(name) is not None]


def _patch(module: ModuleType) -> None:
    name = module.__name__
    for kind, method in (
        ("HTTPTransport", "handle_request"),
        ("AsyncHTTPTransport", "handle_async_request"),
    ):
        if (name, kind) not in _patched:
            transport = getattr(module, kind)
            original = getattr(transport, method)
            ours = _wrapper(name, original)
            setattr(transport, method, ours)
            _patched[name, kind] = original, ours


def _wrapper(name: str, original: Any) -> Any:
    core = library(name).core
    plain = (core.ConnectionPool, core.AsyncConnectionPool)
    proxies = (core.HTTPProxy, core.AsyncHTTPProxy, core.SOCKSProxy, core.AsyncSOCKSProxy)

    # Also right for the async twin, which hands its coroutine through.
    @functools.wraps(original)
    def handle(self: Any, request: Any) -> Any:
        pool = self._pool
        if type(pool) in plain:
            if pool._uds is None and _attachment.mesh is not None:
                _adopt_once(self, pool)
        elif isinstance(pool, proxies) and _attachment.mesh is not None:
            _say_proxied(request)
        return original(self, request)

    return handle


_said_proxied = False


def _say_proxied(request: Any) -> None:
    global _said_proxied
    if not _said_proxied:
        _said_proxied = True
        _log.warning(
            "%s goes through a proxy and not through the mesh; name the hosts of the mesh in "
            "NO_PROXY if that is not what you want",
            request.url.copy_with(query=None),
        )


def _adopt_once(transport: Any, pool: Any) -> None:
    with _lock:
        if transport._pool is pool:
            context = pool._ssl_context
            lenient = context is not None and not context.check_hostname
            adopt(transport, _attachment, overridden=lenient)


class _Hook(importlib.abc.MetaPathFinder):
    """Patches httpx and httpx2 when the program imports them: most programs need only one."""

    def __init__(self) -> None:
        self._asking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in NAMES or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.now = False
        loader: Any = spec.loader if spec is not None else None
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            with _lock:
                if _attachment.mesh is not None:
                    _patch(module)

        loader.exec_module = exec_module
        return spec


_hook = _Hook()
