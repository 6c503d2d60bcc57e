"""Servers of an unchanged program: gRPC, uvicorn, gunicorn, and the one of `flask run`.

Each is patched at three places: where it has its application (the middleware goes around it),
where it begins to listen (registration), and between the wish to stop and the end of accepting
(deregistration, drain).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from meshsdk.errors import MeshError
from meshsdk.serving import Port, Serving, numeric, termination

_log = logging.getLogger("meshsdk.attach")


def _in_mesh(make: Callable[[], Any], without: Any) -> Any:
    """`make()`, or `without` and one line when the environment is wrong: a server serves."""
    try:
        return make()
    except MeshError as error:
        _log.warning("this server runs without the mesh: %s", error)
        return without


def _serving() -> Serving | None:
    made: Serving | None = _in_mesh(lambda: Serving(None, os.environ), None)
    return made


def ports_of_sockets(sockets: Iterable[Any]) -> list[Port]:
    """What listens on `sockets`; one entry a port number, Unix sockets left out."""
    found: dict[int, Port] = {}
    for item in sockets:
        if getattr(item, "family", None) not in (socket.AF_INET, socket.AF_INET6):
            continue
        host, number = item.getsockname()[:2]
        found.setdefault(number, Port(number, address=numeric(host)))
    return list(found.values())


# --- gRPC ------------------------------------------------------------------------------------


def patch_grpc_server(grpc: ModuleType) -> None:
    raw = grpc.server

    @functools.wraps(raw)
    def server(*args: Any, xds: bool = False, **kwargs: Any) -> Any:
        from meshsdk import grpc_server

        if xds or len(args) > 6:
            return raw(*args, xds=xds, **kwargs) if xds else raw(*args, **kwargs)
        return _in_mesh(lambda: grpc_server.server(*args, **kwargs), None) or raw(*args, **kwargs)

    grpc.server = server  # type: ignore[attr-defined]


def patch_grpc_aio_server(aio: ModuleType) -> None:
    raw = aio.server

    @functools.wraps(raw)
    def server(*args: Any, **kwargs: Any) -> Any:
        from meshsdk import grpc_server

        made = _in_mesh(lambda: grpc_server.aio_server(*args, **kwargs), None)
        return made if made is not None else raw(*args, **kwargs)

    aio.server = server  # type: ignore[attr-defined]


# --- uvicorn ---------------------------------------------------------------------------------


def patch_uvicorn_config(module: ModuleType) -> None:
    """The application that a configuration has loaded gets the middleware around it."""
    config: Any = module.Config
    raw_load = config.load

    @functools.wraps(raw_load)
    def load(self: Any) -> None:
        from meshsdk.asgi import MeshMiddleware

        raw_load(self)
        app = self.loaded_app
        self.loaded_app = _in_mesh(lambda: MeshMiddleware(app, register=False), app)

    config.load = load


def patch_uvicorn_server(module: ModuleType) -> None:
    server: Any = module.Server
    raw_startup, raw_shutdown = server.startup, server.shutdown

    @functools.wraps(raw_startup)
    async def startup(self: Any, sockets: Any = None) -> None:
        await raw_startup(self, sockets=sockets)
        serving = _serving() if self.started else None
        if serving is not None:
            self._meshsdk_serving = serving
            listening = sockets or [s for one in self.servers for s in one.sockets]
            await asyncio.to_thread(serving.listening, *ports_of_sockets(listening))

    @functools.wraps(raw_shutdown)
    async def shutdown(self: Any, sockets: Any = None) -> None:
        serving = getattr(self, "_meshsdk_serving", None)
        if serving is not None:
            until = await asyncio.to_thread(serving.leave) + time.monotonic()
            while time.monotonic() < until and not self.force_exit:  # noqa: ASYNC110
                await asyncio.sleep(min(0.1, max(0.0, until - time.monotonic())))
        await raw_shutdown(self, sockets=sockets)

    server.startup = startup
    server.shutdown = shutdown


# --- gunicorn --------------------------------------------------------------------------------

_WSGI_WORKERS = frozenset(
    {"gunicorn.workers.sync", "gunicorn.workers.gthread", "gunicorn.workers.base_async"}
)


def patch_gunicorn(module: ModuleType) -> None:
    """Workers for WSGI. Those of uvicorn are covered as uvicorn is."""
    worker: Any = module.Worker
    raw_load = worker.load_wsgi

    @functools.wraps(raw_load)
    def load_wsgi(self: Any) -> None:
        raw_load(self)
        if not any(base.__module__ in _WSGI_WORKERS for base in type(self).__mro__):
            return
        from meshsdk.wsgi import MeshMiddleware

        app = self.wsgi
        self.wsgi = _in_mesh(lambda: MeshMiddleware(app, register=False), app)
        if _register_worker(self) is not None:
            # The worker's own handler of SIGTERM, which stops accepting, comes after the drain.
            termination.install()

    worker.load_wsgi = load_wsgi


def _register_worker(worker: Any) -> Serving | None:
    serving = _serving()
    if serving is None:
        return None
    worker._meshsdk_serving = serving
    # The kernel queues connections for a worker that is about to accept them.
    serving.listening(*ports_of_sockets(getattr(s, "sock", s) for s in worker.sockets))
    return serving


def patch_gunicorn_asgi(module: ModuleType) -> None:
    """gunicorn's own ASGI worker: its event loop sees signals before any handler of Python."""
    worker: Any = module.ASGIWorker
    raw_load, raw_exit = worker.load_wsgi, worker.handle_exit_signal

    @functools.wraps(raw_load)
    def load_wsgi(self: Any) -> None:
        from meshsdk.asgi import MeshMiddleware

        raw_load(self)
        app = self.asgi
        self.asgi = _in_mesh(lambda: MeshMiddleware(app, register=False), app)
        _register_worker(self)

    @functools.wraps(raw_exit)
    def handle_exit_signal(self: Any) -> None:
        serving = getattr(self, "_meshsdk_serving", None)
        if serving is None or not serving.registered:
            raw_exit(self)
            return

        def drain() -> None:
            serving.drain()
            self.loop.call_soon_threadsafe(raw_exit, self)

        threading.Thread(target=drain, name="meshsdk-drain", daemon=True).start()

    worker.load_wsgi = load_wsgi
    worker.handle_exit_signal = handle_exit_signal


# --- werkzeug (flask run, app.run) -----------------------------------------------------------


def patch_werkzeug(module: ModuleType) -> None:
    server: Any = module.BaseWSGIServer
    raw_serve = server.serve_forever

    @functools.wraps(raw_serve)
    def serve_forever(self: Any, *args: Any, **kwargs: Any) -> None:
        from meshsdk.wsgi import MeshMiddleware

        app = self.app
        self.app = _in_mesh(lambda: MeshMiddleware(app, register=False), app)
        serving = _serving()
        if serving is None:
            raw_serve(self, *args, **kwargs)
            return
        serving.listening(*ports_of_sockets([self.socket]))
        termination.install()
        try:
            raw_serve(self, *args, **kwargs)
        finally:
            serving.leave()

    server.serve_forever = serve_forever
