"""`meshctl` as an operator uses it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.cli import run
from tests.support.meshctl import Serving
from tests.support.programs import ROOT

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""
RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - timeout: 3s
    route: [{destination: {host: reviews, subset: v1}}]
"""
BROKEN = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - timout: 3s
    route:
    - destination: {hots: reviews}
"""
DENY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "service.yaml").write_text(SERVICE)
    (folder / "rule.yaml").write_text(RULE)
    return folder


# --- files only ------------------------------------------------------------------------------


def test_a_valid_file_is_said_to_be_valid(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "-f", str(config)]) == 0
    assert "VirtualService default/reviews is valid" in capsys.readouterr().out


def test_validation_as_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(BROKEN)
    assert run(["validate", "-f", str(file), "-o", "json"]) == 65
    (entry,) = json.loads(capsys.readouterr().out)
    assert set(entry) == {"resource", "file", "line", "valid", "errors", "warnings"}
    assert (entry["valid"], entry["file"]) == (False, str(file))
    assert entry["resource"] == "VirtualService default/reviews"
    messages = {error["path"]: error["message"] for error in entry["errors"]}
    assert 'did you mean "timeout"' in messages["spec.http[0].timout"]
    assert 'did you mean "host"' in messages["spec.http[0].route[0].destination.hots"]


def test_a_directory_means_what_it_means_to_serve(config: Path) -> None:
    (config / ".state").mkdir()
    (config / ".state" / "registrations.json").write_text("[]")
    (config / "editor.yaml~").write_text("not: configuration")
    assert run(["validate", "-f", str(config)]) == 0


def test_errors_are_lines_with_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(BROKEN)
    assert run(["route", "-f", str(file), "http://reviews:9080/"]) == 65
    lines = capsys.readouterr().err.splitlines()
    assert any(re.match(rf"{re.escape(str(file))}:7: .*timout", line) for line in lines)


def test_each_mistake_is_said_at_its_own_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(BROKEN)
    assert run(["validate", "-f", str(file)]) == 65
    lines = capsys.readouterr().err.splitlines()
    assert any(re.match(rf"{re.escape(str(file))}:7: .*timout", line) for line in lines)
    assert any(re.match(rf"{re.escape(str(file))}:9: .*hots", line) for line in lines)


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_everything_can_be_shown_as_data(
    config: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["translate", "-f", str(config), "-o", form]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    (route,) = shown["routes"]
    predicate = route["virtualHosts"][0]["routes"][0]["route"]["retryPolicy"]["retryHostPredicate"]
    assert "previous_hosts" in predicate[0]["typedConfig"]["@type"]


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["validate"],
        ["route", "-f", "x.yaml"],
        ["serve"],
        ["serve", "--config", "/does/not/exist"],
        ["delete"],
        ["validate", "-f", "x.yaml", "-o", "xml"],
    ],
)
def test_wrong_usage_is_64(argv: list[str]) -> None:
    assert run(argv) == 64


@pytest.mark.parametrize("url", ["ftp://reviews/", "http://", "http://reviews:99999/"])
def test_a_wrong_url_says_what_a_right_one_looks_like(
    config: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["route", "-f", str(config), url]) == 64
    assert url in capsys.readouterr().err


def test_a_missing_file_is_bad_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "-f", "/does/not/exist.yaml"]) == 65
    assert "/does/not/exist.yaml: No such file" in capsys.readouterr().err


def test_where_a_request_goes_and_why(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["route", "-f", str(config), "http://reviews:9080/x", "-o", "json"]
    assert run(argv) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["listener"] == "reviews.default.svc.cluster.local:9080"
    assert answer["cluster"] == "outbound|9080|v1|reviews.default.svc.cluster.local"
    assert (answer["action"], answer["timeout"]) == ("route", 3.0)
    assert any("header end-user is absent" in line for line in answer["why"])
    assert run([*argv, "-H", "end-user:jason"]) == 0
    assert "|v2|" in json.loads(capsys.readouterr().out)["cluster"]


def test_rules_for_others_mirrors_and_hashes_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = """
apiVersion: v1
kind: Service
metadata: {name: store}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: store}
spec:
  hosts: [store]
  http:
  - match: [{sourceLabels: {app: x}}]
    route: [{destination: {host: store}}]
  - route: [{destination: {host: store}}]
    mirror: {host: store}
    mirrorPercentage: {value: 10}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: store}
spec:
  host: store
  trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: u, ttl: 5s}}}}
