"""Servers of this process in the registry: there while they listen, gone before they stop.

A server that stops goes in this order, so that no call fails: deregister; wait `MESHSDK_DRAIN`
seconds, while clients hear of it and calls that they had already decided still arrive; then let
the server stop accepting and finish what it has. A process that dies without all that is taken
out by the control plane after its grace period.

What is registered: the ports of `MESHSDK_PORTS` (`http:9080,grpc:9081`, or `MESHSDK_PORT=9080`)
where given, and nothing else; otherwise the port that the server listens on.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from meshsdk.errors import ConfigurationError, MeshError

if TYPE_CHECKING:
    from meshsdk.mesh import Mesh
    from meshsdk.registration import Registration

_log = logging.getLogger("meshsdk.serving")

PORTS_VARIABLE = "MESHSDK_PORTS"
PORT_VARIABLE = "MESHSDK_PORT"
DRAIN_VARIABLE = "MESHSDK_DRAIN"
DEFAULT_DRAIN = 1.0

_LISTEN_SECONDS = 60.0
_LISTEN_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Port:
    """One port to register; `address` empty or unspecified is the address of this process."""

    number: int
    name: str = "http"
    protocol: str = "http"
    address: str = ""


def ports_of(environ: Mapping[str, str]) -> tuple[Port, ...]:
    """The ports that the environment names, `()` when it names none.

    The protocol is what the name begins with, as Istio reads port names (`http-admin` is http).

    Raises:
        ConfigurationError: says what would be right.
    """
    text = environ.get(PORTS_VARIABLE, "")
    variable = PORTS_VARIABLE if text else PORT_VARIABLE
    ports = []
    for item in (text or environ.get(PORT_VARIABLE, "")).split(","):
        if not item.strip():
            continue
        name, _, number = item.strip().rpartition(":")
        if not number.isdecimal() or not 0 < int(number) < 65536:
            raise ConfigurationError(
                f"{variable}: {item.strip()!r} is not a port; "
                "give name:number pairs such as http:9080,grpc:9081"
            )
        name = name.strip() or "http"
        ports.append(Port(int(number), name, name.partition("-")[0]))
    return tuple(ports)


def drain_of(environ: Mapping[str, str]) -> float:
    """Seconds between deregistration and the end of accepting.

    Raises:
        ConfigurationError: says what would be right.
    """
    text = environ.get(DRAIN_VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT_DRAIN
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 3600:
        raise ConfigurationError(f"{DRAIN_VARIABLE} is {text!r}; give seconds, for example 1.5")
    return seconds


def numeric(host: str) -> str:
    """The IP address that a server bound to `host` has; empty where only its kernel knows."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        return ""


class Serving:
    """The ports of one server, from the moment that they listen.

    Any thread may use it; `_lock` guards `_registrations` and `_left` and is held while a
    registration is handed to the mesh, which does not wait. Problems are logged and never reach
    the server: it serves, registered or not.

    Args:
        mesh: None for the mesh of the process.
        environ: `MESHSDK_PORTS`, `MESHSDK_PORT`, `MESHSDK_DRAIN`.

    Raises:
        ConfigurationError: one of the variables is wrong.
    """

    def __init__(self, mesh: Mesh | None, environ: Mapping[str, str]) -> None:
        self.ports = ports_of(environ)
        self._drain = drain_of(environ)
        self._mesh = mesh
        self._registrations: list[tuple[int, Registration]] = []
        self._left = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Serving {[number for number, _ in self._registrations]}>"

    @property
    def registered(self) -> list[int]:
        """The numbers of the ports that are registered by this server."""
        return [number for number, _ in self._registrations]

    def wanted(self, port: Port) -> Port | None:
        """`port` as it is to be registered; None when the environment names others."""
        if not self.ports:
            return port
        for named in self.ports:
            if named.number == port.number:
                return Port(port.number, named.name, named.protocol, port.address)
        _log.info("port %d is not in %s: not registered", port.number, PORTS_VARIABLE)
        return None

    def listening(self, *ports: Port) -> None:
        """Register `ports`, which accept connections by now."""
        try:
            mesh = self._mesh if self._mesh is not None else _default_mesh()
            if not mesh.settings.auto_register_group or not mesh.settings.enabled:
                return
            for port in filter(None, map(self.wanted, ports)):
                self._register(mesh, port)
        except MeshError as error:
            _log.warning("this server is not registered: %s", error)

    def _register(self, mesh: Mesh, port: Port) -> None:
        with self._lock, _TABLE.lock:
            if self._left or port.number in _TABLE.ports():
                return
            registration = mesh.register(
                port=port.number,
                address=port.address or None,
                port_name=port.name,
                protocol=port.protocol,
            )
            _TABLE.meshes[port.number] = mesh
            _TABLE.servings.add(self)
            self._registrations.append((port.number, registration))
        _log.info("port %d (%s) is registered", port.number, port.name)

    def listening_soon(self, *ports: Port) -> None:
        """Register each of `ports` once it accepts connections; returns at once."""
        threading.Thread(
            target=self._await_listening, args=ports, name="meshsdk-listen", daemon=True
        ).start()

    def _await_listening(self, *ports: Port) -> None:
        pid = os.getpid()
        for port in ports:
            deadline = time.monotonic() + _LISTEN_SECONDS
            while not _accepts(port):
                if time.monotonic() > deadline:
                    _log.warning(
                        "port %d does not accept connections after %d s: not registered",
                        port.number, _LISTEN_SECONDS,
                    )  # fmt: skip
                    break
                time.sleep(_LISTEN_PAUSE)
            else:
                if os.getpid() == pid:
                    self.listening(port)

    def set_health(self, health: str) -> None:
        """Tell the control plane "HEALTHY", "UNHEALTHY" or "DRAINING" for all these ports."""
        for _, registration in self._registrations:
            registration.set_health(health)

    def leave(self) -> float:
        """Deregister, for good.

        Returns:
            Seconds to go on serving before the server stops; 0 when nothing was registered.
        """
        with self._lock:
            self._left = True
            registrations, self._registrations = self._registrations, []
        with _TABLE.lock:
            _TABLE.servings.discard(self)
        for number, registration in registrations:
            with _TABLE.lock:
                _TABLE.meshes.pop(number, None)
            try:
                registration.close()
            except MeshError as error:
                _log.info("port %d: not deregistered: %s", number, error)
        return self._drain if registrations else 0.0

    def drain(self) -> None:
        """`leave`, then wait as long as it says."""
        time.sleep(self.leave())

    def forget(self) -> None:
        """In a forked child: the registrations are the parent's."""
        self._lock = threading.Lock()
        self._registrations = []
        self._left = False


