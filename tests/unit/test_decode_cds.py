"""Cluster into a frozen value."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from google.protobuf import json_format

from meshsdk.errors import InvalidResource
from meshsdk.matching import StringKind, StringMatch
from meshsdk.model import (
    SYSTEM_ROOTS,
    Assignment,
    Balancing,
    Cluster,
    ClusterKind,
    Dns,
    DnsFamily,
    Endpoint,
    LocalityEndpoints,
    NameKind,
    PeerName,
    Pem,
    UpstreamTls,
)
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import CLUSTER

Json = dict[str, Any]
EDS: Json = {"type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}
_EXTENSIONS = "type.googleapis.com/envoy.extensions"


def parse(config: Json) -> cluster_pb2.Cluster:
    return json_format.ParseDict({"name": "c", **config}, cluster_pb2.Cluster())


def decode(config: Json | cluster_pb2.Cluster, notes: list[str] | None = None) -> Cluster:
    message = parse(config) if isinstance(config, dict) else config
    found = DECODERS[CLUSTER].decode(message, [] if notes is None else notes)
    assert isinstance(found, Cluster)
    return found


def socket(name: str) -> Json:
    return {"name": name, "typed_config": {"@type": f"{_EXTENSIONS}.transport_sockets.{name}"}}


TLS = socket("tls.v3.UpstreamTlsContext")
RAW = socket("raw_buffer.v3.RawBuffer")


def custom(kind: str, **fields: Any) -> Json:
    config = {"@type": f"{_EXTENSIONS}.clusters.{kind}", **fields}
    return {"cluster_type": {"name": "any", "typed_config": config}}


ORIGINAL: Json = {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}


def assignment(*hosts: str) -> Json:
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": 80}}}}
        for host in hosts
    ]
    return {"load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": endpoints}]}}


def test_eds() -> None:
    assert decode(EDS) == Cluster("c", ClusterKind.EDS, "c")
    named = {"service_name": "s", "eds_config": {"self": {}}}
    found = decode({**EDS, "eds_cluster_config": named, "connect_timeout": "10s"})
    assert (found.eds_name, found.connect_timeout) == ("s", 10.0)


@pytest.mark.parametrize("kind", ["STATIC", "STRICT_DNS", "LOGICAL_DNS"])
def test_inline_endpoints_need_no_locality_weight(kind: str) -> None:
    found = decode({"type": kind, **assignment("a")})
    expected = Assignment("c", (LocalityEndpoints((Endpoint("a", 80),), weight=0),))
    assert found == Cluster("c", ClusterKind[kind], assignment=expected)


def test_original_destination() -> None:
    found = decode(ORIGINAL)
    assert (found.kind, found.balancing) == (ClusterKind.ORIGINAL_DST, Balancing.CLUSTER_PROVIDED)


@pytest.mark.parametrize(
    ("config", "header"),
    [
        ({}, ""),
        ({"use_http_header": True}, "x-envoy-original-dst-host"),
        ({"use_http_header": True, "http_header_name": "X-To"}, "x-to"),
        ({"http_header_name": "x-to"}, ""),
    ],
)
def test_original_destination_by_header(config: Json, header: str) -> None:
    assert decode({**ORIGINAL, "original_dst_lb_config": config}).original_dst_header == header


@pytest.mark.parametrize(
    ("fields", "dns"),
    [
        ({}, Dns()),
        (
            {"dns_lookup_family": "V4_ONLY", "dns_refresh_rate": "60s", "respect_dns_ttl": True},
            Dns(DnsFamily.V4_ONLY, 60.0, respect_ttl=True),
        ),
        (
            {"dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "4s"}},
            Dns(retry=1.0, retry_max=4.0),
        ),
        (
            {"dns_lookup_family": "ALL", "dns_failure_refresh_rate": {"base_interval": "1s"}},
            Dns(DnsFamily.ALL, retry=1.0, retry_max=10.0),
        ),
    ],
)
def test_dns(fields: Json, dns: Dns) -> None:
    assert decode({"type": "STRICT_DNS", **assignment("a"), **fields}).dns == dns


@pytest.mark.parametrize(
    ("single", "kind"), [(True, ClusterKind.LOGICAL_DNS), (False, ClusterKind.STRICT_DNS)]
)
def test_dns_as_an_extension(single: bool, kind: ClusterKind) -> None:
    fields = {"dns_lookup_family": "V4_PREFERRED", "dns_refresh_rate": "7s"}
    message = custom("dns.v3.DnsCluster", all_addresses_in_single_endpoint=single, **fields)
    found = decode({**message, **assignment("a")})
    assert (found.kind, found.dns) == (kind, Dns(DnsFamily.V4_PREFERRED, 7.0))


@pytest.mark.parametrize("policy", ["CLUSTER_PROVIDED", "ROUND_ROBIN"])
def test_aggregate(policy: str) -> None:
    message = custom("aggregate.v3.ClusterConfig", clusters=["a", "b"])
    found = decode({**message, "lb_policy": policy})
    assert (found.kind, found.members) == (ClusterKind.AGGREGATE, ("a", "b"))


def test_dynamic() -> None:
    cache = {"name": "x", "dns_lookup_family": "V4_ONLY"}
    provided = {"lb_policy": "CLUSTER_PROVIDED"}
    kind = "dynamic_forward_proxy.v3.ClusterConfig"
    found = decode({**custom(kind, dns_cache_config=cache), **provided})
    dns = Dns(DnsFamily.V4_ONLY, 60.0, respect_ttl=True)
    assert (found.kind, found.dns) == (ClusterKind.DYNAMIC, dns)
    assert decode({**custom(kind, sub_clusters_config={}), **provided}).dns.refresh == 60.0


def test_metadata() -> None:
    metadata = {"filter_metadata": {"istio": {"services": "x"}}}
    assert decode({**EDS, "metadata": metadata}).metadata == {"istio": {"services": "x"}}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"cluster_type": {"name": "envoy.clusters.redis"}}, "cluster_type.typed_config"),
        (custom("aggregate.v3.ClusterConfig", clusters=[]), "cluster_type.typed_config.clusters"),
        (custom("dynamic_forward_proxy.v3.ClusterConfig"), "lb_policy"),
        (
            {"type": "STRICT_DNS", **assignment("a"), "dns_refresh_rate": "0s"},
            "dns_refresh_rate",
        ),
        (
            {
                "type": "STRICT_DNS",
                **assignment("a"),
                "dns_failure_refresh_rate": {"base_interval": "2s", "max_interval": "1s"},
            },
            "dns_failure_refresh_rate",
        ),
        (
            {**ORIGINAL, "original_dst_lb_config": {"upstream_port_override": 1}},
            "original_dst_lb_config.upstream_port_override",
        ),
        ({"type": 77}, "type"),
        ({"type": "EDS"}, "eds_cluster_config.eds_config"),
        ({**EDS, "name": "xdstp://a/b"}, "eds_cluster_config.service_name"),
        ({"type": "STATIC"}, "load_assignment"),
        ({"type": "LOGICAL_DNS", **assignment("a", "b")}, "load_assignment.endpoints"),
        (
            {"type": "STATIC", **assignment("")},
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        ),
        ({**EDS, "connect_timeout": "-1s"}, "connect_timeout"),
        ({"type": "ORIGINAL_DST"}, "lb_policy"),
        ({**EDS, "lb_policy": "CLUSTER_PROVIDED"}, "lb_policy"),
        ({**EDS, "outlier_detection": {"interval": "-1s"}}, "outlier_detection.interval"),
        (
            {**EDS, "outlier_detection": {"max_ejection_percent": 101}},
            "outlier_detection.max_ejection_percent",
        ),
    ],
)
def test_what_is_refused(config: Json, field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        decode(config)
    assert caught.value.field == field


def test_outlier_detection_with_sound_values_is_accepted() -> None:
    sound = {"interval": "1s", "max_ejection_percent": 100, "enforcing_success_rate": 50}
    assert decode({**EDS, "outlier_detection": sound}) == decode(EDS)


# --- transport -------------------------------------------------------------------------------


def test_plain_text_may_be_said() -> None:
    matches = [{"name": "plain", "match": {}, "transport_socket": RAW}]
    decode({**EDS, "transport_socket": RAW, "transport_socket_matches": matches})


def tls(common: Json | None = None, **fields: Any) -> Json:
    """`transport_socket` with TLS."""
    made = socket("tls.v3.UpstreamTlsContext")
    made["name"] = "envoy.transport_sockets.tls"
    made["typed_config"] |= {"common_tls_context": common or {}, **fields}
    return {"transport_socket": made}


def validation(**fields: Any) -> Json:
    return {"validation_context": fields}


CA: Json = {"filename": "/ca.pem"}
ROOTS = Pem("/ca.pem")
_DNS_NAME = {"san_type": "DNS", "matcher": {"exact": "a"}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (tls(), UpstreamTls()),
        (tls(sni="a"), UpstreamTls("a")),
        (tls(auto_host_sni=True), UpstreamTls(sni_of_endpoint=True)),
        (tls(validation(trusted_ca=CA)), UpstreamTls(roots=ROOTS)),
        (
            tls(validation(trusted_ca={"inline_string": "PEM"})),
            UpstreamTls(roots=Pem(content=b"PEM")),
        ),
        (tls(validation(system_root_certs={})), UpstreamTls(roots=SYSTEM_ROOTS)),
        (
            tls(validation(trusted_ca=CA, match_typed_subject_alt_names=[_DNS_NAME])),
            UpstreamTls(
                roots=ROOTS,
                names=(PeerName(NameKind.DNS, StringMatch(StringKind.EXACT, "a")),),
            ),
        ),
        (
            tls(validation(trusted_ca=CA, match_subject_alt_names=[{"prefix": "a"}])),
            UpstreamTls(
                roots=ROOTS,
                names=(PeerName(NameKind.ANY, StringMatch(StringKind.PREFIX, "a")),),
            ),
        ),
        (
            tls(
                validation(trusted_ca=CA, match_typed_subject_alt_names=[_DNS_NAME]),
                sni="s",
                auto_sni_san_validation=True,
            ),
            UpstreamTls("s", roots=ROOTS, verify_sni=True),
        ),
        (
            tls(
                {
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": "/c"},
                            "private_key": {"inline_bytes": "a2V5"},
                        }
                    ],
                    "alpn_protocols": ["h2"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
                }
            ),
            UpstreamTls(
                certificate=Pem("/c"), key=Pem(content=b"key"), min_version="TLSv1_3", alpn=("h2",)
            ),
        ),
    ],
)
def test_tls(fields: Json, expected: UpstreamTls) -> None:
    assert decode({**EDS, **fields}).tls == expected


@pytest.mark.parametrize("old", [True, False])
def test_server_name_of_the_host(old: bool) -> None:
    options = {"auto_sni": True, "auto_san_validation": True}
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    fields: Json = {"upstream_http_protocol_options": options}
    if not old:
        packed = {"@type": f"type.googleapis.com/{kind}", **fields, "explicit_http_config": {}}
        packed["explicit_http_config"] = {"http_protocol_options": {}}
        fields = {"typed_extension_protocol_options": {kind: packed}}
    found = decode({**EDS, **tls(validation(trusted_ca=CA)), **fields}).tls
    assert found == UpstreamTls(sni_of_host=True, roots=ROOTS, verify_sni=True)


def test_tls_for_some_endpoints() -> None:
    matches = [
        {"name": "a", "match": {"tlsMode": "istio"}, **tls(sni="a")},
        {"name": "b", "match": {}, "transport_socket": RAW},
    ]
    found = decode({**EDS, "transport_socket_matches": matches})
    istio = Endpoint("h", 1, metadata={"envoy.transport_socket_match": {"tlsMode": "istio"}})
    assert found.tls_to(istio) == UpstreamTls("a")
    assert found.tls_to(Endpoint("h", 1)) is None


_COMMON = "transport_socket.common_tls_context"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"transport_socket": {"name": "x"}}, "transport_socket"),
        ({"transport_socket": {}}, "transport_socket"),
        ({"transport_socket": {**TLS, "name": "other"}}, "transport_socket"),
        (
            {"transport_socket_matches": [{"name": "a", "transport_socket": {"name": "x"}}]},
            "transport_socket_matches[0].transport_socket",
        ),
        (tls(allow_renegotiation=True), "transport_socket.allow_renegotiation"),
        (
            tls({"tls_certificate_sds_secret_configs": [{"name": "s"}]}),
            f"{_COMMON}.tls_certificate_sds_secret_configs",
        ),
        (
            tls({"validation_context_sds_secret_config": {"name": "s"}}),
            f"{_COMMON}.validation_context_sds_secret_config",
        ),
        (
            tls(
                {
                    "combined_validation_context": {
                        "default_validation_context": {},
                        "validation_context_sds_secret_config": {"name": "s"},
                    }
                }
            ),
            f"{_COMMON}.combined_validation_context.validation_context_sds_secret_config",
        ),
        (tls({"custom_handshaker": {"name": "h"}}), f"{_COMMON}.custom_handshaker"),
        (
            tls({"tls_params": {"cipher_suites": ["x"]}}),
            f"{_COMMON}.tls_params.cipher_suites",
        ),
        (
            tls(validation(trusted_ca=CA, crl={"filename": "/crl"})),
            f"{_COMMON}.validation_context.crl",
        ),
        (
            tls(validation(trusted_ca=CA, verify_certificate_spki=["x"])),
            f"{_COMMON}.validation_context.verify_certificate_spki",
        ),
        (
            tls(validation(trusted_ca=CA, trust_chain_verification="ACCEPT_UNTRUSTED")),
            f"{_COMMON}.validation_context.trust_chain_verification",
        ),
        (
            tls(validation(trusted_ca={"environment_variable": "X"})),
            f"{_COMMON}.validation_context.trusted_ca",
        ),
        (
            tls(validation(match_typed_subject_alt_names=[_DNS_NAME])),
            f"{_COMMON}.validation_context",
        ),
    ],
)
def test_tls_that_cannot_be_done_as_it_says_is_refused(fields: Json, field: str) -> None:
    with pytest.raises(InvalidResource) as caught:
        decode({**EDS, **fields})
    assert caught.value.field == field
