"""Sidecar."""

from __future__ import annotations

from typing import Any

from controlplane.model.hosts import is_address, subset_of
from controlplane.model.ports import parse_protocol
from controlplane.model.validation.checks import (
    Checker,
    Fields,
    each,
    is_label,
    wildcard_problem,
)
from controlplane.model.validation.destinationrule import check_connection_pool
from controlplane.model.validation.gateway import check_server_port, check_unix_path
from controlplane.model.validation.virtualservice import check_destination

_UNIX = "unix://"


def check_sidecar(check: Checker) -> None:
    spec = check.spec
    check.selector(spec.get("workloadSelector"), "spec.workloadSelector", "labels")
    parts = ("egress", "ingress", "outboundTrafficPolicy", "inboundConnectionPool")
    given = any(spec.get(name) is not None for name in parts)
    check.need(given, "spec", "says nothing: set egress, ingress or outboundTrafficPolicy")
    if (pool := spec.get("inboundConnectionPool")) is not None:
        check_connection_pool(check, pool, "spec.inboundConnectionPool")
    ports: set[int] = set()
    for path, listener in each(spec.get("ingress"), "spec.ingress"):
        _check_ingress(check, listener or {}, path, ports)
    _check_egress(check, spec.get("egress") or ())
    if (policy := spec.get("outboundTrafficPolicy")) is not None:
        _check_outbound(check, policy)


def _check_ingress(check: Checker, listener: Fields, path: str, ports: set[int]) -> None:
    bind = listener.get("bind", "")
    if bind:
        check.need(is_address(bind), f"{path}.bind", f"{bind!r} is not an IP address")
    port = listener.get("port")
    if check.need(port is not None, f"{path}.port", "is required"):
        check_server_port(check, port or {}, f"{path}.port", unix=False, sniffed=True)
        number = (port or {}).get("number", 0)
        check.need(number not in ports, f"{path}.port.number", f"{number} is there twice")
        ports.add(number)
    if endpoint := listener.get("defaultEndpoint", ""):
        _check_default_endpoint(check, endpoint, f"{path}.defaultEndpoint")
    if (pool := listener.get("connectionPool")) is not None:
        check_connection_pool(check, pool, f"{path}.connectionPool")
    if (tls := listener.get("tls")) is not None:
        _check_tls(check, tls, (port or {}).get("protocol", ""), f"{path}.tls")


def _check_default_endpoint(check: Checker, endpoint: str, path: str) -> None:
    if endpoint.startswith(_UNIX):
        check_unix_path(check, endpoint[len(_UNIX) :], path)
        return
    host, _, port = endpoint.rpartition(":")
    message = f"{endpoint!r}: the host is 127.0.0.1, [::1], 0.0.0.0 or [::]"
    check.need(host in ("127.0.0.1", "[::1]", "0.0.0.0", "[::]"), path, message)
    valid = port.isdigit() and 1 <= int(port) <= 65535
    check.need(valid, path, f"{endpoint!r}: {port!r} is not a port")


def _check_tls(check: Checker, tls: Fields, protocol: str, path: str) -> None:
    mode = tls.get("mode", "PASSTHROUGH")
    message = f"mode {mode} is not for Sidecars: SIMPLE, MUTUAL or OPTIONAL_MUTUAL"
    check.need(mode in ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"), f"{path}.mode", message)
    message = f"TLS is for HTTPS and TLS ports, not {protocol}"
    check.need(parse_protocol(protocol).is_tls, path, message)
    for name in (
        "httpsRedirect",
        "subjectAltNames",
        "credentialName",
        "credentialNames",
        "tlsCertificates",
    ):
        check.need(not tls.get(name), f"{path}.{name}", "is not supported on Sidecars")
    for name in ("serverCertificate", "privateKey"):
        check.need(tls.get(name), f"{path}.{name}", f"{mode} TLS requires it")
    if mode in ("MUTUAL", "OPTIONAL_MUTUAL"):
        message = f"{mode} TLS requires a client CA bundle"
        check.need(tls.get("caCertificates"), f"{path}.caCertificates", message)


def _check_egress(check: Checker, listeners: Any) -> None:
    ports: set[int] = set()
    sockets: set[str] = set()
    without_port = 0
    for path, listener in each(listeners, "spec.egress"):
        port, bind = listener.get("port"), listener.get("bind", "")
        unix = bind.startswith(_UNIX)
        if port is None:
            without_port += 1
            check.need(not bind, f"{path}.bind", "needs a port")
            check.need(without_port == 1, path, "only one egress listener may be without port")
        else:
            check_server_port(check, port, f"{path}.port", unix=unix, sniffed=True)
            number = port.get("number", 0)
            if unix:
                check.need(bind not in sockets, f"{path}.bind", f"{bind!r} is there twice")
                sockets.add(bind)
            else:
                check.need(number not in ports, f"{path}.port.number", f"{number} is there twice")
                ports.add(number)
        if unix:
            check_unix_path(check, bind[len(_UNIX) :], f"{path}.bind")
            mode = listener.get("captureMode", "DEFAULT")
            fits = mode in ("DEFAULT", "NONE")
            check.need(fits, f"{path}.captureMode", f"{mode} cannot go with a Unix socket")
        elif bind:
            check.need(is_address(bind), f"{path}.bind", f"{bind!r} is not an IP address")
        check.need(listener.get("hosts"), f"{path}.hosts", "is required")
        _check_egress_hosts(check, listener.get("hosts") or (), f"{path}.hosts")


def _check_egress_hosts(check: Checker, hosts: Any, path: str) -> None:
    known: list[tuple[str, str]] = []
    for place, host in each(hosts, path):
        owner, slash, name = host.partition("/")
        if not check.need(slash, place, f"{host!r} is not namespace/host: write ./{host}"):
            continue
        excluded = owner.startswith("~")
        bare = owner.removeprefix("~")
        valid = bare in (".", "*") or (excluded and not bare) or is_label(bare)
        check.need(valid, place, f"{owner!r} is not a namespace, `.`, `*` or `~`")
        _check_egress_name(check, name, place)
        for other_owner, other in known:
            same = owner in (other_owner, other_owner.replace("*", owner))
            if same and subset_of(name, other) and not excluded:
                check.warn(place, f"{host!r} is part of {other_owner}/{other} already")
        known.append((owner, name))


def _check_egress_name(check: Checker, name: str, path: str) -> None:
    if name == "*":
        return
    if (problem := wildcard_problem(name)) is not None:
        check.error(path, problem)
    elif name.startswith("*") and not name.startswith("*."):
        check.error(path, f'partial wildcard "{name}" not allowed: write *.{name[1:]}')


def _check_outbound(check: Checker, policy: Fields) -> None:
    proxy = policy.get("egressProxy")
    if proxy is None:
        return
    path = "spec.outboundTrafficPolicy.egressProxy"
    mode = policy.get("mode", "REGISTRY_ONLY")
    check.need(mode == "ALLOW_ANY", path, "needs mode ALLOW_ANY")
    check.fqdn(proxy.get("host", ""), f"{path}.host")
    check.need(proxy.get("port") is not None, f"{path}.port", "is required")
    check_destination(check, proxy, path)
