"""Services and mesh-wide settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from controlplane.model.meshmerge import is_mesh_config
from controlplane.model.registry import Protocol
from controlplane.model.resource import Finding, Level
from controlplane.model.workloads import Selector

if TYPE_CHECKING:
    from controlplane.world import World


def analyze_services(world: World) -> Iterator[Finding]:
    """Findings about Services, ServiceEntries and mesh config."""
    selector = Selector(world.workloads)
    services = {service.resource: service for service in world.services}
    for resource in world.resources:
        if resource.kind == "ServiceEntry" and resource.typed is not None:
            chosen = resource.typed.workload_selector
            if chosen is None or resource.typed.resolution == "NONE":
                continue
            if chosen.labels and not selector.select(resource.namespace, chosen.labels):
                wanted = ", ".join(f"{key}={value}" for key, value in chosen.labels.items())
                message = (
                    f"selects no workload of namespace {resource.namespace} ({wanted}):"
                    " calls get 503 until one comes up"
                )
                yield resource.finding(Level.WARNING, "MSH0140", message, "spec.workloadSelector")
        elif resource.kind == "Service" and resource.typed is not None:
            service = services.get(str(resource))
            for index, port in enumerate(service.ports if service else ()):
                if port.protocol is Protocol.UNSUPPORTED:
                    message = (
                        f"port {port.name or port.number} does not say its protocol: name it"
                        ' "http-…", "grpc-…", "tcp-…" or set appProtocol'
                    )
                    path = f"spec.ports[{index}].name"
                    yield resource.finding(Level.INFO, "IST0118", message, path)
    yield from _sampling(world)


def _sampling(world: World) -> Iterator[Finding]:
    tracing = world.mesh.proxy_defaults.get("tracing")
    rate = tracing.get("sampling") if isinstance(tracing, dict) else None
    if not isinstance(rate, int | float) or not 0 < rate < 1:
        return
    for resource in world.resources:
        if is_mesh_config(resource):
            message = (
                f"sampling {rate} means {rate} %, one trace in {round(100 / rate)}: it is a"
                f" percentage, not a fraction; {rate * 100:g} % is written {rate * 100:g}"
            )
            root = "spec.meshConfig" if resource.kind == "IstioOperator" else "data.mesh"
            path = f"{root}.defaultConfig.tracing.sampling"
            yield resource.finding(Level.WARNING, "MSH0150", message, path)
