"""Documents → resources: what is read, and what is said about mistakes."""

from __future__ import annotations

import json
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model.documents import Chunk, split
from controlplane.model.duration import Duration
from controlplane.model.meshmerge import mesh_config
from controlplane.model.parse import Parser, load_text, parse_text
from controlplane.model.resource import ConfigError, Level

HEAD = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\n"
ROUTE = "route: [{destination: {host: reviews}}]"


def errors(text: str) -> list[str]:
    return [
        f"{error.origin}: {error.path}: {error.message}"
        for error in parse_text(textwrap.dedent(text), "a.yaml").errors
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", True),
        ("No", False),
        ("'on'", "on"),
        ("~", None),
        ("", None),
        ("012", 10),
        ("0x1F", 31),
        ("1_000", 1000),
        ("-7", -7),
        ("1e3", 1000),
        ("90.0", 90),
        ("0.5", 0.5),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ("1.2.3", "1.2.3"),
        ("y", "y"),
        ("089", 89),
        ("!!str 5", "5"),
    ],
)
def test_scalars_as_kubernetes_reads_them(text: str, value: object) -> None:
    loaded = Chunk(f"a: {text}\n", 0).load()["a"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_a_document_without_a_kind_is_called_one() -> None:
    (error,) = parse_text("apiVersion: v1\n", "a.yaml").errors
    assert str(error) == "a.yaml:1: Error document: kind: is required"


def test_documents_are_cut_at_their_markers() -> None:
    text = (
        "# intro\n---\na: 1\n--- # second\nb: |\n  text\n   --- no marker\n"
        "---\n---\n%YAML 1.1\n---\nc: 1\n"
    )
    chunks = list(split(text))
    assert [chunk.load() for chunk in chunks] == [
        None,
        {"a": 1},
        {"b": "text\n --- no marker\n"},
        {"c": 1},
    ]
    assert [chunk.offset for chunk in chunks] == [0, 1, 3, 8]


def test_anchors_and_merge_keys() -> None:
    assert Chunk("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n", 0).load()["d"] == {"b": 1, "c": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\n", "a.yaml:2: : not YAML: while parsing a flow sequence did not find expected"),
        ("a: 1\na: 2\n", "a.yaml:2: : key 'a' occurs twice in one mapping"),
        ('{"a": 1, "a": 2}', "a.yaml:1: : key 'a' occurs twice in one object"),
        ("a: &x [*x]\n", "an alias refers to itself"),
        ("kind: !run id\n", "a.yaml:1: : tag '!run' means nothing here"),
        ("- a\n", "a.yaml:1: : must be a mapping, not a list"),
        ("just text\n", "must be a mapping, not text"),
        ("kind: Service\nmetadata: {name: x}\n", "apiVersion: is required"),
        ("kind: List\napiVersion: v1\nitems: {}\n", "a.yaml:3: : items: must be a list, not"),
        ("kind: List\napiVersion: v1\n", "a.yaml:1: : items: must be a list, not nothing"),
        ("apiVersion: v1\nkind: 5\nmetadata: {name: x}\n", "kind: must be text"),
        ("apiVersion: v1\nkind: Service\nmetadata: {}\n", "a.yaml:3: metadata.name: is required"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: []\n",
            "metadata: must be a mapping, not a list",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  labels:\n    version: 1\n",
            'a.yaml:6: metadata.labels.version: must be text: write "1" in quotes',
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualServce\nmetadata: {name: x}\n",
            "a.yaml:2: kind: 'VirtualServce' is not a kind of networking.istio.io,"
            ' did you mean "VirtualService"?',
        ),
        (
            HEAD.replace("/v1", "/v9") + f"spec: {{hosts: [a], http: [{{{ROUTE}}}]}}\n",
            "apiVersion: VirtualService has no version 'v9'; write networking.istio.io/v1 or",
        ),
        (HEAD + "specs: {}\n", 'a.yaml:4: specs: unknown field, did you mean "spec"?'),
        (HEAD + "spec: []\n", "spec: must be a mapping, not a list"),
        (
            HEAD
            + "spec:\n  hosts: [a]\n  http:\n  - route:\n    - destination:\n        hots: b\n",
            'a.yaml:9: spec.http[0].route[0].destination.hots: unknown field, did you mean "host"?',
        ),
        (
            HEAD + f"spec:\n  hosts: [a]\n  http:\n  - match: [{{timeout: 1s}}]\n    {ROUTE}\n",
            "a.yaml:7: spec.http[0].match[0].timeout: unknown field;"
            " it belongs at spec.http[].timeout",
        ),
        (
            HEAD + f"spec:\n  hosts: reviews\n  http: [{{{ROUTE}}}]\n",
            "a.yaml:5: spec.hosts: must be a list, not text: write [reviews]",
        ),
        (
            HEAD + f"spec: {{hosts: [a], http: [{{timeout: 5, {ROUTE}}}]}}\n",
            'spec.http[0].timeout: must be text, not a number: write "5" in quotes',
        ),
        (
            HEAD + f"spec: {{hosts: [a], http: [{{timeout: 5 seconds, {ROUTE}}}]}}\n",
            "spec.http[0].timeout: must be a valid duration",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\n"
            "spec:\n  ports:\n  - prot: 80\n    port: 80\n",
            'a.yaml:6: spec.ports[0].prot: unknown field, did you mean "port"?',
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: '80'}]}\n",
            "spec.ports[0].port: Expected `int`, got `str`",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\n"
            "endpoints: [{address: [1.2.3.4]}]\n",
            'endpoints[0].address: unknown field, did you mean "addresses"?',
        ),
    ],
)
def test_mistakes_name_file_line_and_field(text: str, said: str) -> None:
    found = errors(text)
    assert any(said in error for error in found), found


