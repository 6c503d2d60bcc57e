"""The mesh of one process: configuration arriving from a control plane, and what uses it.

`Mesh` is the only joint between the xDS client and the rest. It owns three things:

- `snapshot`, the one reference to the configuration; replaced whole by the xDS thread
- the waiters for names that are not known yet
- the xDS client and its thread, which start at the first use and never at construction; `_lock`
  guards `_client`, `_closed` and `_registrations`

Adapters are imported when they are asked for, so that a program loads only what it uses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from meshsdk import settings as _settings
from meshsdk.adapters import Adapters
from meshsdk.errors import MeshClosed, NotReady
from meshsdk.fork import WeakCallbacks, abandon, follow, followed
from meshsdk.model import ListenerView, Locality, Snapshot
from meshsdk.registration import Registration, ServedPort, WorkloadHealth, checked, health_of, merge
from meshsdk.waiting import Waiters
from meshsdk.xds.client import XdsClient
from meshsdk.xds.lookup import Resolve, system_resolve
from meshsdk.xds.naming import ByName

_log = logging.getLogger("meshsdk.mesh")

_CLOSE_SECONDS = 2.0
_DEREGISTER_SECONDS = 1.0
_EXIT_SECONDS = 0.25


class Mesh(Adapters):
    """The mesh that this process belongs to.

    Every argument but `resolve` has an environment variable `MESHSDK_<NAME>`; the argument wins.
    Nothing is connected or started before the first use.

    Args:
        bootstrap: a gRPC xDS bootstrap: mapping, JSON text, or path of a file.
        control_plane: `host:port` of the control plane, instead of a bootstrap.
        namespace: where short host names are looked up, and where this process lives.
        node_id: `sidecar~ip~name.namespace~namespace.svc.domain`; made up when not given.
        labels: labels of this workload.
        service_account, cluster, workload_name: who this process is.
        address: IP address of this process as others reach it.
        locality: `region/zone/subzone`.
        domain: DNS domain of the mesh's services.
        state_dir: directory that keeps the last good configuration, for starts without a control
            plane. Not given: none is kept.
        auto_register_group: WorkloadGroup that `register` joins.
        required: without a bootstrap and a control plane, fail instead of passing through.
        enabled: False switches the mesh off: every call passes through.
        ready_timeout: seconds that a caller without a time limit waits for configuration.
        reconnect_max: upper limit of the reconnect back-off in seconds.
        max_listeners: how many host names are subscribed to at most.
        resolve: looks up the host names of clusters, in threads of the mesh, in place of this
            machine's resolver: (host, family) → IP addresses, TTL in seconds or None; no address
            for a name that does not exist, OSError when the lookup failed.

    Raises:
        ConfigurationError: an argument, a variable or the bootstrap is wrong; says which.
    """

    def __init__(
        self,
        *,
        bootstrap: Mapping[str, Any] | str | None = None,
        control_plane: str | None = None,
        namespace: str | None = None,
        node_id: str | None = None,
        labels: Mapping[str, str] | str | None = None,
        service_account: str | None = None,
        cluster: str | None = None,
        workload_name: str | None = None,
        address: str | None = None,
        locality: Locality | str | None = None,
        domain: str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        auto_register_group: str | None = None,
        required: bool | None = None,
        enabled: bool | None = None,
        ready_timeout: float | None = None,
        reconnect_max: float | None = None,
        max_listeners: int | None = None,
        resolve: Resolve = system_resolve,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "resolve")}
        self.settings = _settings.load(arguments)
        self.naming = self._naming()
        self._resolve = resolve
        self.snapshot = self._first_snapshot()
        self._waiters = Waiters()
        self._lock = threading.Lock()
        self._client: XdsClient | None = None
        self._closed = False
        self._parent: XdsClient | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._registrations: list[Registration] = []
        self._observers = WeakCallbacks()
        self._fork_callbacks = WeakCallbacks()
        follow(self)

    def _naming(self) -> ByName:
        bootstrap = self.settings.bootstrap
        template = bootstrap.server_listener_template if bootstrap else ""
        return ByName(self.settings.namespace, self.settings.domain, template)

    def _first_snapshot(self) -> Snapshot:
        return Snapshot(bypass=not self.settings.enabled)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "off" if not self.settings.enabled else ""
        client = self._client
        state = state or (str(client.status) if client else "not started")
        return f"<Mesh {self.settings.server_address} {state}>"

    # --- configuration ---------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    def listener_name(self, authority: str, default_port: int) -> str:
        """The name of the listener that answers for `authority` (`host` or `host:port`)."""
        return self.naming.listener_name(authority, default_port)

    def wait_for(self, name: str, timeout: float | None = None) -> ListenerView:
        """The view of a listener, asking the control plane for it if it is not known.

        Args:
            timeout: seconds; None is the mesh's `ready_timeout`.

        Raises:
            NotReady: it did not arrive in time; says why and what to do.
            MeshClosed: the mesh is closed, or was closed meanwhile.
        """
        self._tell(lambda client: client.want(name))
        limit = self._limit(timeout)
        self._waiters.wait(lambda: self._settled(name), limit)
        return self._outcome(name, limit)

    async def wait_for_async(
        self,
        name: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the same signature as wait_for
    ) -> ListenerView:
        """`wait_for` for asyncio; under another event loop it waits in a worker thread."""
        self._tell(lambda client: client.want(name))
        limit = self._limit(timeout)
        try:
            await self._waiters.wait_async(lambda: self._settled(name), limit)
        except RuntimeError:
            import anyio.to_thread

            return await anyio.to_thread.run_sync(self.wait_for, name, limit)
        return self._outcome(name, limit)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until calls can be served: the control plane has answered for all that was asked.

        A configuration from disk, a mesh that is off and one that is absent count as ready.

        Args:
            timeout: seconds; None is the mesh's `ready_timeout`.

        Raises:
            NotReady: not within the time; says why and what to do.
            MeshClosed: the mesh is closed.
        """
        client = self._tell()
        limit = self._limit(timeout)
        ready = self._waiters.wait(lambda: self._closed or self._is_ready(), limit)
        if self._closed:
            raise MeshClosed("the mesh is closed")
        if not ready and client is not None:
            raise NotReady(client.status.explain("the mesh is not ready", limit))

    def _is_ready(self) -> bool:
        client = self._client
        return self.snapshot.bypass or client is None or client.status.ready

    def _settled(self, name: str) -> bool:
        return self._closed or self.snapshot.view(name) is not None

    def _limit(self, timeout: float | None) -> float:
        """Seconds to wait. Where nothing is configured, nobody waits longer than a moment."""
        limit = self.settings.ready_timeout if timeout is None else timeout
        client = self._client
        if client is not None and client.status.hopeless_at is not None:
            return max(0.0, min(limit, client.status.hopeless_at - time.monotonic()))
        return limit

    def _outcome(self, name: str, waited: float) -> ListenerView:
        if self._closed:
            raise MeshClosed("the mesh is closed")
        view = self.snapshot.view(name)
        if view is not None:
            return view
        client = self._client
        problem = f"no configuration for {name}"
        raise NotReady(client.status.explain(problem, waited) if client else problem)

    # --- life --------------------------------------------------------------------------------

    def _tell(self, say: Callable[[XdsClient], None] | None = None) -> XdsClient | None:
        """Say something to the client, starting it; None when the mesh is off.

        What is said to a client before it starts is in the first requests of its stream.

        Raises:
            MeshClosed: the mesh is closed.
        """
        with self._lock:
            if self._closed:
                raise MeshClosed("the mesh is closed")
            if not self.settings.enabled:
                return None
            client = self._client or self._make_client()
            if say is not None:
                say(client)
            if self._client is None:
                self._client = client
                parent, self._parent = self._parent, None
                client.start(parent.saved if parent is not None else None)
            return client

    def _make_client(self) -> XdsClient:
        publish = weakref.WeakMethod(self._publish)
        client = XdsClient(self.settings, self.naming, publish, self.snapshot, self._resolve)
        self._finalizer = weakref.finalize(self, client.abort)
        self._finalizer.atexit = False
        return client

    def _publish(self, client: XdsClient, snapshot: Snapshot) -> None:
        """Put `snapshot` in force and wake who waits. Called by the xDS thread of `client`."""
        with self._lock:
            if client is not self._client:
                return
            replaced = snapshot is not self.snapshot
            self.snapshot = snapshot
        self._waiters.wake()
        if replaced:
            self._tell_observers(snapshot)

    def _tell_observers(self, snapshot: Snapshot) -> None:
        for callback in self._observers:
            try:
                callback(snapshot)
            except Exception:
                _log.exception("an observer of the configuration failed")

    def observe(self, callback: Callable[[Snapshot], None]) -> None:
        """Call `callback` in the xDS thread after each change; bound methods are held weakly."""
        self._observers.add(callback)

    def on_fork(self, callback: Callable[[], None]) -> None:
        """Call `callback` in each forked child, where it may only forget; held as `observe`."""
        self._fork_callbacks.add(callback)

    def close(self) -> None:
        """Leave the mesh: deregister, break the stream, fail who waits. May be called again."""
        with self._lock:
            first, self._closed = not self._closed, True
            client, self._client = self._client, None
            self.snapshot = Snapshot()
        self._waiters.wake()
        if first and client is not None:
            client.close(_CLOSE_SECONDS)

    async def aclose(self) -> None:
        """`close()` without blocking the event loop."""
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _switch(self, *, enabled: bool) -> None:
        """On: start anew at the next use. Off: pass through."""
        with self._lock:
            client, self._client = self._client, None
            self.settings = replace(self.settings, enabled=enabled)
            self.snapshot = self._first_snapshot()
        self._waiters.wake()
        if client is not None:
            client.abort()

    def at_exit(self) -> None:
        """The interpreter exits: a deregistration gets a moment, no more. Not for applications."""
        client = self._client
        if client is not None:
            client.leave(_EXIT_SECONDS)

    def forget(self) -> None:
        """In a forked child: touch nothing that belongs to the parent. Not for applications."""
        if self is _default:
            _renew_default_lock()
        client, self._client = self._client, None
        abandon(client, self._waiters, self.snapshot)
        if self._finalizer is not None:
            self._finalizer.detach()
        self._parent = client or self._parent
        self._waiters = Waiters()
        self._lock = threading.Lock()
        self._registrations = []
        self.snapshot = self._first_snapshot()
        for callback in self._fork_callbacks:
            callback()

    # --- registration ------------------------------------------------------------------------

    def register(
        self,
        *,
        port: int,
        address: str | None = None,
        port_name: str | None = None,
        protocol: str = "http",
        labels: Mapping[str, str] | None = None,
        health: WorkloadHealth | str = WorkloadHealth.HEALTHY,
    ) -> Registration:
        """Tell the control plane that this process serves `port`, until the result is closed.

        Without `auto_register_group`, or with the mesh off, it does nothing.

        Args:
            address: IP address; None or an unspecified one is the address of this process.
            port_name: name of the port in the WorkloadGroup's template; `protocol` if not given.
            protocol: as Istio names it: `http`, `http2`, `grpc`, `tcp`.
            labels: added to the workload's labels.

        Raises:
            ConfigurationError: an argument cannot be right.
            MeshClosed: the mesh is closed.
        """
        served = ServedPort(
            port, port_name or "", protocol, address or "", dict(labels or {}), health_of(health)
        )
        registration = Registration(checked(served), self._registration_changed)
        self._registration_changed(registration, True)
        return registration

    def _registration_changed(self, registration: Registration, present: bool) -> None:
        if not self.settings.auto_register_group or not self.settings.enabled:
            return
        if not present and (self._closed or registration not in self._registrations):
            return
        sent: list[threading.Event] = []

        def serve(client: XdsClient) -> None:
            others = [r for r in self._registrations if r is not registration]
            registrations = [*others, registration] if present else others
            sent.append(client.serve(merge(r.served for r in registrations)))
            self._registrations = registrations

        self._tell(serve)
        if not present and sent:
            sent[0].wait(_DEREGISTER_SECONDS)


