"""TLS towards the endpoints of a cluster, as far as grpcio can: credentials of channels.

grpcio checks the chain and one DNS name, always: it can be stricter than a cluster asks for, never
more lenient. What it cannot check as strictly as asked fails every handshake, by a name that no
certificate bears, rather than let calls out to a peer that nobody checked.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import grpc

from meshsdk.matching import StringKind
from meshsdk.model import SYSTEM_ROOTS, NameKind, Pem, UpstreamTls
from meshsdk.tls.context import content_of, states_of, system_roots
from meshsdk.tls.names import bears


class Security(NamedTuple):
    """How to make the channel to an endpoint.

    Attributes:
        name: `grpc.ssl_target_name_override`: sent as SNI, and what the certificate must bear.
        problem: what grpcio does otherwise than asked; empty for nothing.
    """

    credentials: grpc.ChannelCredentials
    name: str
    problem: str = ""


def security_of(tls: UpstreamTls, host: str, endpoint: str) -> Security:
    """What a channel needs for TLS as the cluster asks for it.

    Args:
        host: that the call names, without port. endpoint: host name of the endpoint, if known.
    """
    try:
        credentials = _credentials(tls, states_of(tls))
    except OSError as error:
        file = error.filename or "a file"
        problem = f"{file} cannot be read: {error.strerror or error}; calls fail"
        return Security(grpc.ssl_channel_credentials(), _NO_FILES, problem)
    if tls.min_version == "TLSv1_3":
        problem = "grpcio cannot insist on TLS 1.3; calls fail"
        return Security(credentials, _NO_VERSION, problem)
    name, problem = _name(tls, host, endpoint)
    if tls.roots is None:
        problem = "grpcio cannot leave certificates unverified: the system's roots are trusted"
    return Security(credentials, name, problem)


# Reserved by RFC 6761: nobody can have a certificate for one. They stand in the error text.
_NO_FILES = "tls-files-cannot-be-read.invalid"
_NO_VERSION = "grpcio-cannot-insist-on-tls-1-3.invalid"
_NO_NAME = "grpcio-cannot-check-these-names.invalid"


def _name(tls: UpstreamTls, host: str, endpoint: str) -> tuple[str, str]:
    sni = tls.server_name(host, endpoint)
    if not tls.names:
        return sni or host, ""
    if sni and bears(tls.names, [(NameKind.DNS, sni)]):
        return sni, ""
    for name in tls.names:
        if name.kind in (NameKind.DNS, NameKind.ANY) and name.match.kind is StringKind.EXACT:
            changed = f"grpcio sends the name that it checks, {name.match.value}, instead of {sni}"
            return name.match.value, changed if sni else ""
    wanted = ", ".join(name.match.value for name in tls.names)
    return _NO_NAME, f"grpcio checks exact DNS names only, not {wanted}; calls fail"


@lru_cache(maxsize=256)
def _credentials(tls: UpstreamTls, state: object) -> grpc.ChannelCredentials:
    roots = tls.roots
    trusted = system_roots() if roots is None or roots is SYSTEM_ROOTS else content_of(roots)
    return grpc.ssl_channel_credentials(trusted, _content(tls.key), _content(tls.certificate))


def _content(pem: Pem | None) -> bytes | None:
    return None if pem is None else content_of(pem)
