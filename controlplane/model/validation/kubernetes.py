"""Service, Endpoints, EndpointSlice, Pod: what the API server would have refused.

Configuration read from files has met no API server, so an impossible port or address is found here
and not by the clients. Source: Kubernetes pkg/apis/core/validation, IETF RFC 1035, RFC 1123.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from controlplane.model.hosts import is_address
from controlplane.model.kubernetes import (
    EndpointPort,
    KubeEndpoints,
    KubePod,
    KubeServiceSpec,
    KubeSlice,
)
from controlplane.model.validation.checks import Checker, is_label

_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9](?:[-a-z0-9]{0,13}[a-z0-9])?")
_NAME = re.compile(r"[^\s/%\x00-\x1f\x7f]{1,253}")
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")
_TRANSPORTS = ("TCP", "UDP", "SCTP")


def check_identity(check: Checker) -> None:
    """The name and namespace of any document that the mesh gives a meaning."""
    resource = check.resource
    if not _NAME.fullmatch(resource.name) and resource.name:
        problem = f"{resource.name!r} is no name: no spaces, no /, no %, 253 characters at most"
        check.error("metadata.name", problem)
    if resource.namespace and not is_label(resource.namespace):
        check.error("metadata.namespace", f"{resource.namespace!r} is not a DNS label")


def check_service(check: Checker) -> None:
    spec: KubeServiceSpec = check.resource.typed
    name = check.resource.name
    if not is_label(name) or name != name.lower():
        check.error("metadata.name", f"{name!r} is not a DNS label in lower case")
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        check.port(port.port, f"{path}.port")
        _transport(check, port.protocol, path)
        if isinstance(port.target_port, int):
            if port.target_port:
                check.port(port.target_port, f"{path}.targetPort")
        elif not _PORT_NAME.fullmatch(port.target_port):
            problem = f"{port.target_port!r} is neither a number nor the name of a port"
            check.error(f"{path}.targetPort", problem)
        named = not port.name or is_label(port.name)
        check.need(named, f"{path}.name", f"{port.name!r} is not a DNS label")
    _addresses(check, [spec.cluster_ip or "None"], "spec.clusterIP", none=True)
    _addresses(check, spec.cluster_ips, "spec.clusterIPs[{}]", none=True)
    if spec.type == "ExternalName":
        target = spec.external_name.lower().rstrip(".")
        valid = _SUBDOMAIN.fullmatch(target) and ".." not in target
        check.need(valid, "spec.externalName", f"{spec.external_name!r} is not a DNS name")


def check_endpoints(check: Checker) -> None:
    body: KubeEndpoints = check.resource.typed
    for index, subset in enumerate(body.subsets):
        path = f"subsets[{index}]"
        _addresses(check, [a.ip for a in subset.addresses], f"{path}.addresses[{{}}].ip")
        waiting = [a.ip for a in subset.not_ready_addresses]
        _addresses(check, waiting, f"{path}.notReadyAddresses[{{}}].ip")
        _ports(check, subset.ports, path)


def check_slice(check: Checker) -> None:
    body: KubeSlice = check.resource.typed
    _ports(check, body.ports, "")
    if body.address_type == "FQDN":
        return
    for index, endpoint in enumerate(body.endpoints):
        _addresses(check, endpoint.addresses, f"endpoints[{index}].addresses[{{}}]")


def check_pod(check: Checker) -> None:
    pod: KubePod = check.resource.typed
    _addresses(check, [pod.status.pod_ip or "None"], "status.podIP", none=True)
    for number, container in enumerate(pod.spec.containers):
        for index, port in enumerate(container.ports):
            path = f"spec.containers[{number}].ports[{index}].containerPort"
            check.port(port.container_port, path)


CHECKS: Mapping[tuple[str, str], Callable[[Checker], None]] = {
    ("", "Service"): check_service,
    ("", "Endpoints"): check_endpoints,
    ("discovery.k8s.io", "EndpointSlice"): check_slice,
    ("", "Pod"): check_pod,
}


def _transport(check: Checker, protocol: str, path: str) -> None:
    known = protocol in _TRANSPORTS
    check.need(known, f"{path}.protocol", f"{protocol!r} is not one of {', '.join(_TRANSPORTS)}")


def _ports(check: Checker, ports: Iterable[EndpointPort], root: str) -> None:
    for index, port in enumerate(ports):
        path = f"{root}.ports[{index}]".removeprefix(".")
        if port.port:  # absent in a slice: every port
            check.port(port.port, f"{path}.port")
        _transport(check, port.protocol, path)


def _addresses(check: Checker, texts: Iterable[str], path: str, *, none: bool = False) -> None:
    for index, text in enumerate(texts):
        valid = is_address(text) or (none and text == "None")
        check.need(valid, path.format(index), f"{text!r} is not an IP address")