"""
    (tmp_path / "rules.yaml").write_text(rules)
    argv = ["route", "-f", str(tmp_path), "http://store/", "-o", "json"]
    assert run(argv) == 0
    answer = json.loads(capsys.readouterr().out)
    lacking = "VirtualService default/store http[0].match[0]: no, the caller lacks the labels app=x"
    assert answer["why"][0] == lacking
    cluster = "outbound|80||store.default.svc.cluster.local"
    assert answer["mirror"] == [{"cluster": cluster, "percentage": 10.0}]
    assert answer["hash"] == ["cookie u, made for 5 s where absent"]
    assert run([*argv, "--metadata", '{"LABELS": {"app": "x"}}']) == 0
    answer = json.loads(capsys.readouterr().out)
    assert lacking not in answer["why"]
    assert answer["mirror"] is None


def test_what_is_not_done_is_said_with_the_route(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["route", "-f", str(config), "http://reviews:9080/x"]
    assert run(argv) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("retries: ")]
    assert line.endswith(" (not done by the SDK yet: a request is sent once)")
    service = config / "service.yaml"
    tls = "  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n  subsets:"
    service.write_text(service.read_text().replace("  subsets:", tls))
    assert run([*argv, "-o", "json"]) == 0
    said = capsys.readouterr()
    assert "a request is sent once" not in said.out
    answer = json.loads(said.out)
    assert (
        f"cluster {answer['cluster']}: tls mode ISTIO_MUTUAL is not applied yet:"
        " calls go out in PLAIN TEXT"
    ) in answer["why"]
    assert "Error [MSH0104] DestinationRule default/reviews" in said.err


def test_a_cluster_that_the_sdk_refuses_is_a_reason(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = config / "service.yaml"
    tls = "  trafficPolicy: {tls: {mode: SIMPLE, credentialName: no-such-thing-here}}\n  subsets:"
    service.write_text(service.read_text().replace("  subsets:", tls))
    assert run(["route", "-f", str(config), "http://reviews:9080/x", "-o", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (why,) = [line for line in answer["why"] if "refuses" in line]
    assert f"cluster {answer['cluster']}: the SDK refuses it: transport_socket" in why


def test_an_unknown_host_goes_out_unchanged(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["route", "-f", str(config), "http://example.com/", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["cluster"] == "PassthroughCluster"


def test_the_xds_of_a_node(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["translate", "-f", str(config)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"listeners", "routes", "clusters", "endpoints", "secrets"}
    names = {cluster["name"] for cluster in found["clusters"]}
    assert "outbound|9080|v2|reviews.default.svc.cluster.local" in names
    assert run(["translate", "-f", str(config), "--type", "routes"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["routes"]


# --- a running control plane -----------------------------------------------------------------


@pytest.fixture
def serving(config: Path) -> Iterator[Serving]:
    process = Serving("--config", str(config))
    try:
        yield process.ready()
    finally:
        process.stop()


def test_apply_get_and_delete_change_files(
    serving: Serving, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(RULE.replace("name: reviews}", "name: ratings}").replace("reviews", "ratings"))
    at = ["--server", serving.server]
    assert run(["apply", "-f", str(new), *at]) == 0
    said = capsys.readouterr()
    assert "VirtualService default/ratings" in said.out
    written = [f for f in config.rglob("*.yaml") if "ratings" in f.read_text()]
    assert re.search(
        rf"(?m)^{re.escape(str(written[0]))}:\d+: Error \[IST0101\] VirtualService default/ratings"
        r": spec\.http\[0\]\.route\[0\]\.destination\.host: ",
        said.err,
    ), "the host of the rule is not in the registry: said at once, with its place"
    assert len(written) == 1

    assert run(["get", "vs", "ratings", "-o", "json", *at]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert item["spec"]["hosts"] == ["ratings"]

    assert run(["delete", "-f", str(new), *at]) == 0
    assert not written[0].exists()
    capsys.readouterr()
    assert run(["get", "vs", "ratings", *at]) == 1
    for absent in ("gateway", "sidecars", "pods", "configmap", "all"):
        assert run(["get", absent, *at]) == 0
    assert run(["get", "virtualservise", *at]) == 64
    assert 'did you mean "VirtualService"' in capsys.readouterr().err


def test_bad_data_is_refused_and_nothing_is_written(
    serving: Serving, config: Path, tmp_path: Path
) -> None:
    before = sorted(config.rglob("*"))
    file = tmp_path / "broken.yaml"
    file.write_text(BROKEN)
    assert run(["apply", "-f", str(file), "--server", serving.server]) == 65
    assert sorted(config.rglob("*")) == before


def test_a_file_that_breaks_keeps_its_last_good_version(
    serving: Serving, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = config / "rule.yaml"
    rule.write_text(BROKEN)
    assert f"{rule}:7" in serving.until(r"timout")
    assert run(["get", "vs", "reviews", "-o", "json", "--server", serving.server]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert item["spec"]["http"][1]["timeout"] == "3s"
    rule.write_text(RULE.replace("3s", "4s"))
    serving.until(r"rule\.yaml")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        run(["get", "vs", "reviews", "-o", "json", "--server", serving.server])
        (item,) = json.loads(capsys.readouterr().out)
        if item["spec"]["http"][1]["timeout"] == "4s":
            return
    raise AssertionError("the mended file is not used")


def test_a_directory_that_goes_and_comes_back_is_said(serving: Serving, config: Path) -> None:
    away = config.with_name("away")
    config.rename(away)
    serving.until(re.escape(f"{config}: Error config: does not exist; what it held stays in force"))
    away.rename(config)
    serving.until(re.escape(f"{config}: can be read again"))


def test_no_process_is_connected_at_first(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["proxy-status", "--server", serving.server]) == 0
    assert "No process is connected" in capsys.readouterr().out
    assert run(["ps", "-o", "json", "--server", serving.server]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["route", "-f", "a.yaml", "http://[::1"], 64, "http://[::1: Invalid IPv6 URL"),
        (["get", "vs", "--server", "file:///etc/hosts"], 64, "must be an address such as http://"),
        (["get", "vs", "--server", "no host"], 1, "no control plane answers at http://no host"),
        (["apply", "-f", "empty.yaml"], 65, "empty.yaml: holds no resource"),
        (["validate", "-f", "latin.yaml"], 65, "latin.yaml: file: cannot be read: not UTF-8 text"),
    ],
)
def test_what_cannot_be_is_one_line(
    argv: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("")
    (tmp_path / "empty.yaml").write_text("# nothing\n---\n")
    (tmp_path / "latin.yaml").write_bytes(b"kind: caf\xe9\n")
    assert run(argv) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_pipe_that_is_named_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`meshctl validate -f <(helm template .)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(RULE,), daemon=True)
    writer.start()
    assert run(["validate", "-f", str(pipe)]) == 0
    writer.join(5)


def test_no_control_plane_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{probe.getsockname()[1]}"
        assert run(["proxy-status", "--server", server]) == 1
    assert "meshctl serve" in capsys.readouterr().err


def _output(*argv: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "controlplane", *argv],
        capture_output=True, text=True, timeout=30, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_taken_port_is_named_with_its_owner_and_the_flag(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = _output("serve", "--config", str(config), "--xds-port", port)
    assert code == 1
    assert f":{port} is taken by process {os.getpid()}" in said
    assert "--xds-port" in said
    assert "Traceback" not in said


def test_security_that_is_not_enforced_is_a_reason_not_to_start(config: Path) -> None:
    (config / "deny.yaml").write_text(DENY)
    code, said = _output("serve", "--config", str(config), "--xds-port", "0", "--http-port", "0")
    assert code == 1
    assert "AuthorizationPolicy default/nobody" in said
    assert "--allow-unenforced" in said


def test_it_starts_when_that_is_allowed(config: Path) -> None:
    (config / "deny.yaml").write_text(DENY)
    process = Serving("--config", str(config), "--allow-unenforced").ready()
    assert any("not enforced" in line for line in process.lines)
    assert process.stop() == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("outboundTrafficPolicy.mode=SOME", "REGISTRY_ONLY"),
        ("nonsense", "field=value"),
        ("accessLogFile=[", "'accessLogFile=\\[': the value is not YAML"),
    ],
)
def test_a_wrong_set_says_what_would_be_right(config: Path, value: str, words: str) -> None:
    code, said = _output("serve", "--config", str(config), "--set", value, "--xds-port", "0")
    assert code != 0
    assert re.search(words, said), said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--xds-port", "{port}", "--http-port", "{port}"], "are both {port}: choose two ports"),
        (
            ["--address", "no.such.host.invalid", "--http-port", "0"],
            "--address no.such.host.invalid: ",
        ),
        (["--domain", "not a domain"], "--domain not a domain: "),
    ],
)
def test_a_flag_that_cannot_be_is_one_line(config: Path, argv: list[str], words: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = [word.replace("{port}", port) for word in argv]
    code, said = _output("serve", "--config", str(config), *given)
    assert code in (1, 64)
    (line,) = said.splitlines()
    assert words.replace("{port}", port) in line


def test_it_listens_on_ipv6_and_says_so(config: Path) -> None:
    process = Serving("--config", str(config), "--address", "::1").ready()
    assert any(re.search(r"xDS on \[::1\]:\d+, HTTP on \[::1\]:\d+", x) for x in process.lines)
    assert process.stop() == 0


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "validate", "translate", "route", "proxy-status", "apply", "get",
                    "delete"):  # fmt: skip
        assert run([command, "--help"]) == 0
        shown: Any = capsys.readouterr().out
        assert "Examples" in shown
        assert f"meshctl {command}" in shown or "meshctl ps" in shown
