"""grpc-go's own bootstrap cases, read by our parser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshsdk.errors import ConfigurationError
from meshsdk.model import Locality
from meshsdk.xds.bootstrap import TlsFiles, find, parse, tls_files
from tests.support.cases import Case, each_case, entries

TOPIC = "envoy/grpc_go_bootstrap"
OF_GOOGLE = {
    "GetConfiguration_Success/multipleChannelCreds",
    "GetConfiguration_Success/serverSupportsIgnoreResourceDeletion",
    "GetConfiguration_Success/serverSupportsTrustedXDSServer",
}
"""Their servers are offered no other credentials than google_default."""


def with_server(server: str) -> dict[str, Any]:
    return {"xds_servers": [json.loads(server)]}


def environment(case: Case) -> dict[str, str]:
    return {"GRPC_XDS_BOOTSTRAP_CONFIG": case["bootstrap_json"]}


@each_case(
    TOPIC,
    "get_configuration",
    awaits=lambda case: "google_default credentials" if case["id"] in OF_GOOGLE else None,
)
def test_configurations(case: Case) -> None:
    if case["expect"] == "reject":
        with pytest.raises(ConfigurationError):
            find(None, None, environment(case))
    else:
        accepted(case["grpc_go_parsed"], environment(case))


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


@pytest.mark.parametrize("case", entries(TOPIC, "get_configuration"))
def test_credentials_of_google_are_refused_in_words(case: Case) -> None:
    """Never a silent default: the bootstrap is refused, and told what would be right."""
    if case["id"] in OF_GOOGLE:
        with pytest.raises(ConfigurationError, match="google_default; one must be of type"):
            find(None, None, environment(case))


@each_case(TOPIC, "node")
def test_the_node(case: Case) -> None:
    document = with_server('{"server_uri": "a:1", "channel_creds": [{"type": "insecure"}]}')
    node = parse(document | {"node": json.loads(case["inputJSON"]["text"])}, "test").node
    wanted = case["wantNode"]
    locality = wanted["Locality"]
    assert (node.id, node.cluster) == (wanted["ID"], wanted["Cluster"])
    assert node.locality == Locality(locality["Region"], locality["Zone"], locality["SubZone"])
    assert node.metadata == wanted["Metadata"]["json"]


@each_case(TOPIC, "selected_creds")
def test_selected_credentials(case: Case) -> None:
    server = parse(with_server(case["bootstrapConfig"]), "test").server
    assert (server.tls is None) == (case["wantTransportType"] == "insecure")
    assert bool(server.token_file) == bool(case["wantDialOpts"])


@each_case(TOPIC, "server_config_call_creds")
def test_call_credentials_of_unknown_types_are_skipped(case: Case) -> None:
    server = parse(with_server(case["json"]), "test").server
    known = [c for c in case["wantCallCreds"] or () if c["Type"] == "jwt_token_file"]
    wanted = json.loads(known[0]["Config"]["raw_json"])["jwt_token_file"] if known else ""
    assert server.token_file == wanted


@each_case(TOPIC, "tls_certificate_provider_valid")
def test_tls_files(case: Case) -> None:
    config = json.loads(case["config_json"])
    files = tls_files(config, "test", "config")
    assert files == TlsFiles(
        config.get("ca_certificate_file", ""),
        config.get("certificate_file", ""),
        config.get("private_key_file", ""),
    )


@each_case(TOPIC, "tls_certificate_provider_invalid")
def test_tls_files_that_belong_together(case: Case) -> None:
    with pytest.raises(ConfigurationError, match="private_key_file"):
        tls_files(json.loads(case["config_json"]), "test", "config")


SERVICES = "side channels of HTTP filters"


@each_case(TOPIC, "allowed_grpc_services", awaits=lambda case: SERVICES)
def test_services_that_filters_may_call(case: Case) -> None:
    pytest.fail(SERVICES)


@pytest.mark.parametrize("case", entries(TOPIC, "allowed_grpc_services"))
def test_services_that_filters_may_call_do_no_harm(case: Case) -> None:
    document = with_server('{"server_uri": "a:1", "channel_creds": [{"type": "insecure"}]}')
    services = {"allowed_grpc_services": json.loads(case["json"])}
    assert parse(document | services, "test") == parse(document, "test")
