"""Input that was made to break the control plane, or that broke it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.configuration import Editor
from controlplane.model.duration import Duration
from controlplane.model.parse import parse_text
from controlplane.model.resource import ConfigError
from controlplane.sources.files import FileSource
from controlplane.translate.node import Dialect, Variant
from controlplane.translate.resources import CDS, EDS, RDS
from controlplane.xds import render
from controlplane.xds.render import Renderer
from tests.support.controlplane import make_world, service, workload

SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: b}\n"
RULE = '{"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": '
CHAIN = "x0: &x0 [y]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 400))


def said(text: str) -> list[str]:
    return [str(error) for error in parse_text(text, "a.yaml").errors]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("spec: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(3000)), "nested too deeply"),
        ("- " * 5000 + "a", "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        (RULE + '"a"}, "spec": {"http": ' + "[" * 400 + "]" * 400 + "}}", "nested too deeply"),
        (CHAIN, "nested too deeply"),
        (f"{SERVICE}spec: {{ports: [{{port: {'9' * 6000}}}]}}\n", "too many digits"),
        (RULE + "9" * 6000 + "}}", "too many digits"),
        (f"{SERVICE}spec: {{ports: [{{port: .inf}}]}}\n", "inf is not a finite number"),
        (RULE + "NaN}}", "NaN is not a finite number"),
        (f"a: &a [{'x,' * 2000}]\nb: [{'*a,' * 2000}]\n", "more than a million"),
        (RULE + '"\\ud800"}}', "half a surrogate pair"),
        ("a: b\x00c\n", "not YAML: unacceptable character #x0000: control characters"),
    ],
)
def test_one_readable_line(text: str, words: str) -> None:
    (error,) = said(text)
    assert words in error
    assert "\n" not in error


def test_depth_does_not_end_the_process() -> None:
    """libyaml recurses in C: what overflows there takes the interpreter with it."""
    code = "from controlplane.model.parse import parse_text; parse_text('a: ' + '[' * 100_000)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_pipe_among_the_files_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(f"{SERVICE}spec: {{ports: [{{port: 80, name: http}}]}}\n")
    snapshot = FileSource([tmp_path]).load()
    assert [resource.name for resource in snapshot.resources] == ["b"]
    (error,) = snapshot.errors
    assert str(error).endswith("a.yaml: Error file: cannot be read: it is no regular file")


def kube(kind: str, body: str, version: str = "v1") -> str:
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: b}}\n{body}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            kube("Service", "spec: {ports: [{port: 65536}]}"),
            "spec.ports[0].port: 65536 is not a port",
        ),
        (
            kube("Service", "spec: {ports: [{port: 80, targetPort: 4294967296}]}"),
            "spec.ports[0].targetPort: 4294967296 is not a port",
        ),
        (
            kube("Service", "spec: {ports: [{port: 80, targetPort: '8080'}]}"),
            "spec.ports[0].targetPort: '8080' is neither a number nor the name of a port",
        ),
        (
            kube("Service", "spec: {ports: [{port: 80, protocol: HTTP}]}"),
            "spec.ports[0].protocol: 'HTTP' is not one of TCP, UDP, SCTP",
        ),
        (
            kube("Service", "spec: {clusterIP: 10.0.0.999}"),
            "spec.clusterIP: '10.0.0.999' is not an IP address",
        ),
        (
            kube("Service", "spec: {type: ExternalName, externalName: ..}"),
            "spec.externalName: '..' is not a DNS name",
        ),
        (
            kube("Service", "spec: {}").replace("name: b", "name: a.*"),
            "metadata.name: 'a.*' is not a DNS label",
        ),
        (
            kube("Endpoints", "subsets: [{addresses: [{ip: here}], ports: [{port: 80}]}]"),
            "subsets[0].addresses[0].ip: 'here' is not an IP address",
        ),
        (
            kube("Endpoints", "subsets: [{ports: [{port: -1}]}]"),
            "subsets[0].ports[0].port: -1 is not a port",
        ),
        (
            kube(
                "EndpointSlice",
                "endpoints: [{addresses: [1.2.3.4, 1.2.3]}]",
                "discovery.k8s.io/v1",
            ),
            "endpoints[0].addresses[1]: '1.2.3' is not an IP address",
        ),
        (kube("Pod", "status: {podIP: x}"), "status.podIP: 'x' is not an IP address"),
        (kube("ConfigMap", "data: 5"), "data: Expected `object`, got `int`"),
        (
            RULE + '"a\\nb"}, "spec": {"hosts": ["a"], "http": [{"redirect": {"uri": "/"}}]}}',
            "metadata.name: 'a\\nb' is no name",
        ),
        (
            kube(
                "IstioOperator",
                "spec: {meshConfig: {connectTimeout: -5s}}",
                "install.istio.io/v1alpha1",
            ),
            "spec.meshConfig.connectTimeout: -5s is negative",
        ),
        (
            kube(
                "IstioOperator",
                "spec: {meshConfig: {defaultHttpRetryPolicy: {attempts: 9223372036854775807}}}",
                "install.istio.io/v1alpha1",
            ),
            "spec.meshConfig.defaultHttpRetryPolicy: 9223372036854775807 is not a number of",
        ),
    ],
)
def test_values_that_no_client_would_take(text: str, words: str) -> None:
    world_findings = make_world(text).findings if "IstioOperator" in text else ()
    found = [*said(text), *map(str, world_findings)]
    assert any(words in line for line in found), found


def test_a_time_beyond_what_go_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 290 years"):
        Duration.parse("99999999h")


def test_a_workload_of_another_network_is_no_endpoint_without_an_address() -> None:
    """It is reached through that network's gateway; an empty address voids the whole cluster."""
    far = workload("far", "''", "a").replace("address: ''", "network: far")
    world = make_world(service("a", "http:80"), workload("near", "10.0.0.1", "a"), far)
    (found,) = world.services
    assert [e.address for e in world.endpoints(found, found.ports[0])] == ["10.0.0.1"]


