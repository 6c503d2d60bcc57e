"""What this process serves, as the control plane is told: workload registration.

As Istio does for virtual machines: node metadata `AUTO_REGISTER_GROUP` names a WorkloadGroup and
the health is sent as a request of type `istio.v1.HealthInformation`. Added for a process that
starts its servers after its stream: `MESHSDK_PORTS` (port name → number) and `MESHSDK_HEALTH`.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from meshsdk.errors import ConfigurationError


class WorkloadHealth(enum.Enum):
    """In rising order of what holds for the whole process when its servers differ."""

    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"


def health_of(value: WorkloadHealth | str) -> WorkloadHealth:
    """Raises ConfigurationError for a value that is none."""
    try:
        return WorkloadHealth(value)
    except ValueError as error:
        values = ", ".join(item.value for item in WorkloadHealth)
        raise ConfigurationError(f"health {value!r} is not one of {values}") from error


@dataclass(frozen=True, slots=True)
class ServedPort:
    """One listening port of this process."""

    port: int
    name: str = ""
    protocol: str = "http"
    address: str = ""
    """Empty: the address that the mesh found or was told for this process."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    health: WorkloadHealth = WorkloadHealth.HEALTHY


@dataclass(frozen=True, slots=True)
class Workload:
    """All ports of this process together: what one node says of itself."""

    ports: Mapping[str, int]
    address: str
    labels: Mapping[str, str]
    health: WorkloadHealth

    def metadata(self, group: str) -> dict[str, Any]:
        """What is added to the node's metadata."""
        return {
            "AUTO_REGISTER_GROUP": group,
            "MESHSDK_PORTS": dict(self.ports),
            "MESHSDK_HEALTH": self.health.value,
        }


def merge(served: Iterable[ServedPort]) -> Workload | None:
    """One workload from all served ports; None when there is none.

    Two ports of one name are told apart by their number (`http`, `http-9081`).

    Raises:
        ConfigurationError: the ports are at different addresses; a node has one.
    """
    ports: dict[str, int] = {}
    labels: dict[str, str] = {}
    addresses: set[str] = set()
    health = WorkloadHealth.HEALTHY
    order = list(WorkloadHealth)
    for item in served:
        name = item.name or item.protocol
        if ports.get(name, item.port) != item.port:
            name = f"{name}-{item.port}"
        ports[name] = item.port
        labels |= item.labels
        addresses |= {item.address} - {""}
        health = max(health, item.health, key=order.index)
    if len(addresses) > 1:
        raise ConfigurationError(
            f"one process registers one address, not {' and '.join(sorted(addresses))}; "
            "give each its own process, or register both ports at one address"
        )
    return Workload(ports, next(iter(addresses), ""), labels, health) if ports else None


def checked(served: ServedPort) -> ServedPort:
    """`served` with an address that others can reach, or an empty one.

    Raises:
        ConfigurationError: a field cannot be right.
    """
    if not 0 < served.port < 65536:
        raise ConfigurationError(f"register(port={served.port}): give a port from 1 to 65535")
    if not served.address:
        return served
    try:
        parsed = ipaddress.ip_address(served.address)
    except ValueError as error:
        raise ConfigurationError(
            f"register(address={served.address!r}): give an IP address, not a name"
        ) from error
    return replace(served, address="" if parsed.is_unspecified else str(parsed))


class Registration:
    """One served port, registered until `close()`.

    Any thread may use it. In a forked child a registration of the parent is not in force; the
    first `set_health()` there registers anew.
    """

    def __init__(self, served: ServedPort, changed: Callable[[Registration, bool], None]) -> None:
        self.served = served
        self._changed = changed

    def set_health(self, health: WorkloadHealth | str) -> None:
        """Tell the control plane; endpoints that are not HEALTHY get no new calls.

        Args:
            health: "HEALTHY", "UNHEALTHY" or "DRAINING".

        Raises:
            ConfigurationError: another value.
        """
        self.served = replace(self.served, health=health_of(health))
        self._changed(self, True)

    def close(self) -> None:
        """Deregister: returns when the request is on its way, after one second at most."""
        self._changed(self, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
