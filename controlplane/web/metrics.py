"""Prometheus text under the names that Istio's control-plane dashboard asks for."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.xds.push import Hub


def metrics_text(hub: Hub, version: str) -> str:
    """The page of `/metrics`."""
    return "\n".join(_lines(hub, version)) + "\n"


def _lines(hub: Hub, version: str) -> Iterator[str]:
    yield from _one("pilot_xds", "gauge", "Clients connected.", len(hub.clients), version=version)
    yield from _one("pilot_services", "gauge", "Services known.", len(hub.world.services))
    yield from _one("pilot_push_triggers", "counter", "Worlds published.", hub.pushes)
    yield "# HELP pilot_xds_pushes Responses sent."
    yield "# TYPE pilot_xds_pushes counter"
    for kind, count in sorted(hub.sent.items()):
        yield f'pilot_xds_pushes{{type="{kind}"}} {count}'
    yield from _one("pilot_total_xds_rejects", "counter", "Responses rejected.", hub.rejected)
    yield "# HELP istio_build Version of this control plane."
    yield "# TYPE istio_build gauge"
    yield f'istio_build{{component="pilot",tag="{version}"}} 1'


def _one(name: str, kind: str, text: str, value: int, **labels: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    listed = ",".join(f'{key}="{label}"' for key, label in labels.items())
    yield f"{name}{{{listed}}} {value}" if listed else f"{name} {value}"
