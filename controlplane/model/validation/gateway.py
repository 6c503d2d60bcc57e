"""Gateway, and the server-side TLS settings that Sidecar shares."""

from __future__ import annotations

from typing import Any

from controlplane.model.hosts import is_address
from controlplane.model.ports import parse_protocol
from controlplane.model.registry import Protocol
from controlplane.model.validation.checks import (
    Checker,
    Fields,
    each,
    is_label,
    wildcard_problem,
)

_WITH_CERTIFICATES = ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL")
_MUTUAL = ("MUTUAL", "OPTIONAL_MUTUAL")
_CREDENTIALS = (
    "serverCertificate",
    "privateKey",
    "caCertificates",
    "credentialName",
    "credentialNames",
    "tlsCertificates",
)
# Envoy's BoringSSL suites for TLS 1.2 (Istio security.ValidCipherSuites).
CIPHERS = frozenset(
    {
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-SHA",
        "ECDHE-RSA-AES128-SHA",
        "ECDHE-ECDSA-AES256-SHA",
        "ECDHE-RSA-AES256-SHA",
        "AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "AES128-SHA",
        "AES256-SHA",
        "DES-CBC3-SHA",
        "ALL",
    }
)


def check_gateway(check: Checker) -> None:
    servers = check.spec.get("servers")
    check.need(servers, "spec.servers", "is required")
    names: dict[str, str] = {}
    for path, server in each(servers, "spec.servers"):
        _check_server(check, server or {}, path)
        name = ((server or {}).get("port") or {}).get("name", "")
        if name and name in names:
            check.error(f"{path}.port.name", f"{name!r} is the name of {names[name]} too")
        names.setdefault(name, path)


def _check_server(check: Checker, server: Fields, path: str) -> None:
    hosts = server.get("hosts")
    check.need(hosts, f"{path}.hosts", "is required")
    for place, host in each(hosts, f"{path}.hosts"):
        check_namespaced_host(check, host, place)
    bind = server.get("bind", "")
    unix = bind.startswith("unix://")
    if bind and not unix:
        check.need(is_address(bind), f"{path}.bind", f"{bind!r} is not an IP address")
    port = server.get("port")
    if not check.need(port is not None, f"{path}.port", "is required"):
        return
    check_server_port(check, port or {}, f"{path}.port", unix=unix)
    if unix:
        check_unix_path(check, bind[len("unix://") :], f"{path}.bind")
    protocol = parse_protocol((port or {}).get("protocol", ""))
    tls = server.get("tls")
    if protocol.is_tls:
        check.need(
            tls is not None, f"{path}.tls", f"a {protocol.value} port must have TLS settings"
        )
        if tls is not None and protocol is Protocol.HTTPS and tls.get("httpsRedirect"):
            check.warn(
                f"{path}.tls.httpsRedirect", "redirects https to https: it is for http ports"
            )
    elif protocol.is_http and tls is not None:
        # `httpsRedirect` alone is what TLS settings of an HTTP port are for.
        only_redirect = set(tls) <= {"httpsRedirect"} or tls.get("mode", "PASSTHROUGH") in (
            "PASSTHROUGH",
        )
        check.need(only_redirect, f"{path}.tls", "an HTTP port cannot have TLS settings")
    if tls is not None:
        check_server_tls(check, tls, f"{path}.tls")


def check_namespaced_host(check: Checker, host: str, path: str) -> None:
    """`[namespace/]host` of a Gateway server."""
    owner, slash, name = host.partition("/")
    if slash:
        known = owner in (".", "*") or is_label(owner)
        check.need(known, path, f"{owner!r} is an invalid namespace value: a name, `.` or `*`")
    else:
        name = host
    if name == "*" or is_address(name):
        return
    if (problem := wildcard_problem(name)) is not None:
        check.error(path, problem)
    elif "." not in name:
        check.error(
            path, f"{name!r}: short names are not allowed on gateways, write the whole host"
        )
    elif name.startswith("*") and not name.startswith("*."):
        check.error(path, f'partial wildcard "{name}" not allowed: write *.{name[1:]}')


def check_server_port(
    check: Checker, port: Fields, path: str, *, unix: bool, sniffed: bool = False
) -> None:
    """Name, number and protocol of a server; `sniffed`: the protocol may be left out."""
    check.need(port.get("name"), f"{path}.name", "is required: a port name")
    protocol = port.get("protocol", "")
    known = parse_protocol(protocol) is not Protocol.UNSUPPORTED or (sniffed and not protocol)
    check.need(known, f"{path}.protocol", f"{protocol!r} is not a protocol such as HTTP")
    number = port.get("number", 0)
    if unix:
        check.need(number == 0, f"{path}.number", "port number must be 0 for a Unix socket")
    else:
        check.port(number, f"{path}.number")


def check_unix_path(check: Checker, rest: str, path: str) -> None:
    check.need(rest[:1] in ("/", "@"), path, "a Unix socket has an absolute path or begins with @")
    check.need(not rest.endswith("/"), path, "a Unix socket is not a directory")


def check_server_tls(check: Checker, tls: Fields, path: str) -> None:
    """ServerTLSSettings."""
    mode = tls.get("mode", "PASSTHROUGH")
    for place, suite in each(tls.get("cipherSuites"), f"{path}.cipherSuites"):
        if suite not in CIPHERS:
            check.warn(place, f"{suite!r} is not a cipher suite of Envoy: it is left out")
    if len(set(tls.get("cipherSuites") or ())) < len(tls.get("cipherSuites") or ()):
        check.warn(f"{path}.cipherSuites", "a suite is there twice")
    if mode == "ISTIO_MUTUAL":
        for name in _CREDENTIALS:
            if tls.get(name):
                check.error(f"{path}.{name}", "ISTIO_MUTUAL cannot have associated certificates")
        return
    sources = [
        name
        for name, given in (
            ("credentialName", tls.get("credentialName")),
            ("credentialNames", tls.get("credentialNames")),
            ("tlsCertificates", tls.get("tlsCertificates")),
            ("serverCertificate", tls.get("serverCertificate") or tls.get("privateKey")),
        )
        if given
    ]
    own = [name for name in sources if name != "credentialName"]
    if len(own) > 1 or ("credentialName" in sources and "credentialNames" in sources):
        check.error(
            path,
            "only one of credential_name, credential_names, tls_certificates and server_certificate"
            f" may be set: {', '.join(sources)}",
        )
    for name in ("credentialNames", "tlsCertificates"):
        if len(tls.get(name) or ()) > 2:
            check.warn(f"{path}.{name}", "only the first RSA and the first ECDSA one are used")
    if mode in _WITH_CERTIFICATES and not {"credentialName", "credentialNames"} & set(sources):
        _check_certificates(check, tls, path, mode)


def _check_certificates(check: Checker, tls: Fields, path: str, mode: str) -> None:
    holders: list[tuple[str, Any]] = list(
        each(tls.get("tlsCertificates"), f"{path}.tlsCertificates")
    )
    for place, holder in holders or [(path, tls)]:
        message = f"{mode} TLS requires a server certificate"
        check.need(holder.get("serverCertificate"), f"{place}.serverCertificate", message)
        message = f"{mode} TLS requires a private key"
        check.need(holder.get("privateKey"), f"{place}.privateKey", message)
    if mode in _MUTUAL:
        message = f"{mode} TLS requires a client CA bundle"
        bundles = [holder.get("caCertificates") for _, holder in holders]
        given = tls.get("caCertificates") or (bundles and all(bundles))
        check.need(given, f"{path}.caCertificates", message)
