"""The control plane as one program: sources → world → pushes; what `meshctl serve` runs.

One event loop owns everything. Whatever changes (a file, a registration) only sets a mark; the
publisher waits until it has been quiet for a moment, builds a world and hands it to the hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import uvicorn

from controlplane.analysis import analyze_world
from controlplane.configuration import Editor, overrides
from controlplane.model.hosts import with_port
from controlplane.model.resource import Finding, Level, Resource
from controlplane.model.schema import counted
from controlplane.notices import Notices
from controlplane.ports import BadAddress, PortTaken, claim
from controlplane.refusal import Refused, check
from controlplane.registrar import Registrar, groups_of
from controlplane.registration import GRACE, Registrations
from controlplane.sources.base import Snapshot
from controlplane.sources.files import FileSource
from controlplane.web.admin import make_app
from controlplane.world import World
from controlplane.xds.push import Debounce, Hub
from controlplane.xds.server import XdsServer

log = logging.getLogger("controlplane.server")

XDS_PORT = 15010
HTTP_PORT = 15014
XDS_FLAG = "--xds-port"
HTTP_FLAG = "--http-port"

_LEVELS = {Level.ERROR: logging.ERROR, Level.WARNING: logging.WARNING, Level.INFO: logging.INFO}


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        config: directories or files with YAML; the first is written to by `apply`.
        host: address to listen on. There is no authentication yet: keep it on loopback.
        xds_port, http_port: 0 takes a free one.
        overrides: `key=value` texts laid over the mesh config (`--set`).
        allow_unenforced: start although security policies exist that nobody enforces.
        domain: DNS suffix of Kubernetes names.
        grace: seconds that a registered workload stays after its stream broke.
        state_dir: where registrations are kept over a restart; None: `.state` in the first
            configuration directory.
    """

    config: Sequence[pathlib.Path] = ()
    host: str = "127.0.0.1"
    xds_port: int = XDS_PORT
    http_port: int = HTTP_PORT
    overrides: Sequence[str] = ()
    allow_unenforced: bool = False
    domain: str = "cluster.local"
    grace: float = GRACE
    state_dir: pathlib.Path | None = None