def test_every_mistake_of_a_document_is_said_at_once() -> None:
    text = HEAD + "spec: {hosts: a, htp: [], gateways: [1]}\n"
    assert [error.split(": ")[1] for error in errors(text)] == [
        "spec.gateways[0]",
        "spec.hosts",
        "spec.htp",
    ]


def test_list_kinds_and_json() -> None:
    text = """
    apiVersion: v1
    kind: List
    items:
    - apiVersion: v1
      kind: Service
      metadata: {name: a}
    - apiVersion: v1
      kind: Service
      metadata: {name: b}
      spec: {prts: []}
    """
    parsed = parse_text(textwrap.dedent(text), "a.yaml")
    assert [(res.name, res.origin.line) for res in parsed.resources] == [("a", 5)]
    assert [str(error.origin) for error in parsed.errors] == ["a.yaml:11"]
    json_text = (
        '{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"name": "c"}}]}'
    )
    assert [res.kind for res in load_text(json_text)] == ["Service"]


def test_versions_mean_the_same_and_namespace_has_a_default() -> None:
    for version in ("v1alpha3", "v1beta1", "v1"):
        text = HEAD.replace("/v1", f"/{version}") + f"spec: {{hosts: [a], http: [{{{ROUTE}}}]}}\n"
        (resource,) = load_text(text)
        assert (resource.namespace, resource.typed.hosts) == ("default", ("a",))


def test_other_kinds_are_kept_and_not_looked_into() -> None:
    (resource,) = load_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {anything: [goes]}\n"
    )
    assert resource.document["spec"] == {"anything": ["goes"]}
    assert resource.typed is None


def test_text_that_is_no_resource_is_passed_over_with_a_note() -> None:
    parsed = parse_text("swagger: '2.0'\npaths: {}\n", "swagger.yaml")
    assert parsed.resources == ()
    assert [finding.level for finding in parsed.findings] == [Level.INFO]


def test_null_is_absent() -> None:
    (resource,) = load_text(HEAD + f"spec: {{hosts: [a], gateways: , http: [{{{ROUTE}}}]}}\n")
    assert resource.typed.gateways == ()


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (
            "host: a\n  trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}",
            "spec.trafficPolicy.loadBalancer.simple",
        ),
        (
            "host: a\n  trafficPolicy: {outlierDetection: {consecutiveErrors: 5}}",
            "spec.trafficPolicy.outlierDetection.consecutiveErrors",
        ),
    ],
)
def test_deprecated_values_are_accepted_with_a_warning(spec: str, path: str) -> None:
    text = HEAD.replace("VirtualService", "DestinationRule") + f"spec:\n  {spec}\n"
    parsed = parse_text(text)
    assert len(parsed.resources) == 1
    assert [(one.level, one.path) for one in parsed.findings] == [(Level.WARNING, path)]


def test_parser_remembers_documents_but_not_their_place() -> None:
    parser = Parser()
    text = HEAD + f"spec: {{hosts: [a], http: [{{{ROUTE}}}]}}\n"
    (first,) = parser.parse("---\n" + text, "a.yaml").resources
    (again,) = parser.parse("# moved\n---\n" + text, "b.yaml").resources
    assert again.typed is first.typed
    assert (str(first.origin), str(again.origin)) == ("a.yaml:2", "b.yaml:3")
    assert again.line_of("spec.hosts") == 6


