"""Which names in a certificate count, and files that change."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from meshsdk.matching import StringKind, StringMatch
from meshsdk.model import NameKind, PeerName, Pem, UpstreamTls
from meshsdk.tls.context import client_context
from meshsdk.tls.names import bears, bears_host, names_in

FOUND = names_in(
    {
        "subject": ((("commonName", "cn.example"),),),
        "subjectAltName": (
            ("DNS", "a.example"),
            ("DNS", "*.w.example"),
            ("URI", "spiffe://td/ns/a/sa/b"),
            ("IP Address", "0:0:0:0:0:0:0:1"),
            ("email", "me@a.example"),
            ("othername", "<unsupported>"),
        ),
    }
)


@pytest.mark.parametrize(
    ("kind", "how", "value", "found"),
    [
        (NameKind.DNS, StringKind.EXACT, "A.example", True),
        (NameKind.DNS, StringKind.EXACT, "x.w.example", True),
        (NameKind.DNS, StringKind.EXACT, "x.y.w.example", False),
        (NameKind.DNS, StringKind.EXACT, "w.example", False),
        (NameKind.DNS, StringKind.EXACT, "cn.example", False),
        (NameKind.DNS, StringKind.SUFFIX, ".w.example", True),
        (NameKind.DNS, StringKind.PREFIX, "spiffe://", False),
        (NameKind.URI, StringKind.EXACT, "spiffe://td/ns/a/sa/b", True),
        (NameKind.URI, StringKind.EXACT, "spiffe://TD/ns/a/sa/b", False),
        (NameKind.URI, StringKind.PREFIX, "spiffe://td/", True),
        (NameKind.IP, StringKind.EXACT, "::1", True),
        (NameKind.IP, StringKind.EXACT, "::2", False),
        (NameKind.EMAIL, StringKind.EXACT, "me@a.example", True),
        (NameKind.ANY, StringKind.EXACT, "x.w.example", True),
        (NameKind.ANY, StringKind.REGEX, "spiffe://td/.*", True),
    ],
)
def test_names(kind: NameKind, how: StringKind, value: str, found: bool) -> None:
    assert bears((PeerName(kind, StringMatch(how, value)),), FOUND) is found


@pytest.mark.parametrize(
    ("host", "found"),
    [("a.example", True), ("x.w.example", True), ("::1", True), ("10.0.0.1", False), ("", False)],
)
def test_hosts(host: str, found: bool) -> None:
    assert bears_host(host, FOUND) is found


def test_a_file_that_is_replaced_counts(tmp_path: Path) -> None:
    roots = tmp_path / "ca.pem"
    tls = UpstreamTls(roots=Pem(str(roots)))
    with pytest.raises(FileNotFoundError, match=r"ca\.pem"):
        client_context(tls, ())
    trustme.CA().cert_pem.write_to_path(str(roots))
    first = client_context(tls, ())
    assert client_context(tls, ()) is first
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "new"))
    (tmp_path / "new").replace(roots)
    assert client_context(tls, ()) is not first


@pytest.mark.parametrize("text", ["", "no certificate"])
def test_a_file_without_certificates(tmp_path: Path, text: str) -> None:
    (tmp_path / "ca.pem").write_text(text)
    with pytest.raises(OSError, match=r"ca\.pem"):
        client_context(UpstreamTls(roots=Pem(str(tmp_path / "ca.pem"))), ())