# --- one mesh per process --------------------------------------------------------------------

_default: Mesh | None = None
_default_lock = threading.Lock()


def default_mesh() -> Mesh:
    """The mesh of this process, made from the environment at the first call.

    Used by everything that is not given a mesh: `meshsdk.httpx.Client()`, the middleware,
    `python -m meshsdk run`. After `close()` the next call makes a new one.

    Raises:
        ConfigurationError: a variable or the bootstrap is wrong; says which.
    """
    global _default
    mesh = _default
    if mesh is None or mesh.closed:
        with _default_lock:
            if _default is None or _default.closed:
                _default = Mesh()
            mesh = _default
    return mesh


def _renew_default_lock() -> None:
    """In a forked child: a thread of the parent may have held the lock."""
    global _default_lock
    _default_lock = threading.Lock()


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Everything that exists passes through meanwhile, and the default mesh is made anew.

    For tests (fixture `mesh_off`): afterwards each mesh starts again at its next use.
    """
    global _default
    meshes = [m for m in followed() if isinstance(m, Mesh) and m.settings.enabled and not m.closed]
    previous, _default = _default, None
    for mesh in meshes:
        mesh._switch(enabled=False)
    try:
        yield
    finally:
        made, _default = _default, previous
        if made is not None:
            made.close()
        for mesh in meshes:
            mesh._switch(enabled=True)
