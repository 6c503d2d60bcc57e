"""Which kinds are honoured, and what to say about those that are not. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from controlplane.model.meshmerge import is_mesh_config
from controlplane.model.parse import ISTIO_GROUPS
from controlplane.model.resource import Finding, Level, Resource

HONOURED = frozenset(
    {
        "VirtualService",
        "DestinationRule",
        "ServiceEntry",
        "WorkloadEntry",
        "WorkloadGroup",
        "Sidecar",
        "EnvoyFilter",
    }
)
KUBERNETES = frozenset({"Service", "Endpoints", "EndpointSlice", "Pod", "Node", "Namespace"})
SECURITY = frozenset({"AuthorizationPolicy", "RequestAuthentication"})


def enforcement(
    resources: Iterable[Resource],
) -> tuple[list[Finding], list[Finding]]:
    """Notices, one per kind that is kept without effect; and the policies it is unsafe to ignore.

    Kinds that are not Istio's (Deployment, HTTPRoute …) share one notice.

    Returns:
        (notices, unenforced): `unenforced` has every AuthorizationPolicy, RequestAuthentication and
        PeerAuthentication that asks for STRICT.
    """
    waiting: dict[str, list[Resource]] = defaultdict(list)
    ignored: dict[str, Resource] = {}
    unenforced: list[Finding] = []
    for resource in resources:
        if resource.group not in ISTIO_GROUPS:
            if resource.kind not in KUBERNETES and not is_mesh_config(resource):
                ignored.setdefault(resource.kind, resource)
            continue
        if resource.kind in HONOURED:
            continue
        if resource.kind == "IstioOperator":
            continue  # its meshConfig is honoured, the rest is for an installer
        if (what := _unsafe(resource)) is not None:
            unenforced.append(resource.finding(Level.ERROR, "MSH0101", what))
        waiting[resource.kind].append(resource)
    notices = []
    for kind, found in sorted(waiting.items()):
        first = found[0]
        names = ", ".join(f"{res.namespace}/{res.name}" for res in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        message = f"{kind} is accepted, not enforced yet ({names}{more})"
        level = Level.WARNING if kind in SECURITY else Level.INFO
        notices.append(first.finding(level, "MSH0100", message))
    if ignored:
        first = next(iter(ignored.values()))
        message = f"kept, but without meaning for the mesh: {', '.join(sorted(ignored))}"
        notices.append(first.finding(Level.INFO, "MSH0103", message))
    return notices, unenforced


def _unsafe(resource: Resource) -> str | None:
    if resource.kind in SECURITY:
        return f"this {resource.kind} is not enforced: traffic that it forbids gets through"
    if resource.kind != "PeerAuthentication":
        return None
    modes = [(resource.spec.get("mtls") or {}).get("mode")]
    ports = resource.spec.get("portLevelMtls") or {}
    modes += [(setting or {}).get("mode") for setting in ports.values()]
    if "STRICT" in modes:
        return "STRICT mTLS is not enforced: plain text gets through"
    return None
