"""ServiceEntry, WorkloadEntry, WorkloadGroup."""

from __future__ import annotations

from typing import Any

from controlplane.model.hosts import is_address, is_wildcard
from controlplane.model.ports import parse_protocol
from controlplane.model.registry import Protocol
from controlplane.model.validation.checks import (
    Checker,
    Fields,
    each,
    fqdn_problem,
    is_label,
)

_UNIX = "unix://"
_BY_DNS = ("DNS", "DNS_ROUND_ROBIN")
_DYNAMIC_PROTOCOLS = frozenset(
    {
        Protocol.HTTP,
        Protocol.HTTP2,
        Protocol.GRPC,
        Protocol.GRPC_WEB,
        Protocol.HTTPS,
        Protocol.TLS,
    }
)


def check_service_entry(check: Checker) -> None:
    spec = check.spec
    resolution = spec.get("resolution", "NONE")
    check.selector(spec.get("workloadSelector"), "spec.workloadSelector", "labels")
    both = spec.get("workloadSelector") is not None and spec.get("endpoints")
    check.need(not both, "spec", "only one of workloadSelector, endpoints may be set")
    check.need(spec.get("hosts"), "spec.hosts", "is required")
    for path, host in each(spec.get("hosts"), "spec.hosts"):
        if host == "*":
            check.error(path, "`*` would catch everything: write a suffix such as *.example.com")
        elif check.wildcard_domain(host, path) and is_wildcard(host) and not host.startswith("*."):
            check.warn(path, f"{host!r}: a wildcard covers whole labels; write *.{host[1:]}")
    for path, address in each(spec.get("addresses"), "spec.addresses"):
        check.subnet(address, path)
        ranged = "/" in address and resolution not in ("NONE", "STATIC")
        check.need(not ranged, path, f"a subnet cannot go with resolution {resolution}")
    ports = _check_ports(check, resolution)
    _check_resolution(check, resolution, ports)
    _check_telling_apart(check, resolution)
    check.export_to(service_entry=True)


def _check_ports(check: Checker, resolution: str) -> set[str]:
    names: set[str] = set()
    numbers: set[int] = set()
    for path, port in each(check.spec.get("ports"), "spec.ports"):
        if not check.need(port, path, "must not be empty"):
            continue
        name, number = port.get("name", ""), port.get("number", 0)
        check.need(is_label(name), f"{path}.name", f"{name!r} is not a DNS label")
        check.need(name not in names, f"{path}.name", f"{name!r} is there twice")
        check.need(number not in numbers, f"{path}.number", f"{number} is there twice")
        names.add(name)
        numbers.add(number)
        check.port(number, f"{path}.number")
        protocol = port.get("protocol", "")
        known = not protocol or parse_protocol(protocol) is not Protocol.UNSUPPORTED
        check.need(known, f"{path}.protocol", f"{protocol!r} is not a protocol such as HTTP, TCP")
        if port.get("targetPort"):
            check.port(port["targetPort"], f"{path}.targetPort")
            if resolution == "NONE":
                check.warn(f"{path}.targetPort", "without effect: resolution is NONE")
    return names


def _check_resolution(check: Checker, resolution: str, ports: set[str]) -> None:
    spec = check.spec
    endpoints = spec.get("endpoints") or ()
    if resolution == "NONE":
        check.need(not endpoints, "spec.endpoints", "cannot go with resolution NONE: write STATIC")
        if spec.get("workloadSelector") is not None:
            check.warn("spec.workloadSelector", "without effect: resolution is NONE, not STATIC")
    elif resolution == "DYNAMIC_DNS":
        _check_dynamic(check)
    if resolution == "DNS_ROUND_ROBIN" and len(endpoints) > 1:
        check.error("spec.endpoints", "DNS_ROUND_ROBIN takes one endpoint only")
    if resolution in _BY_DNS and not endpoints:
        for path, host in each(spec.get("hosts"), "spec.hosts"):
            if is_wildcard(host) and spec.get("workloadSelector") is None:
                check.error(path, f"{resolution} cannot look up a wildcard: list endpoints")
    for path, endpoint in each(endpoints, "spec.endpoints"):
        _check_endpoint(check, endpoint, path, resolution)
        for name, number in (endpoint.get("ports") or {}).items():
            place = f"{path}.ports.{name}"
            check.need(name in ports, place, "no port of the entry has this name")
            check.port(number, place)


