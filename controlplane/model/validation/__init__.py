"""Semantic validation: what Istio's webhook and the API server check beyond the schema.

Source: istio/istio pkg/config/validation/validation.go. Every mistake names its field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from controlplane.model.resource import Finding, Level, Resource
from controlplane.model.validation.checks import Checker
from controlplane.model.validation.destinationrule import check_destination_rule
from controlplane.model.validation.entries import (
    check_service_entry,
    check_workload_entry,
    check_workload_group,
)
from controlplane.model.validation.envoyfilter import check_envoy_filter
from controlplane.model.validation.gateway import check_gateway
from controlplane.model.validation.kubernetes import CHECKS as KUBERNETES
from controlplane.model.validation.kubernetes import check_identity
from controlplane.model.validation.observability import check_proxy_config, check_telemetry
from controlplane.model.validation.security import (
    check_authorization_policy,
    check_peer_authentication,
    check_request_authentication,
)
from controlplane.model.validation.sidecar import check_sidecar
from controlplane.model.validation.virtualservice import check_virtual_service

__all__ = ["validate"]

_CHECKS: Mapping[str, Callable[[Checker], None]] = {
    "VirtualService": check_virtual_service,
    "DestinationRule": check_destination_rule,
    "ServiceEntry": check_service_entry,
    "WorkloadEntry": check_workload_entry,
    "WorkloadGroup": check_workload_group,
    "Gateway": check_gateway,
    "Sidecar": check_sidecar,
    "EnvoyFilter": check_envoy_filter,
    "AuthorizationPolicy": check_authorization_policy,
    "RequestAuthentication": check_request_authentication,
    "PeerAuthentication": check_peer_authentication,
    "Telemetry": check_telemetry,
    "ProxyConfig": check_proxy_config,
}


def validate(resource: Resource) -> list[Finding]:
    """Errors and warnings about one document whose schema is right.

    Kinds that mean nothing to the mesh have none.
    """
    check = KUBERNETES.get((resource.group, resource.kind))
    if resource.group.endswith("istio.io"):
        check = _CHECKS.get(resource.kind)
    if check is None:
        return []
    checker = Checker(resource)
    check_identity(checker)
    check(checker)
    errors = [resource.finding(Level.ERROR, "", message, path) for path, message in checker.errors]
    warnings = [
        resource.finding(Level.WARNING, code, message, path)
        for path, code, message in checker.warnings
    ]
    return [*errors, *warnings]
