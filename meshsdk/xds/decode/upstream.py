"""How endpoints are found by name and how connections to them are protected: parts of a Cluster.

TLS that cannot be done exactly as it says rejects the cluster: plain text, or TLS that checks less,
to an endpoint that was to be reached by TLS would leave calls unprotected.

Sources: Envoy `config/cluster/v3/cluster.proto`, `extensions/clusters/{aggregate,dns,
dynamic_forward_proxy}/v3`, `extensions/transport_sockets/tls/v3`; gRFC A29, A37.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.clusters.aggregate.v3 import cluster_pb2 as aggregate_pb2
from envoy.extensions.clusters.dns.v3 import dns_cluster_pb2
from envoy.extensions.clusters.dynamic_forward_proxy.v3 import cluster_pb2 as dynamic_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from meshsdk.model import (
    SYSTEM_ROOTS,
    ClusterKind,
    Dns,
    DnsFamily,
    NameKind,
    PeerName,
    Pem,
    SocketMatch,
    UpstreamTls,
)
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    optional_seconds,
    seconds,
    string_match,
    struct,
    sub,
    type_name,
    unpack,
)

_PREFIX: Final = "envoy.extensions."

# --- kinds of clusters -----------------------------------------------------------------------

_KINDS: Final = {
    0: ClusterKind.STATIC,
    1: ClusterKind.STRICT_DNS,
    2: ClusterKind.LOGICAL_DNS,
    3: ClusterKind.EDS,
    4: ClusterKind.ORIGINAL_DST,
}
_FAMILIES: Final = (
    DnsFamily.AUTO,
    DnsFamily.V4_ONLY,
    DnsFamily.V6_ONLY,
    DnsFamily.V4_PREFERRED,
    DnsFamily.ALL,
)
_DYNAMIC_REFRESH: Final = 60.0
_HEADER: Final = "x-envoy-original-dst-host"


def kind_of(message: Any, notes: Notes) -> tuple[ClusterKind, dict[str, Any]]:
    """The kind of a cluster, and the fields of `model.Cluster` that belong to that kind."""
    if message.HasField("cluster_type"):
        return sub("cluster_type.typed_config", _custom, message.cluster_type.typed_config, notes)
    kind = _KINDS.get(message.type)
    if kind is None:
        raise Bad("type", f"{message.type} is not known")
    if kind in (ClusterKind.STRICT_DNS, ClusterKind.LOGICAL_DNS):
        family = message.dns_lookup_family
        return kind, {"dns": _dns(message, family, message.respect_dns_ttl, notes)}
    if kind is ClusterKind.ORIGINAL_DST:
        return kind, sub("original_dst_lb_config", _original, message.original_dst_lb_config, notes)
    return kind, {}


def _custom(container: Any, notes: Notes) -> tuple[ClusterKind, dict[str, Any]]:
    kind = type_name(container)
    if kind == f"{_PREFIX}clusters.aggregate.v3.ClusterConfig":
        members = tuple(unpack(container, aggregate_pb2.ClusterConfig).clusters)
        if not members or not all(members):
            raise Bad("clusters", "must name at least one cluster")
        return ClusterKind.AGGREGATE, {"members": members}
    if kind == f"{_PREFIX}clusters.dns.v3.DnsCluster":
        config = unpack(container, dns_cluster_pb2.DnsCluster)
        family = max(0, config.dns_lookup_family - 1)
        logical = config.all_addresses_in_single_endpoint
        found = ClusterKind.LOGICAL_DNS if logical else ClusterKind.STRICT_DNS
        return found, {"dns": _dns(config, family, config.respect_dns_ttl, notes)}
    if kind == f"{_PREFIX}clusters.dynamic_forward_proxy.v3.ClusterConfig":
        config = unpack(container, dynamic_pb2.ClusterConfig)
        cache = config.dns_cache_config
        if config.HasField("sub_clusters_config"):
            cache = type(cache)()  # a cluster of its own per host, which is what there is here
        refresh = _DYNAMIC_REFRESH
        family = cache.dns_lookup_family
        dns = sub("dns_cache_config", lambda m, n: _dns(m, family, True, n, refresh), cache, notes)
        return ClusterKind.DYNAMIC, {"dns": dns}
    raise Bad("", f"{kind or 'a cluster without a type'} is not supported")


def _original(message: Any, notes: Notes) -> dict[str, Any]:
    for name in ("upstream_port_override", "metadata_key"):
        if message.HasField(name):
            raise Bad(name, "is not supported")
    if not message.use_http_header:
        return {}
    return {"original_dst_header": message.http_header_name.lower() or _HEADER}


def _dns(message: Any, family: int, by_ttl: bool, notes: Notes, refresh: float = 5.0) -> Dns:
    if not 0 <= family < len(_FAMILIES):
        raise Bad("dns_lookup_family", f"{family} is not known")
    for name in ("typed_dns_resolver_config", "dns_resolution_config"):
        if name in message.DESCRIPTOR.fields_by_name and message.HasField(name):
            notes.append(f"{name}: is not used, this machine's own resolver answers")
    given = optional_seconds(message, "dns_refresh_rate")
    if given is not None:
        if given < 0.001:
            raise Bad("dns_refresh_rate", f"is {given} s, must be at least 1 ms")
        refresh = given
    if not message.HasField("dns_failure_refresh_rate"):
        return Dns(_FAMILIES[family], refresh, respect_ttl=by_ttl)
    rate = message.dns_failure_refresh_rate
    base = seconds("dns_failure_refresh_rate.base_interval", rate.base_interval)
    most = optional_seconds(rate, "max_interval")
    most = base * 10 if most is None else most
    if base < 0.001 or most < base:
        text = f"from {base} s to {most} s; base_interval must be at least 1 ms, and the smaller"
        raise Bad("dns_failure_refresh_rate", text)
    return Dns(_FAMILIES[family], refresh, base, most, by_ttl)


# --- transport sockets -----------------------------------------------------------------------

_PLAIN: Final = f"{_PREFIX}transport_sockets.raw_buffer.v3.RawBuffer"
_TLS: Final = f"{_PREFIX}transport_sockets.tls.v3.UpstreamTlsContext"
_TLS_NAMES: Final = ("", "envoy.transport_sockets.tls", "tls")
_HTTP_OPTIONS: Final = f"{_PREFIX}upstreams.http.v3.HttpProtocolOptions"


def transport(message: Any, notes: Notes) -> dict[str, Any]:
    """The fields of `model.Cluster` that say how to connect; none where it is plain text."""
    fields: dict[str, Any] = {}
    automatic = _automatic(message)

    def decode(socket: Any, notes: Notes) -> UpstreamTls | None:
        return _socket(socket, automatic, notes)

    def match(item: Any, notes: Notes) -> SocketMatch:
        tls = sub("transport_socket", decode, item.transport_socket, notes)
        return SocketMatch(struct(item.match), tls)

    if message.transport_socket_matches:
        found = each("transport_socket_matches", message.transport_socket_matches, match, notes)
        if any(item.tls is not None for item in found):
            fields["sockets"] = tuple(found)
    if message.HasField("transport_socket"):
        tls = sub("transport_socket", decode, message.transport_socket, notes)
        if tls is not None:
            fields["tls"] = tls
    return fields


def _automatic(message: Any) -> tuple[bool, bool]:
    """`auto_sni` and `auto_san_validation`."""
    options = message.upstream_http_protocol_options
    packed = message.typed_extension_protocol_options
    if _HTTP_OPTIONS in packed and type_name(packed[_HTTP_OPTIONS]) == _HTTP_OPTIONS:
        made = unpack(packed[_HTTP_OPTIONS], http_protocol_options_pb2.HttpProtocolOptions)
        if made.HasField("upstream_http_protocol_options"):
            options = made.upstream_http_protocol_options
    return options.auto_sni, options.auto_san_validation


def _socket(socket: Any, automatic: tuple[bool, bool], notes: Notes) -> UpstreamTls | None:
    kind = type_name(socket.typed_config)
    if kind == _PLAIN:
        return None
    if kind != _TLS or socket.name not in _TLS_NAMES:
        problem = "is not supported; without it calls would go out unprotected"
        name = socket.name if kind == _TLS else kind or socket.name or "a socket without a type"
        raise Bad("", f"{name} {problem}")
    context = unpack(socket.typed_config, tls_pb2.UpstreamTlsContext)
    _refuse(context, ("allow_renegotiation",))
    common = sub("common_tls_context", _common, context.common_tls_context, notes)
    of_host, san_of_host = automatic
    if context.auto_sni_san_validation:
        common["names"] = ()  # it stands in their place
    found = UpstreamTls(
        sni=context.sni,
        sni_of_host=of_host,
        sni_of_endpoint=context.auto_host_sni,
        verify_sni=context.auto_sni_san_validation or (of_host and san_of_host),
        **common,
    )
    if found.roots is None and (found.names or found.verify_sni):
        raise Bad("common_tls_context.validation_context", "names are checked with trusted_ca only")
    return found


def _refuse(message: Any, names: tuple[str, ...]) -> None:
    for name in names:
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            continue
        value = getattr(message, name)
        given = len(value) if field.is_repeated else bool(value)
        if message.HasField(name) if field.message_type and not field.is_repeated else given:
            raise Bad(name, "is not supported; without it calls would be protected otherwise")


_COMMON_UNSUPPORTED: Final = (
    "tls_certificate_sds_secret_configs",
    "tls_certificate_provider_instance",
    "tls_certificate_certificate_provider",
    "tls_certificate_certificate_provider_instance",
    "custom_tls_certificate_selector",
    "validation_context_sds_secret_config",
    "validation_context_certificate_provider",
    "validation_context_certificate_provider_instance",
    "custom_handshaker",
    "key_log",
)
_VALIDATION_UNSUPPORTED: Final = (
    "ca_certificate_provider_instance",
    "verify_certificate_spki",
    "verify_certificate_hash",
    "require_signed_certificate_timestamp",
    "crl",
    "allow_expired_certificate",
    "trust_chain_verification",
    "custom_validator_config",
    "only_verify_leaf_cert_crl",
    "max_verify_depth",
)
_VERSIONS: Final = {0: "", 1: "TLSv1", 2: "TLSv1_1", 3: "TLSv1_2", 4: "TLSv1_3"}


def _common(message: Any, notes: Notes) -> dict[str, Any]:
    _refuse(message, _COMMON_UNSUPPORTED)
    fields: dict[str, Any] = {"alpn": tuple(message.alpn_protocols)}
    _refuse_params(message.tls_params)
    fields["min_version"] = _VERSIONS.get(message.tls_params.tls_minimum_protocol_version, "")
    fields["max_version"] = _VERSIONS.get(message.tls_params.tls_maximum_protocol_version, "")
    if len(message.tls_certificates) > 1:
        raise Bad("tls_certificates", "at most one can be shown to an endpoint")
    for item in each("tls_certificates", message.tls_certificates, _certificate, notes):
        fields |= item
    which = message.WhichOneof("validation_context_type")
    if which == "combined_validation_context":
        combined = message.combined_validation_context
        sub(which, lambda m, n: _refuse(m, _COMMON_UNSUPPORTED), combined, notes)
        path = f"{which}.default_validation_context"
        fields |= sub(path, _validation, combined.default_validation_context, notes)
    elif which == "validation_context":
        fields |= sub(which, _validation, message.validation_context, notes)
    return fields


def _refuse_params(message: Any) -> None:
    for name in ("cipher_suites", "ecdh_curves", "signature_algorithms"):
        if getattr(message, name):
            raise Bad(f"tls_params.{name}", "is not supported")


def _certificate(message: Any, notes: Notes) -> dict[str, Any]:
    for name in ("pkcs12", "private_key_provider", "password"):
        if message.HasField(name):
            raise Bad(name, "is not supported; use certificate_chain and private_key")
    return {
        "certificate": sub("certificate_chain", _pem, message.certificate_chain, notes),
        "key": sub("private_key", _pem, message.private_key, notes),
    }


def _pem(message: Any, notes: Notes) -> Pem:
    which = message.WhichOneof("specifier")
    if which == "filename" and message.filename:
        return Pem(path=message.filename)
    if which == "inline_bytes" and message.inline_bytes:
        return Pem(content=message.inline_bytes)
    if which == "inline_string" and message.inline_string:
        return Pem(content=message.inline_string.encode())
    raise Bad("", f"{which or 'nothing'} is not supported; give filename or inline_string")


def _validation(message: Any, notes: Notes) -> dict[str, Any]:
    _refuse(message, _VALIDATION_UNSUPPORTED)
    roots = None
    if message.HasField("trusted_ca"):
        roots = sub("trusted_ca", _pem, message.trusted_ca, notes)
    elif message.HasField("system_root_certs"):
        roots = SYSTEM_ROOTS
    typed = message.match_typed_subject_alt_names
    names = each("match_typed_subject_alt_names", typed, _typed_name, notes)
    plain = each("match_subject_alt_names", message.match_subject_alt_names, string_match, notes)
    names += [PeerName(NameKind.ANY, match) for match in plain]
    return {"roots": roots, "names": tuple(names)}


_NAME_KINDS: Final = {1: NameKind.EMAIL, 2: NameKind.DNS, 3: NameKind.URI, 4: NameKind.IP}


def _typed_name(message: Any, notes: Notes) -> PeerName:
    kind = _NAME_KINDS.get(message.san_type)
    if kind is None:
        raise Bad("san_type", f"{message.san_type} is not supported; EMAIL, DNS, URI or IP_ADDRESS")
    return PeerName(kind, sub("matcher", string_match, message.matcher, notes))
