"""TLS towards the endpoints of a cluster, for Python's `ssl`.

A context is made once per configuration and state of its files: a file that is replaced counts for
the next connection. Names are checked after the handshake and before anything is sent.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from meshsdk.model import SYSTEM_ROOTS, Cluster, Pem, UpstreamTls
from meshsdk.tls.names import bears, bears_host, names_in

_VERSIONS = {
    "": ssl.TLSVersion.MINIMUM_SUPPORTED,
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1_1": ssl.TLSVersion.TLSv1_1,
    "TLSv1_2": ssl.TLSVersion.TLSv1_2,
    "TLSv1_3": ssl.TLSVersion.TLSv1_3,
}
_DEFAULT_LEAST = ssl.TLSVersion.TLSv1_2


def client_context(tls: UpstreamTls, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """The context for connections to endpoints of a cluster.

    Args:
        alpn: the protocols to offer.

    Raises:
        OSError: a file cannot be read, or does not hold what it should; says which.
    """
    return _made(tls, alpn, states_of(tls))


def prepare(cluster: Cluster, alpn: tuple[str, ...]) -> None:
    """Make the contexts of a cluster before a call needs them: reading roots takes a while."""
    for tls in (cluster.tls, *(item.tls for item in cluster.sockets)):
        if tls is not None:
            with contextlib.suppress(OSError):  # who connects tells of it
                client_context(tls, alpn)


def check_peer(tls: UpstreamTls, peer: ssl.SSLObject | ssl.SSLSocket, server_name: str) -> None:
    """Refuse an endpoint whose certificate does not bear a name that it has to bear.

    Args:
        server_name: that was sent; empty for none.

    Raises:
        ssl.SSLCertVerificationError: says which names were found and wanted.
    """
    if not tls.names and not tls.verify_sni:
        return
    found = names_in(peer.getpeercert() or {})
    if tls.names and not bears(tls.names, found):
        wanted = ", ".join(name.match.value for name in tls.names)
    elif tls.verify_sni and not bears_host(server_name, found):
        wanted = server_name or "a server name, and none was sent"
    else:
        return
    text = ", ".join(value for _, value in found) or "no name"
    raise ssl.SSLCertVerificationError(f"the certificate is for {text}, not for {wanted}")


def states_of(tls: UpstreamTls) -> tuple[tuple[int, int, int], ...]:
    """What changes when a file does.

    Raises:
        OSError: a file is not there.
    """
    return tuple(_state(pem.path) for pem in _files(tls))


def _files(tls: UpstreamTls) -> Iterator[Pem]:
    for pem in (tls.roots, tls.certificate, tls.key):
        if pem is not None and pem is not SYSTEM_ROOTS and pem.path:
            yield pem


def _state(path: str) -> tuple[int, int, int]:
    state = os.stat(path)
    return state.st_mtime_ns, state.st_size, state.st_ino


@lru_cache(maxsize=256)
def _made(
    tls: UpstreamTls, alpn: tuple[str, ...], state: tuple[tuple[int, int, int], ...]
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # `check_peer` knows which names are wanted
    context.verify_mode = ssl.CERT_NONE if tls.roots is None else ssl.CERT_REQUIRED
    context.minimum_version = _VERSIONS[tls.min_version] if tls.min_version else _DEFAULT_LEAST
    if tls.max_version:
        context.maximum_version = _VERSIONS[tls.max_version]
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as Envoy: any trusted one will do
    if alpn:
        context.set_alpn_protocols(list(alpn))
    _trust(context, tls.roots)
    if tls.certificate is not None and tls.key is not None:
        _show(context, tls.certificate, tls.key)
    return context


def _trust(context: ssl.SSLContext, roots: Pem | None) -> None:
    if roots is SYSTEM_ROOTS:
        context.load_default_certs()
    elif roots is not None:
        inline = roots.content.decode("utf-8", "replace")
        try:
            context.load_verify_locations(roots.path or None, cadata=inline or None)
        except ssl.SSLError as error:
            raise OSError(f"{roots.path or 'trusted_ca'}: no PEM certificates: {error}") from error


def _show(context: ssl.SSLContext, certificate: Pem, key: Pem) -> None:
    """`ssl` takes files only; what is given inline is there for a moment, for this user."""
    try:
        if certificate.path and key.path:
            context.load_cert_chain(certificate.path, key.path)
            return
        with tempfile.NamedTemporaryFile() as file:
            file.write(content_of(certificate) + b"\n" + content_of(key))
            file.flush()
            context.load_cert_chain(file.name)
    except ssl.SSLError as error:
        name = certificate.path or "certificate_chain"
        raise OSError(f"{name}: no PEM certificate with its private key: {error}") from error


def content_of(pem: Pem) -> bytes:
    """PEM text, read from its file.

    Raises:
        OSError: the file cannot be read.
    """
    return Path(pem.path).read_bytes() if pem.path else pem.content


def system_roots() -> bytes | None:
    """The PEM bundle of this machine's roots; None where there is none."""
    path = ssl.get_default_verify_paths().cafile
    return Path(path).read_bytes() if path else None