async def serve(options: Options, on_ready: Callable[[ControlPlane], None] | None = None) -> None:
    """Runs the control plane until SIGTERM, SIGINT or (not under nohup) SIGHUP.

    Args:
        options: how.
        on_ready: called once clients are served, with the ports in use.

    Raises:
        Refused: it cannot or must not start; the text says why, one line per reason.
    """
    plane = ControlPlane(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        async with plane.running():
            if on_ready is not None:
                on_ready(plane)
            await stop.wait()
            log.info("stopping")
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class ControlPlane:
    """Everything that runs. Touched only by its event loop, from `running` on.

    Attributes:
        hub: clients, and the world that they are served.
        xds_port, http_port: the ports in use.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._source = FileSource(options.config)
        self._editor = Editor(self._source)
        self._fixed = overrides(options.overrides)
        self._snapshot = Snapshot()
        self._notices = Notices()
        self._debounce = Debounce()
        self._kick = asyncio.Event()
        self._published = asyncio.Event()
        self._analysed = asyncio.Event()
        self._findings: tuple[Finding, ...] = ()
        self._findings_of: World | None = None
        self._stopping = False
        self.hub = Hub(World.build((), domain=options.domain))
        self._registrar = Registrar(
            Registrations(options.grace),
            lambda: groups_of(self.hub.world),
            self._changed,
            _state_directory(options),
        )
        self._xds = XdsServer(self.hub, self._registrar)
        self.version = _version()
        self.ready = False
        self.xds_port = 0
        self.http_port = 0

    @property
    def world(self) -> World:
        """What is served now."""
        return self.hub.world

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Loads, listens and follows changes for as long as the block lasts.

        Raises:
            Refused: it cannot or must not start.
        """
        with contextlib.closing(self._registrar):
            self._snapshot = self._source.load()
            self._registrar.restore()
            await self._registrar.probe()
            world = self._build()
            check(self._snapshot, world, allow_unenforced=self._options.allow_unenforced)
            self.hub.publish(world)
            self._report(world, analyze_world(world))
            http = await self._listen()
            tasks = [
                asyncio.create_task(self._follow(), name="source"),
                asyncio.create_task(self._publisher(), name="publisher"),
                asyncio.create_task(self._analyst(), name="analyst"),
                asyncio.create_task(self._reaper(), name="reaper"),
                asyncio.create_task(http.serve(), name="http"),
            ]
            self.ready = True
            log.info(
                "serving %s: xDS on %s, HTTP on %s",
                counted(len(world.services), "service"),
                with_port(self._options.host, self.xds_port),
                with_port(self._options.host, self.http_port),
            )
            try:
                yield
            finally:
                await self._shut_down(http, tasks)

    # --- start and stop ----------------------------------------------------------------------

    async def _listen(self) -> _Http:
        options = self._options
        if options.xds_port == options.http_port != 0:
            both = f"{XDS_FLAG} and {HTTP_FLAG} are both {options.xds_port}"
            raise Refused(f"{both}: choose two ports", usage=True)
        try:
            # gRPC takes no socket of ours: look first, so that the owner can be named.
            claim(options.host, options.xds_port, XDS_FLAG).close()
            web = claim(options.host, options.http_port, HTTP_FLAG)
            # Whoever comes before the application runs waits, and is not refused.
            web.listen(128)
            self.xds_port = await self._xds.start(with_port(options.host, options.xds_port))
        except BadAddress as error:
            raise Refused(str(error), usage=True) from None
        except PortTaken as error:
            raise Refused(str(error)) from None
        except (OSError, RuntimeError) as error:
            raise Refused(f"cannot listen on {options.host}: {error}") from None
        self.http_port = web.getsockname()[1]
        config = uvicorn.Config(
            make_app(self), log_config=None, access_log=False, lifespan="off", ws="none"
        )
        return _Http(config, web)

    async def _shut_down(self, http: _Http, tasks: list[asyncio.Task[Any]]) -> None:
        self._stopping, self.ready = True, False
        self._registrar.save()
        http.should_exit = True
        await self._xds.stop()
        for task in tasks[:-1]:
            task.cancel()
        await asyncio.wait(tasks, timeout=3)
        http.close()

    # --- changes -----------------------------------------------------------------------------

    def _changed(self) -> None:
        if not self._stopping:
            self._debounce.event(time.monotonic())
            self._kick.set()

    async def _follow(self) -> None:
        async for snapshot in self._source.changes():
            self._take(snapshot)

    def _take(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._notices.edited()
        self._registrar.complain_again()
        self._changed()

    async def _publisher(self) -> None:
        while True:
            await self._kick.wait()
            self._kick.clear()
            # Every change in the meantime moves the moment that is waited for.
            while (due := self._debounce.due()) and due > (now := time.monotonic()):  # noqa: ASYNC110
                await asyncio.sleep(due - now)
            self._publish()

    def _publish(self) -> None:
        self._debounce.take()
        started = time.monotonic()
        try:
            world = self._build()
            affected = self.hub.publish(world)
        except Exception:
            # A defect of ours must not take the serving of everything else with it.
            log.exception("the change could not be applied; the last configuration is served on")
            return
        finally:
            self._published.set()
            self._published = asyncio.Event()
        self._registrar.save()
        if affected:
            log.info(
                "pushed a change of %s in %.0f ms",
                _what(affected.everything, affected.hosts | affected.endpoints),
                (time.monotonic() - started) * 1000,
            )

    def _build(self) -> World:
        resources = (*self._snapshot.resources, *self._fixed)
        groups = {(r.namespace, r.name): r for r in resources if r.kind == "WorkloadGroup"}
        registered = self._registrar.registrations.entries(groups)
        return World.build(resources, registered, domain=self._options.domain, analyze=False)

    async def _analyst(self) -> None:
        """Looks for rules that match nothing, after the clients have been served."""
        while True:
            world = self.world
            if world is not self._findings_of:
                self._report(world, await asyncio.to_thread(analyze_world, world))
            self._analysed.set()
            self._analysed = asyncio.Event()
            if world is self.world:
                await self._published.wait()

    def _report(self, world: World, analysis: Iterable[Finding]) -> None:
        """One log line per finding that was not there before."""
        self._findings = (*self._snapshot.findings, *world.findings, *analysis)
        self._findings_of = world
        # Of files the source has said it when it read them.
        broken = {finding for finding in self._snapshot.errors if finding.resource != "config"}
        every = (*self._findings, *world.unenforced)
        _say(f for f in self._notices.take(every, time.monotonic()) if f not in broken)

    async def _reaper(self) -> None:
        while True:
            await self._registrar.probe()
            wait = self._registrar.expire()
            _say(self._notices.due(time.monotonic()))
            await asyncio.sleep(1.0 if wait is None else min(1.0, wait))

    # --- configuration by HTTP ---------------------------------------------------------------

    async def apply(self, text: str) -> tuple[list[dict[str, str]], list[Finding]]:
        """Writes documents into the first configuration directory; see `Editor.apply`.

        Raises:
            ConfigError: nothing was written; every mistake is named.
        """
        results = self._editor.apply(text, self._may_apply)
        await self._reload()
        names = {result["resource"] for result in results}
        while self._findings_of is not self.world:
            await self._analysed.wait()
        return results, [finding for finding in self._findings if finding.resource in names]

    async def delete(self, text: str) -> list[dict[str, str]]:
        """Deletes the documents that a text names."""
        results = self._editor.delete(text)
        await self._reload()
        return results

    async def delete_one(self, kind: str, namespace: str, name: str) -> list[dict[str, str]]:
        """Deletes one document; nothing is returned when there is none."""
        results = self._editor.delete_one(kind, namespace, name)
        await self._reload()
        return results

    def _may_apply(self, resources: Iterable[Resource]) -> Sequence[Finding]:
        if self._options.allow_unenforced:
            return ()
        trial = World.build(resources, domain=self._options.domain, analyze=False)
        return trial.unenforced

    async def _reload(self) -> None:
        """Takes what was written without waiting for the watcher."""
        published = self._published
        self._take(self._source.load())
        await published.wait()


class _Http(uvicorn.Server):
    """uvicorn on a socket of ours, that leaves the signals to us."""

    def __init__(self, config: uvicorn.Config, web: Any) -> None:
        super().__init__(config)
        self._web = web

    async def serve(self, sockets: Any = None) -> None:
        await self._serve([self._web])

    def close(self) -> None:
        self._web.close()


def _say(findings: Iterable[Finding]) -> None:
    for finding in findings:
        log.log(_LEVELS[finding.level], "%s", finding)


def _what(everything: bool, hosts: Iterable[str]) -> str:
    if everything:
        return "everything"
    names = sorted(hosts)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _state_directory(options: Options) -> pathlib.Path | None:
    if options.state_dir is not None:
        return options.state_dir
    first = next(iter(options.config), None)
    if first is None:
        return None
    # Hidden: the source does not read it as configuration.
    return (first if first.is_dir() else first.parent) / ".state"


def _version() -> str:
    try:
        return metadata.version("meshsdk")
    except metadata.PackageNotFoundError:
        return "0"
