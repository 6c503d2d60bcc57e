"""Where the control plane is and who the process is: order of sources, and errors that help."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from meshsdk.errors import ConfigurationError
from meshsdk.model import Locality
from meshsdk.settings import VARIABLES, load
from meshsdk.xds.bootstrap import Bootstrap, TlsFiles, find, parse


def document(**changes: Any) -> dict[str, Any]:
    server = {"server_uri": "cp.example:15010", "channel_creds": [{"type": "insecure"}]}
    return {"xds_servers": [server], "node": {"id": "n"}, **changes}


# --- the order of the sources ----------------------------------------------------------------


def test_the_first_source_that_is_there_wins(tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.json"
    server = {"server_uri": "file:1", "channel_creds": [{"type": "insecure"}]}
    file.write_text(json.dumps({"xds_servers": [server]}))
    inline = {"xds_servers": [server | {"server_uri": "inline:2"}]}
    environ = {
        "GRPC_XDS_BOOTSTRAP": str(file),
        "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(inline),
        "MESHSDK_CONTROL_PLANE": "variable:3",
    }
    assert find(None, None, environ).server.uri == "file:1"
    del environ["GRPC_XDS_BOOTSTRAP"]
    assert find(None, None, environ).server.uri == "inline:2"
    del environ["GRPC_XDS_BOOTSTRAP_CONFIG"]
    assert find(None, None, environ).server.uri == "variable:3"
    del environ["MESHSDK_CONTROL_PLANE"]
    default = find(None, None, environ)
    assert (default.server.uri, default.explicit) == ("127.0.0.1:15010", False)


def test_arguments_win_over_the_environment(tmp_path: Path) -> None:
    environ = {"GRPC_XDS_BOOTSTRAP": "/does/not/exist", "MESHSDK_CONTROL_PLANE": "other:1"}
    assert find(document(), None, environ).server.uri == "cp.example:15010"
    assert find(json.dumps(document()), None, environ).server.uri == "cp.example:15010"
    file = tmp_path / "b.json"
    file.write_text(json.dumps(document()))
    assert find(str(file), None, environ).server.uri == "cp.example:15010"
    assert find(None, "argument:7", environ).server.uri == "argument:7"
    assert find(None, "argument:7", environ).explicit


def test_a_bare_host_gets_the_port_of_istiod() -> None:
    assert find(None, "istiod.istio-system", {}).server.uri == "istiod.istio-system:15010"


# --- the format of gRPC ----------------------------------------------------------------------


def test_unknown_fields_features_and_credentials_are_ignored() -> None:
    parsed = parse(
        document(
            xds_servers=[
                {
                    "server_uri": "unix:///etc/istio/proxy/XDS",
                    "channel_creds": [{"type": "future"}, {"type": "tls", "config": {"x": 1}}],
                    "server_features": ["xds_v3", "ignore_resource_deletion", {"odd": 1}],
                    "future": True,
                },
                {},
            ],
            authorities={"other": {}},
            future={},
            server_listener_resource_name_template="xds.istio.io/grpc/lds/inbound/%s",
        ),
        "test",
    )
    assert parsed.server.uri == "unix:///etc/istio/proxy/XDS"
    assert parsed.server.tls == TlsFiles()
    assert parsed.server.ignore_resource_deletion
    assert parsed.server_listener_template == "xds.istio.io/grpc/lds/inbound/%s"


def test_the_first_known_credential_wins() -> None:
    creds: list[Any] = [{"type": "insecure"}, {"type": "tls"}]
    server = {"server_uri": "a:1", "channel_creds": creds}
    assert parse({"xds_servers": [server]}, "test").server.tls is None
    server = {"server_uri": "a:1", "channel_creds": creds[::-1]}
    assert parse({"xds_servers": [server]}, "test").server.tls == TlsFiles()


def test_node_and_locality() -> None:
    node = {
        "id": "sidecar~10.0.0.7~web-1.shop~shop.svc.cluster.local",
        "cluster": "web.shop",
        "locality": {"region": "eu", "zone": "eu-1", "sub_zone": "a"},
        "metadata": {"GENERATOR": "grpc", "LABELS": {"app": "web"}, "N": 1.5},
    }
    settings = load({"bootstrap": document(node=node)}, {})
    assert settings.namespace == "shop"
    assert settings.workload_name == "web-1"
    assert settings.address == "10.0.0.7"
    assert settings.node_id == node["id"]
    assert settings.cluster == "web.shop"
    assert settings.locality == Locality("eu", "eu-1", "a")
    assert settings.labels == {"app": "web"}
    assert settings.node_metadata()["N"] == 1.5


@pytest.mark.parametrize(
    ("value", "field", "advice"),
    [
        ([], "the document", "must be an object, is a list"),
        ({}, "xds_servers", "give [{"),
        (document(xds_servers={}), "xds_servers", "must be a list, is an object"),
        (document(xds_servers=[7]), "xds_servers[0]", "must be an object, is a number"),
        (document(xds_servers=[{}]), "xds_servers[0].server_uri", "give host:port"),
        (
            document(xds_servers=[{"server_uri": "http://cp:1"}]),
            "xds_servers[0].server_uri",
            "without a scheme",
        ),
        (
            document(xds_servers=[{"server_uri": "cp:99999"}]),
            "xds_servers[0].server_uri",
            "port from 1 to 65535",
        ),
        (
            document(xds_servers=[{"server_uri": "cp:1"}]),
            "xds_servers[0].channel_creds",
            "insecure or tls",
        ),
        (
            document(xds_servers=[{"server_uri": "cp:1", "channel_creds": [{"type": 5}]}]),
            "xds_servers[0].channel_creds[0].type",
            "must be a string, is a number",
        ),
        (
            document(
                xds_servers=[
                    {
                        "server_uri": "cp:1",
                        "channel_creds": [{"type": "tls", "config": {"certificate_file": "c"}}],
                    }
                ]
            ),
            "xds_servers[0].channel_creds[0].config.private_key_file",
            "belong together",
        ),
        (
            document(
                xds_servers=[
                    {
                        "server_uri": "cp:1",
                        "channel_creds": [{"type": "insecure"}],
                        "call_creds": [{"type": "jwt_token_file", "config": {}}],
                    }
                ]
            ),
            "xds_servers[0].call_creds[0].config.jwt_token_file",
            "path of a file",
        ),
        (document(node="me"), "node", "must be an object, is a string"),
        (document(node={"id": 3}), "node.id", "must be a string, is a number"),
        (document(node={"locality": {"zone": []}}), "node.locality.zone", "must be a string"),
        (document(node={"metadata": {"x": {1, 2}}}), "node.metadata", "must be JSON"),
        (document(certificate_providers="x"), "certificate_providers", "must be an object"),
        (
            document(server_listener_resource_name_template=1),
            "server_listener_resource_name_template",
            "must be a string",
        ),
    ],
)
def test_a_malformed_bootstrap_names_source_field_and_remedy(
    value: Any, field: str, advice: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(value, "/etc/mesh.json")
    text = str(caught.value)
    assert "/etc/mesh.json" in text
    assert field in text
    assert advice in text


def test_an_unreadable_file_is_named_with_its_variable(tmp_path: Path) -> None:
    missing = tmp_path / "missing.json"
    with pytest.raises(ConfigurationError, match=r"GRPC_XDS_BOOTSTRAP.*No such file") as caught:
        find(None, None, {"GRPC_XDS_BOOTSTRAP": str(missing)})
    assert str(missing) in str(caught.value)
    broken = tmp_path / "broken.json"
    broken.write_text('{"xds_servers": [}')
    with pytest.raises(ConfigurationError, match=r"broken\.json .*not JSON: .*column 18"):
        find(None, None, {"GRPC_XDS_BOOTSTRAP": str(broken)})
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        find(None, None, {"GRPC_XDS_BOOTSTRAP": str(broken)})
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        find(None, None, {"GRPC_XDS_BOOTSTRAP": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="GRPC_XDS_BOOTSTRAP_CONFIG is not JSON"):
        find(None, None, {"GRPC_XDS_BOOTSTRAP_CONFIG": "nope"})


# --- settings --------------------------------------------------------------------------------


def test_everything_can_be_said_by_variables() -> None:
    environ = {
        "MESHSDK_CONTROL_PLANE": "cp:15010",
        "MESHSDK_NAMESPACE": "shop",
        "MESHSDK_NODE_ID": "me",
        "MESHSDK_LABELS": "app=reviews, version=v1",
        "MESHSDK_SERVICE_ACCOUNT": "sa",
        "MESHSDK_CLUSTER": "c",
        "MESHSDK_LOCALITY": "r/z/s",
        "MESHSDK_DOMAIN": "corp.local",
        "MESHSDK_STATE_DIR": "/var/lib/mesh",
        "MESHSDK_AUTO_REGISTER_GROUP": "reviews-v1",
        "MESHSDK_WORKLOAD_NAME": "w",
        "MESHSDK_ADDRESS": "10.1.1.1",
        "MESHSDK_REQUIRED": "true",
        "MESHSDK_ENABLED": "1",
        "MESHSDK_READY_TIMEOUT": "3.5",
        "MESHSDK_RECONNECT_MAX": "7",
        "MESHSDK_MAX_LISTENERS": "50",
    }
    assert set(environ) == set(VARIABLES.values())
    settings = load({}, environ)
    assert settings.bootstrap == Bootstrap(
        find(None, "cp:15010", {}).server, "MESHSDK_CONTROL_PLANE"
    )
    assert settings.labels == {"app": "reviews", "version": "v1"}
    assert settings.locality == Locality("r", "z", "s")
    assert (settings.ready_timeout, settings.reconnect_max, settings.max_listeners) == (3.5, 7, 50)
    assert (settings.namespace, settings.node_id, settings.address) == ("shop", "me", "10.1.1.1")
    assert (settings.service_account, settings.cluster, settings.domain) == (
        "sa",
        "c",
        "corp.local",
    )
    assert settings.required
    assert settings.state_dir == "/var/lib/mesh"
    assert settings.auto_register_group == "reviews-v1"
    metadata = settings.node_metadata()
    assert metadata["LABELS"] == {"app": "reviews", "version": "v1"}
    assert metadata["NAMESPACE"] == "shop"
    assert metadata["SERVICE_ACCOUNT"] == "sa"
    assert metadata["GENERATOR"] == "grpc"


def test_arguments_win_over_variables_over_the_bootstrap_over_istio() -> None:
    node = {"id": "sidecar~1.2.3.4~w.from-node~from-node.svc.cluster.local"}
    istio = {
        "POD_NAME": "pod-1",
        "POD_NAMESPACE": "pod-ns",
        "INSTANCE_IP": "10.9.9.9",
        "SERVICE_ACCOUNT": "pod-sa",
    }
    ours = {"MESHSDK_NAMESPACE": "from-variable"}
    bootstrap = document(node=node)
    given = {"bootstrap": bootstrap, "namespace": "from-argument"}
    assert load(given, ours | istio).namespace == "from-argument"
    assert load({"bootstrap": bootstrap}, ours | istio).namespace == "from-variable"
    assert load({"bootstrap": bootstrap}, istio).namespace == "from-node"
    plain = load({"control_plane": "cp:1"}, istio)
    assert plain.namespace == "pod-ns"
    assert plain.node_id == "sidecar~10.9.9.9~pod-1.pod-ns~pod-ns.svc.cluster.local"
    assert plain.service_account == "pod-sa"
    assert load({}, {}).namespace == "default"


def test_the_node_id_is_made_up_from_labels() -> None:
    settings = load({"control_plane": "127.0.0.1:1", "labels": {"app": "web", "version": "v2"}}, {})
    expected = "sidecar~127.0.0.1~web-v2.default~default.svc.cluster.local"
    assert settings.node_id == expected
    assert settings.cluster == "web.default"
    moved = settings.at("127.0.0.9")
    assert moved.node_id == expected.replace("127.0.0.1", "127.0.0.9")


def test_a_workload_without_another_name_has_that_of_its_group() -> None:
    environ = {"MESHSDK_AUTO_REGISTER_GROUP": "hello-v1"}
    assert load({}, environ).workload_name == "hello-v1"
    assert load({"labels": {"app": "web"}}, environ).workload_name == "web"


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("MESHSDK_ENABLED", "maybe", "give true or false"),
        ("MESHSDK_REQUIRED", "2", "give true or false"),
        ("MESHSDK_LABELS", "app", "give app=reviews,version=v1"),
        ("MESHSDK_LABELS", '{"app": 1}', "give app=reviews,version=v1"),
        ("MESHSDK_LABELS", "{", "give app=reviews,version=v1"),
        ("MESHSDK_LOCALITY", "a/b/c/d", "give region/zone/subzone"),
        ("MESHSDK_READY_TIMEOUT", "soon", "give a number above 0"),
        ("MESHSDK_RECONNECT_MAX", "-1", "give a number above 0"),
        ("MESHSDK_MAX_LISTENERS", "nan", "give a number above 0"),
        ("MESHSDK_CONTROL_PLANE", "http://cp:15010", "give host:port"),
        ("MESHSDK_CONTROL_PLANE", "cp:port", "give host:port"),
        ("MESHSDK_CONTROL_PLANE", "cp:0", "port from 1 to 65535"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, advice: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({}, {variable: value})
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)
    assert advice in str(caught.value)


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"Mesh\(namespace=\.\.\.\) is 7; give a string"):
        load({"namespace": 7}, {})
    with pytest.raises(ConfigurationError, match=r"Mesh\(labels=\.\.\.\)"):
        load({"labels": ["app"]}, {})


def test_switched_off_nothing_else_is_looked_at() -> None:
    settings = load({}, {"MESHSDK_ENABLED": "false", "GRPC_XDS_BOOTSTRAP": "/does/not/exist"})
    assert not settings.enabled
    assert settings.bootstrap is None


def test_a_misspelt_variable_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "meshsdk"):
        load({}, {"MESHSDK_NAMESPCE": "shop", "MESHSDK_SOMETHING_ELSE": "x"})
    assert [r.getMessage() for r in caplog.records] == [
        "environment variable MESHSDK_NAMESPCE is not known; did you mean MESHSDK_NAMESPACE?"
    ]
