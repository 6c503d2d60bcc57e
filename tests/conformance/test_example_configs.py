"""Whole configurations of Envoy's documentation and examples: their routes and clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from meshsdk.errors import InvalidResource
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.document import message_of
from meshsdk.xds.resources import CLUSTER, ROUTE
from tests.support.cases import Case, each_case
from tests.support.programs import require_data

TOPIC = "envoy/example_configs"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"

_INTERNAL = "internal listeners"
_NAMES = "certificates of a name whose authority is not checked"
_TWICE = "clusters with a locality that comes twice, which gRPC refuses"
_WAITING = {
    "envoy/configs/internal_listener_proxy.yaml": _INTERNAL,
    "envoy/configs/terminate_http_in_http2_connect.yaml": _INTERNAL,
    "envoy/docs/root/configuration/http/http_filters/_include/"
    "http-cache-v2-configuration-internal-listener.yaml": _INTERNAL,
    "envoy/configs/proxy_connect_udp_http3_downstream.yaml": "QUIC to endpoints",
    "envoy/docs/root/operations/_include/traffic_tapping_ssl.yaml": "tapped TLS",
    **{
        f"envoy/docs/root/configuration/{name}.yaml": what
        for name, what in {
            "http/http_filters/_include/aws-lambda-filter-upstream": _NAMES,
            "http/http_filters/_include/aws-request-signing-filter-credential-provider-config": (
                _NAMES
            ),
            "http/http_filters/_include/aws-request-signing-filter-upstream": _NAMES,
            "http/http_filters/_include/header-to-metadata-filter": _TWICE,
            "http/http_filters/_include/thrift-to-metadata-filter": _TWICE,
            "other_protocols/thrift_filters/_include/payload-to-metadata-filter": _TWICE,
        }.items()
    },
    "envoy/docs/root/intro/_include/life-of-a-request.yaml": "static clusters without endpoints",
    "envoy/test/server/test_data/server/deprecated_runtime_key_bootstrap.yaml": (
        "endpoints of port 0, which Envoy takes and gRPC refuses"
    ),
}
_REFUSED = {
    "envoy/configs/using_deprecated_config.yaml": "allow_origin",
    "envoy/docs/root/_configs/go/golang-http-tcp-bridge-with-config.yaml": "golang",
    "envoy/docs/root/_configs/go/golang-http-tcp-bridge.yaml": "golang",
    "envoy/docs/root/_configs/go/golang-with-per-virtualhost-config.yaml": "golang",
    "envoy/docs/root/configuration/other_features/_include/hyperscan_matcher.yaml": "hyperscan",
    "envoy/docs/root/configuration/other_features/_include/"
    "hyperscan_matcher_multiple.yaml": "hyperscan",
    "envoy/test/config/integration/server_xds.rds.with_unknown_field.yaml": "foo",
    "envoy/test/server/test_data/server/invalid_bootstrap.yaml": "Cluster : ",
}
"""What Envoy 1.40 refuses too, because of a route or cluster, and a word of the reason."""


def resources(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(type URL, document) of every route configuration and cluster in a document."""
    if isinstance(value, dict):
        kind = str(value.get("@type", "")).rpartition("/")[2]
        if kind in (ROUTE.rpartition("/")[2], CLUSTER.rpartition("/")[2]):
            plain = {name: part for name, part in value.items() if name != "@type"}
            yield f"type.googleapis.com/{kind}", plain
            return
        if kind == _MANAGER and "route_config" in value:
            yield ROUTE, value["route_config"]
        for name, part in value.items():
            yield from resources(part, name)
    elif isinstance(value, list):
        for part in value:
            if key == "clusters" and isinstance(part, dict) and _is_cluster(part):
                yield CLUSTER, part
            else:
                yield from resources(part, key)


def _is_cluster(value: dict[str, Any]) -> bool:
    return "name" in value and "weight" not in value


@each_case(TOPIC, "manifest", awaits=lambda case: _WAITING.get(case["id"]))
def test_a_configuration(case: Case) -> None:
    text = (require_data(TOPIC) / case["file"]).read_text()
    refused = []
    for document in yaml.safe_load_all(text):
        for url, found in resources(document):
            try:
                message = message_of(found, url.rpartition("/")[2])
                if url == ROUTE:
                    message.name = message.name or "r"
                DECODERS[url].decode(message, [])
            except (InvalidResource, ValueError) as error:
                refused.append(str(error))
    word = _REFUSED.get(case["id"])
    assert [error for error in refused if word is None or word not in error] == []
    assert bool(refused) == (word is not None)
