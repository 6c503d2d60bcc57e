"""grpc-go's own bootstrap cases, read by our parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshsdk.errors import ConfigurationError
from meshsdk.model import Locality
from meshsdk.xds.bootstrap import TlsFiles, find, parse, tls_files
from tests.support.programs import require_data

GOOGLE = "credentials of Google's cloud: a bootstrap that offers nothing else is refused"
SET_ASIDE = {
    "GetConfiguration_Success/multipleChannelCreds": GOOGLE,
    "GetConfiguration_Success/serverSupportsIgnoreResourceDeletion": GOOGLE,
    "GetConfiguration_Success/serverSupportsTrustedXDSServer": GOOGLE,
    "AllowedGRPCServices_UnmarshalJSON/insecure_channel_creds": "side channels of HTTP filters",
    "AllowedGRPCServices_UnmarshalJSON/with_call_creds": "side channels of HTTP filters",
    "AllowedGRPCServices_UnmarshalJSON/tls_channel_creds": "side channels of HTTP filters",
    "AllowedGRPCServices_UnmarshalJSON/skips_unsupported_channel_creds": (
        "side channels of HTTP filters"
    ),
}
"""Not asked of us, with the reason."""


@pytest.fixture(scope="module")
def folder() -> Path:
    return require_data("envoy/grpc_go_bootstrap")


def cases(folder: Path, name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())
    return loaded


def with_server(server: str) -> dict[str, Any]:
    return {"xds_servers": [json.loads(server)]}


def test_configurations(folder: Path) -> None:
    for case in cases(folder, "get_configuration"):
        environ = {"GRPC_XDS_BOOTSTRAP_CONFIG": case["bootstrap_json"]}
        if case["expect"] == "reject":
            with pytest.raises(ConfigurationError):
                find(None, None, environ)
            continue
        if case["id"] in SET_ASIDE:
            with pytest.raises(ConfigurationError, match="google_default; one must be of type"):
                find(None, None, environ)
            continue
        accepted(case["grpc_go_parsed"], environ)


def accepted(wanted: dict[str, Any], environ: dict[str, str]) -> None:
    found = find(None, None, environ)
    (server,) = wanted["xDSServers"]
    assert found.server.uri == server["serverURI"]
    kind = server["selectedChannelCreds"]["Type"]
    assert (found.server.tls is None) == (kind == "insecure")
    assert found.server.features == set(server["serverFeatures"] or ())
    tokens = [c["Config"]["raw_json"] for c in server["callCredsConfigs"] or ()]
    assert found.server.token_file == (json.loads(tokens[0])["jwt_token_file"] if tokens else "")
    node = wanted["node"]
    assert found.node.id == node["ID"]
    assert found.node.cluster == node["Cluster"]
    assert found.node.metadata == node["Metadata"]["json"]
    assert found.server_listener_template == wanted["serverListenerResourceNameTemplate"]


def test_the_node(folder: Path) -> None:
    for case in cases(folder, "node"):
        document = with_server('{"server_uri": "a:1", "channel_creds": [{"type": "insecure"}]}')
        node = parse(document | {"node": json.loads(case["inputJSON"]["text"])}, "test").node
        wanted = case["wantNode"]
        locality = wanted["Locality"]
        assert (node.id, node.cluster) == (wanted["ID"], wanted["Cluster"])
        assert node.locality == Locality(locality["Region"], locality["Zone"], locality["SubZone"])
        assert node.metadata == wanted["Metadata"]["json"]


def test_selected_credentials(folder: Path) -> None:
    for case in cases(folder, "selected_creds"):
        server = parse(with_server(case["bootstrapConfig"]), "test").server
        assert (server.tls is None) == (case["wantTransportType"] == "insecure"), case["id"]
        assert bool(server.token_file) == bool(case["wantDialOpts"]), case["id"]


def test_call_credentials_of_unknown_types_are_skipped(folder: Path) -> None:
    for case in cases(folder, "server_config_call_creds"):
        server = parse(with_server(case["json"]), "test").server
        known = [c for c in case["wantCallCreds"] or () if c["Type"] == "jwt_token_file"]
        wanted = json.loads(known[0]["Config"]["raw_json"])["jwt_token_file"] if known else ""
        assert server.token_file == wanted, case["id"]


def test_tls_files(folder: Path) -> None:
    for case in cases(folder, "tls_certificate_provider_valid"):
        config = json.loads(case["config_json"])
        files = tls_files(config, "test", "config")
        assert files == TlsFiles(
            config.get("ca_certificate_file", ""),
            config.get("certificate_file", ""),
            config.get("private_key_file", ""),
        )
    for case in cases(folder, "tls_certificate_provider_invalid"):
        with pytest.raises(ConfigurationError, match="private_key_file"):
            tls_files(json.loads(case["config_json"]), "test", "config")


def test_every_case_is_used_or_set_aside(folder: Path) -> None:
    used = ("get_configuration", "node", "selected_creds", "server_config_call_creds")
    tls = ("tls_certificate_provider_valid", "tls_certificate_provider_invalid")
    total = sum(len(json.loads(path.read_text())) for path in folder.glob("*.json"))
    read = sum(len(cases(folder, name)) for name in (*used, *tls))
    aside = {case["id"] for case in cases(folder, "allowed_grpc_services")}
    assert total == read + len(aside)
    assert aside <= SET_ASIDE.keys()