def test_load_text_raises_with_all_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("kind: Service\n---\na: [\n", "a.yaml")
    assert len(caught.value.findings) == 2


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    parse_text(text)


@given(st.text(alphabet="ab:-[]{}&*!#\n '\"", max_size=60))
def test_anything_like_yaml_is_read_or_refused(text: str) -> None:
    parse_text(HEAD + "spec:\n" + textwrap.indent(text, "  "))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["hosts", "http", "match", "route", "uri", "exact", "host", "port"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["VirtualService", "DestinationRule", "ServiceEntry", "Gateway"]))
def test_specs_of_any_shape_never_raise(spec: object, kind: str) -> None:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": spec,
    }
    parse_text(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7s", 7),
        ("100ms", 0.1),
        ("1h30m", 5400),
        ("0.5s", 0.5),
        ("0", 0),
        ("-1s", -1),
        (".5s", 0.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "7", "s", "7 s", "7d", "1s2", "seven"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        Duration.parse(text)


def config_map(mesh: str) -> str:
    return (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n"
        "data:\n  mesh: |\n" + textwrap.indent(textwrap.dedent(mesh), "    ")
    )


OPERATOR = """apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  meshConfig:
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
    defaultConfig: {tracing: {sampling: 5}}
"""


def test_mesh_config_is_laid_over_the_defaults() -> None:
    text = config_map("connectTimeout: 3s\ndefaultConfig: {concurrency: 2}\n") + "---\n" + OPERATOR
    mesh, findings = mesh_config(load_text(text))
    assert findings == []
    assert mesh.connect_timeout == 3
    assert mesh.outbound_policy == "REGISTRY_ONLY"
    assert mesh.proxy_defaults == {"concurrency": 2, "tracing": {"sampling": 5}}
    assert (mesh.root_namespace, mesh.trust_domain) == ("istio-system", "cluster.local")
    assert mesh.default_service_export_to == {"*"}


def test_mesh_config_of_another_namespace_is_somebody_elses() -> None:
    text = config_map("connectTimeout: 3s\n").replace("istio-system", "team-a")
    mesh, (finding,) = mesh_config(load_text(text))
    assert mesh.connect_timeout == 10
    assert "is read from namespace istio-system: this has no effect" in finding.message
    nowhere = config_map("connectTimeout: 3s\n").replace(", namespace: istio-system", "")
    assert mesh_config(load_text(nowhere))[0].connect_timeout == 3


@pytest.mark.parametrize(
    ("mesh", "level", "path", "message"),
    [
        ("a: [", Level.ERROR, "data.mesh", "not YAML"),
        ("- a", Level.ERROR, "data.mesh", "must be a mapping, not a list"),
        ("connectTimeout: 3", Level.ERROR, "data.mesh.connectTimeout", "must be text"),
        ("connectTimeout: x", Level.ERROR, "data.mesh.connectTimeout", "is not a duration"),
        (
            "outboundTrafficPolicy: {mode: REGISTRY}",
            Level.ERROR,
            "data.mesh.outboundTrafficPolicy.mode",
            'did you mean "REGISTRY_ONLY"?',
        ),
        (
            "outboundTrafficPolicy: REGISTRY_ONLY",
            Level.ERROR,
            "data.mesh.outboundTrafficPolicy.mode",
            "must be a mapping, not text",
        ),
        (
            "rootNamespaces: x",
            Level.WARNING,
            "data.mesh.rootNamespaces",
            'did you mean "rootNamespace"?',
        ),
        (
            "outboundTrafficPolicy: {mod: REGISTRY_ONLY}",
            Level.WARNING,
            "data.mesh.outboundTrafficPolicy.mod",
            'did you mean "mode"?',
        ),
    ],
)
def test_mistakes_in_mesh_config(mesh: str, level: Level, path: str, message: str) -> None:
    config, (finding,) = mesh_config(load_text(config_map(mesh), "mesh.yaml"))
    assert (finding.level, finding.path) == (level, path)
    assert message in finding.message
    assert config.outbound_policy == "ALLOW_ANY"
    assert config.connect_timeout == 10


def test_an_empty_pattern_is_refused_before_envoy_does() -> None:
    text = HEAD + f"spec: {{hosts: [a], http: [{{match: [{{uri: {{regex: ''}}}}], {ROUTE}}}]}}\n"
    assert any("spec.http[0].match[0].uri.regex: is empty" in error for error in errors(text))