def test_a_resource_that_cannot_be_made_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(service("a", "http:80"), workload("w", "10.0.0.1", "a"))
    renderer = Renderer(world)
    variant = Variant(Dialect.SDK, "default")
    name = "outbound|80||a.default.svc.cluster.local"
    lookup = renderer.lookup(variant)
    good = lookup(CDS, name)
    make = render.make

    def broken(world: object, variant: object, type_url: str, name: str) -> object:
        if type_url == RDS:
            return make(world, variant, type_url, name)  # type: ignore[arg-type]
        raise OverflowError("Value out of range")

    monkeypatch.setattr(render, "make", broken)
    changed = make_world(service("a", "http:80", "grpc:81"))
    renderer.advance(changed, render.Affected(everything=True))
    assert lookup(CDS, name) == good
    assert lookup(EDS, name) is None
    assert lookup(RDS, name) is not None
    assert f"{name} cannot be made" in caplog.text

    monkeypatch.undo()
    renderer.advance(changed, render.Affected(hosts=frozenset(["other"])))
    assert lookup(EDS, name) is not None


# --- apply and delete -------------------------------------------------------------------------


def port(name: str, number: int) -> str:
    return kube("Service", f"spec: {{ports: [{{port: {number}, name: http}}]}}").replace(
        "name: b", f"name: {name}"
    )


def apply(source: FileSource, *documents: str) -> list[str]:
    results = Editor(source).apply("---\n".join(documents), lambda _: ())
    return [f"{result['resource']} {result['action']}" for result in results]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_bytes().decode() for path in folder.iterdir()}


LISTED = (
    '{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Service", '
    '"metadata": {"name": "listed"}, "spec": {"ports": [{"port": 80}]}}]}'
)


def test_either_all_documents_are_written_or_none(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(LISTED)
    (tmp_path / "a.yaml").write_text(port("a", 80))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="is part of a List: edit the file itself"):
        apply(FileSource([tmp_path]), port("new", 80), port("a", 81), port("listed", 81))
    assert contents(tmp_path) == before


def test_either_all_files_are_replaced_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the second file is written."""
    (tmp_path / "a.yaml").write_text(port("a", 80))
    before = contents(tmp_path)
    sync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"nothing was changed: .*No space left"):
        apply(FileSource([tmp_path]), port("a", 81), port("new", 80))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("action", ["apply", "delete"])
def test_a_file_with_mistakes_is_not_written_to(tmp_path: Path, action: str) -> None:
    """Its last good version would stay in force, and the answer would not be true."""
    file = tmp_path / "a.yaml"
    file.write_text(port("a", 80))
    source = FileSource([tmp_path])
    source.load()
    file.write_text(port("a", 80) + "---\nkind: [\n")
    with pytest.raises(ConfigError, match=r"fix that first: .*a.yaml:7: Error document: not YAML"):
        getattr(Editor(source), action)(port("a", 81), *([lambda _: ()][: action == "apply"]))
    assert file.read_text().endswith("kind: [\n")


def test_one_resource_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MSH0102\] Service default/a: is also in <apply>:1"):
        apply(FileSource([tmp_path]), port("a", 80), port("a", 81))
    assert contents(tmp_path) == {}


def test_nothing_is_written_beside_a_single_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(port("a", 80))
    with pytest.raises(ConfigError, match=r"a.yaml is a file: name a directory first"):
        apply(FileSource([file]), port("b", 80))
    assert apply(FileSource([file]), port("a", 81)) == ["Service default/a configured"]


def test_a_file_keeps_its_form(tmp_path: Path) -> None:
    kept = port("kept", 80).strip()
    (tmp_path / "crlf.yaml").write_bytes(
        f"{kept}\n---\n{port('a', 80)}".replace("\n", "\r\n").encode()
    )
    (tmp_path / "c.json").write_text(
        '{"apiVersion": "v1", "kind": "Service", '
        '"metadata": {"name": "c"}, "spec": {"ports": [{"port": 1}]}}'
    )
    assert len(apply(FileSource([tmp_path]), port("a", 81), port("c", 82))) == 2
    written = contents(tmp_path)
    assert written["crlf.yaml"].startswith(kept.replace("\n", "\r\n") + "\r\n---\r\n")
    assert written["crlf.yaml"].count("\n") == written["crlf.yaml"].count("\r\n")
    assert json.loads(written["c.json"])["spec"] == {"ports": [{"port": 82, "name": "http"}]}


def test_a_directive_belongs_to_one_document() -> None:
    text = f"%YAML 1.1\n---\n{port('a', 80)}---\n{port('b', 80)}"
    parsed = parse_text(text, "a.yaml")
    assert [(r.name, r.origin.line) for r in parsed.resources] == [("a", 1), ("b", 8)]
    assert parsed.findings == ()


def test_what_yaml_folds_is_written_as_it_was(tmp_path: Path) -> None:
    document = port("a", 80).replace("name: a", 'name: a, labels: {x: "1\\u0085 \\u2028 2"}')
    source = FileSource([tmp_path])
    assert apply(source, document) == ["Service default/a created"]
    assert apply(source, document) == ["Service default/a unchanged"]
