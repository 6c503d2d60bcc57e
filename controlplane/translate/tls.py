"""TLS towards the endpoints of a cluster, from the `tls` of a DestinationRule (D19 to D21).

Source: Istio networking/core/cluster_tls.go. A setting that the SDK cannot do is said all the same:
it refuses such a cluster rather than send calls unprotected. ISTIO_MUTUAL waits for the mesh's own
certificates; until then it is plain text and a finding says so (MSH0104).
"""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2 as cl
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2

from controlplane.model.hosts import is_address
from controlplane.model.policy import ClientTls
from controlplane.translate.node import Dialect
from controlplane.translate.scope import Scope
from controlplane.translate.wire import ads, pack
from controlplane.world import ServicePort

_SOCKET = "envoy.transport_sockets.tls"
_OWN = ("SIMPLE", "MUTUAL")
_SYSTEM = "system"


def asks_for_own_sni(tls: ClientTls) -> bool:
    """Whether the server name is that of the call: none is given, and it is not the mesh's TLS."""
    return tls.mode in _OWN and not tls.sni


def trusts_anybody(tls: ClientTls | None) -> bool:
    """Whether the certificate of an endpoint is not looked at: only when somebody asks for that."""
    return tls is not None and tls.mode in _OWN and bool(tls.insecure_skip_verify)


def protect(out: cl.Cluster, tls: ClientTls | None, port: ServicePort, scope: Scope) -> None:
    """Writes the transport socket of a cluster."""
    if tls is None or tls.mode not in _OWN:
        return
    if scope.dialect is Dialect.GRPC:
        scope.note(f"tls mode {tls.mode}: gRPC's own client takes no files, it calls in PLAIN TEXT")
        return
    context = tls_pb2.UpstreamTlsContext(sni=tls.sni)
    common = context.common_tls_context
    _identity(common, tls)
    _validation(common, tls)
    http = tls.mode in _OWN and port.protocol.is_http2
    if http:
        common.alpn_protocols.append("h2")
    out.transport_socket.name = _SOCKET
    out.transport_socket.typed_config.CopyFrom(pack(context))


def _identity(common: tls_pb2.CommonTlsContext, tls: ClientTls) -> None:
    """What is shown of this side: files, or a secret by name."""
    if tls.credential_name:
        if tls.mode == "MUTUAL":
            common.tls_certificate_sds_secret_configs.append(_secret(tls.credential_name))
        return
    if tls.client_certificate:
        shown = common.tls_certificates.add()
        shown.certificate_chain.filename = tls.client_certificate
        shown.private_key.filename = tls.private_key


def _validation(common: tls_pb2.CommonTlsContext, tls: ClientTls) -> None:
    """What the certificate of an endpoint has to be.

    Without authorities of its own it is checked against those of the system (D21, as Istio does
    since VERIFY_CERTIFICATE_AT_CLIENT is on).
    """
    context = common_pb2.CertificateValidationContext()
    if trusts_anybody(tls):
        return
    if tls.credential_name:
        combined = common.combined_validation_context
        combined.validation_context_sds_secret_config.CopyFrom(
            _secret(f"{tls.credential_name}-cacert")
        )
        context = combined.default_validation_context
    elif tls.ca_certificates and tls.ca_certificates != _SYSTEM:
        context.trusted_ca.filename = tls.ca_certificates
    else:
        context.system_root_certs.SetInParent()
    if tls.ca_crl:
        context.crl.filename = tls.ca_crl
    for name in tls.subject_alt_names:
        wanted = context.match_typed_subject_alt_names.add(san_type=_kind(name))
        wanted.matcher.exact = name
    if not tls.credential_name:
        common.validation_context.CopyFrom(context)


def _kind(name: str) -> common_pb2.SubjectAltNameMatcher.SanType:
    kinds = common_pb2.SubjectAltNameMatcher
    if "://" in name:
        return kinds.URI
    return kinds.IP_ADDRESS if is_address(name) else kinds.DNS


def _secret(name: str) -> secret_pb2.SdsSecretConfig:
    return secret_pb2.SdsSecretConfig(name=f"kubernetes://{name}", sds_config=ads())