def _check_endpoint(check: Checker, endpoint: Fields, path: str, resolution: str) -> None:
    address = endpoint.get("address", "")
    if address.startswith(_UNIX):
        check.need(
            resolution == "STATIC", f"{path}.address", "a Unix socket needs resolution STATIC"
        )
        one = len(check.spec.get("ports") or ()) == 1
        check.need(one, "spec.ports", "with a Unix socket there is one port only")
    if address or not endpoint.get("network"):
        by_name = resolution in _BY_DNS
        _check_address(check, endpoint, path, by_name=by_name)
    check.labels(endpoint.get("labels"), f"{path}.labels")


def _check_address(check: Checker, entry: Fields, path: str, *, by_name: bool) -> None:
    address = entry.get("address", "")
    place = f"{path}.address"
    if address.startswith(_UNIX):
        rest = address[len(_UNIX) :]
        check.need(rest[:1] in ("/", "@"), place, "a Unix socket has an absolute path")
        check.need(not rest.endswith("/"), place, "a Unix socket is not a directory")
        check.need(not entry.get("ports"), f"{path}.ports", "a Unix socket has no ports")
    elif not is_address(address):
        if not by_name:
            message = f"{address!r} is not an IP address (with resolution STATIC it must be)"
            check.error(place, message)
        elif fqdn_problem(address) is not None:
            check.error(place, f"{address!r} is neither an IP address nor a host name")


def _check_dynamic(check: Checker) -> None:
    spec = check.spec
    for path, host in each(spec.get("hosts"), "spec.hosts"):
        check.need(is_wildcard(host), path, "DYNAMIC_DNS is for wildcards: write DNS")
    check.need(not spec.get("endpoints"), "spec.endpoints", "cannot go with DYNAMIC_DNS")
    selector = spec.get("workloadSelector") is None
    check.need(selector, "spec.workloadSelector", "cannot go with DYNAMIC_DNS")
    check.need(not spec.get("addresses"), "spec.addresses", "cannot go with DYNAMIC_DNS")
    external = spec.get("location", "MESH_EXTERNAL") == "MESH_EXTERNAL"
    check.need(external, "spec.location", "DYNAMIC_DNS is for MESH_EXTERNAL only")
    for path, port in each(spec.get("ports"), "spec.ports"):
        protocol = parse_protocol((port or {}).get("protocol", ""))
        message = "DYNAMIC_DNS needs a protocol that names the host: HTTP, HTTP2, GRPC, HTTPS, TLS"
        check.need(protocol in _DYNAMIC_PROTOCOLS, f"{path}.protocol", message)


def _check_telling_apart(check: Checker, resolution: str) -> None:
    """Warns where a call could not be told apart from others without an address or host name."""
    spec = check.spec
    addresses, hosts = spec.get("addresses") or (), spec.get("hosts") or ()
    for path, port in each(spec.get("ports"), "spec.ports"):
        protocol = parse_protocol((port or {}).get("protocol", ""))
        if addresses and len(hosts) > 1 and not protocol.is_http and resolution in _BY_DNS:
            message = "several hosts share the addresses: only the first is reached on this port"
            check.warn(path, message)
        if not addresses and protocol in (Protocol.TCP, Protocol.UNSUPPORTED):
            message = "without addresses this entry catches every call to this port"
            check.warn(path, message, "IST0134")


def check_workload_entry(check: Checker) -> None:
    _check_workload(check, check.spec, "spec", needs_address=True)


def _check_workload(check: Checker, entry: Fields, path: str, *, needs_address: bool) -> None:
    address = entry.get("address", "")
    if not address:
        if not entry.get("network"):
            check.need(not needs_address, f"{path}.address", "is required")
        elif needs_address:
            check.warn(path, "without address this workload is reached through a gateway only")
    else:
        _check_address(check, entry, path, by_name=True)
    check.labels(entry.get("labels"), f"{path}.labels")
    for name, number in (entry.get("ports") or {}).items():
        place = f"{path}.ports.{name}"
        check.need(is_label(name), place, f"{name!r} is not a port's name")
        check.port(number, place)


def check_workload_group(check: Checker) -> None:
    spec = check.spec
    template = spec.get("template")
    if check.need(template is not None, "spec.template", "is required"):
        _check_workload(check, template or {}, "spec.template", needs_address=False)
    check.labels((spec.get("metadata") or {}).get("labels"), "spec.metadata.labels")
    if (probe := spec.get("probe")) is not None:
        _check_probe(check, probe)


def _check_probe(check: Checker, probe: Any) -> None:
    methods = [name for name in ("httpGet", "tcpSocket", "exec", "grpc") if name in probe]
    check.need(methods, "spec.probe", "needs one of httpGet, tcpSocket, exec, grpc")
    for name in methods:
        path, method = f"spec.probe.{name}", probe[name] or {}
        if name == "exec":
            check.need(method.get("command"), f"{path}.command", "is required")
        else:
            check.port(method.get("port", 0), f"{path}.port")