class _Table:
    """What is registered in this process, over all its servers. `lock` guards the others.

    It keeps each `Serving` alive from its first registration until it leaves: a middleware that
    has handed its ports over holds none, and SIGTERM has to find them all.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.meshes: dict[int, Mesh] = {}
        self.servings: set[Serving] = set()

    def ports(self) -> list[int]:
        """Ports that are registered; what a mesh registered that is closed is not any more."""
        return sorted(number for number, mesh in list(self.meshes.items()) if not mesh.closed)

    def forget(self) -> None:
        """In a forked child: nothing is registered by this process."""
        self.lock = threading.Lock()
        for serving in list(self.servings):
            serving.forget()
        self.meshes = {}
        self.servings = set()


_TABLE = _Table()


def set_health(health: str) -> None:
    """Health of everything that this process serves, as the application itself judges it.

    Args:
        health: "HEALTHY", "UNHEALTHY" or "DRAINING".

    Raises:
        ConfigurationError: another value.
    """
    for serving in list(_TABLE.servings):
        serving.set_health(health)


def registered_ports() -> list[int]:
    """The ports of this process that are registered now."""
    return _TABLE.ports()


def _default_mesh() -> Mesh:
    from meshsdk.mesh import default_mesh

    return default_mesh()


def _accepts(port: Port) -> bool:
    address = port.address or "127.0.0.1"
    if ipaddress.ip_address(address).is_unspecified:
        address = "::1" if ":" in address else "127.0.0.1"
    try:
        socket.create_connection((address, port.number), 1.0).close()
    except OSError:
        return False
    return True


# --- SIGTERM ---------------------------------------------------------------------------------


class Termination:
    """SIGTERM for programs whose server does not offer a place between the signal and its end.

    The first SIGTERM deregisters and drains in a thread, runs the finishers, and is then given to
    the handler that was there before (or to the system, which ends the process as it would have).
    A second one is given on at once. Touched by the main thread, `_finishers` by any.
    """

    def __init__(self) -> None:
        self._before: Callable[[int, FrameType | None], Any] | int | None = None
        self._finishers: list[Callable[[], None]] = []
        self._pid = 0
        self._draining = False
        self._given_on = threading.Event()

    def install(self, finish: Callable[[], None] | None = None) -> bool:
        """Stand in front of the present handler of SIGTERM.

        Args:
            finish: run after the drain when nobody else would end the server in order, which is
                when SIGTERM has no handler.

        Returns:
            False where that is not possible: not in the main thread, or the signal is ignored,
            handled outside Python or by an event loop (whose owner then has to close things).
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        present = signal.getsignal(signal.SIGTERM)
        if present != self._handle:
            name = getattr(present, "__name__", "")
            if present in (None, signal.SIG_IGN) or "sighandler" in name:
                return False
            self._before = present
            self._finishers = []
            self._pid = os.getpid()
            self._draining = False
            self._given_on = threading.Event()
            signal.signal(signal.SIGTERM, self._handle)
        if finish is not None and self._before == signal.SIG_DFL:
            self._finishers.append(finish)
        return True

    def hold(self) -> None:
        """While a termination is under way: return only when its signal has been given on."""
        # In short waits: a handler runs between them, and a signal that comes just before a long
        # one would not end it.
        for _ in range(600):
            if not self._draining or self._given_on.wait(0.1):
                break

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._draining or os.getpid() != self._pid or not _TABLE.ports():
            self._give_on(number, frame)
            return
        self._draining = True
        threading.Thread(target=self._drain, name="meshsdk-drain", daemon=True).start()

    def _drain(self) -> None:
        try:
            seconds = [serving.leave() for serving in list(_TABLE.servings)]
            time.sleep(max(seconds, default=0.0))
            for finish in self._finishers:
                finish()
        finally:
            if not self._given_on.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    def _give_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before
        signal.signal(signal.SIGTERM, before)
        if callable(before):
            self._given_on.set()
            before(number, frame)
        else:
            os.kill(os.getpid(), number)


termination = Termination()


os.register_at_fork(after_in_child=_TABLE.forget)
