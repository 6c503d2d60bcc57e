"""`meshctl serve` as an operator meets it: wrong flags, signals, a second one beside it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from controlplane.cli import run
from controlplane.translate.resources import LDS
from tests.support.ads import wait_until
from tests.support.adsclient import AdsClient
from tests.support.controlplane import SDK_NODE, service
from tests.support.meshctl import Serving
from tests.support.programs import ROOT

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
NAME = "reviews.default.svc.cluster.local:9080"
GROUP = """\
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: reviews}
spec:
  metadata: {labels: {app: reviews}}
  template: {}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "service.yaml").write_text(service("reviews", "http:9080") + GROUP)
    return folder


# --- flags -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--xds-port", "abc"], "'--xds-port': Input should be a valid integer"),
        (["--http-port", "65536"], "'--http-port': Input should be less than or equal to 65535"),
        (["--grace", "-1"], "'--grace': Input should be greater than or equal to 0"),
        (["--grace", "inf"], "--grace inf: must be a number of seconds"),
        (["--log-format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["--log-level", "loud"], "--log-level loud: must be debug, info, warning or error"),
        (["--confg", "x"], "No such option: --confg (Possible options: --config)"),
        (["--config"], "Option '--config' requires an argument"),
        (["more"], "unexpected extra argument"),
        (["--config", ""], "--config: is empty"),
        (["--config", "/dev/null"], "--config /dev/null: is neither a directory nor a file"),
        (["--address", ""], "--address: is empty"),
        (["--address", "127.0.0.1:15010"], "--address 127.0.0.1:15010: takes no port"),
        (["--address", "[::1]:15010"], "--address [::1]:15010: takes no port"),
        (["--set", "a"], "--set 'a': write it as field=value"),
        (["--set", "=1"], "--set '=1': write it as field=value"),
        (["--set", "accessLogFile=["], "--set 'accessLogFile=[': the value is not YAML"),
        (["--state-dir", "/dev/null/x"], "--state-dir /dev/null/x: cannot be used: "),
    ],
)
def test_a_wrong_flag_is_one_line_and_64(
    argv: list[str], words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--config", str(config), *argv]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_wrong_words_for_any_command_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate"]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "meshctl validate: Missing option '-f' / '--filename'; see: meshctl validate --help"
    )
    assert run(["valdate"]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert "No such command 'valdate'" in line


def _output(*argv: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "controlplane", "serve", "--xds-port", "0", "--http-port", "0",
         *argv],
        capture_output=True, text=True, timeout=30, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--address", "no.such.host.invalid"], "--address no.such.host.invalid: "),
        (["--address", "192.0.2.1"], "--address 192.0.2.1: Cannot assign requested address: "),
        (["--set", "acessLogFile=x"], '--set acessLogFile: unknown field, did you mean "access'),
        (["--set", "outboundTrafficPolicy=ALLOW_ANY"], "--set outboundTrafficPolicy"),
    ],
)
def test_what_only_a_start_shows_is_one_line_and_64(
    argv: Sequence[str], words: str, config: Path
) -> None:
    code, lines = _output("--config", str(config), *argv)
    assert (code, len(lines)) == (64, 1), lines
    assert lines[0].startswith(words)


def test_an_address_may_stand_in_brackets(config: Path) -> None:
    process = Serving("--config", str(config), "--address", "[::1]").ready()
    assert process.xds.startswith("[::1]:")
    assert process.stop() == 0
    assert any("serving 1 service:" in line for line in process.lines)


# --- the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_its_streams(config: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)  # tests may run under nohup, too
    try:
        process = Serving("--config", str(config)).ready()
    finally:
        signal.signal(number, before)
    with AdsClient(process.xds) as client:
        client.subscribe(LDS, NAME)
        client.wait(lambda: client.responses)
        process.process.send_signal(number)
        assert process.process.wait(10) == 0
        client.wait(lambda: client.status)
        assert client.status is grpc.StatusCode.UNAVAILABLE
    rest = process.rest()
    assert "stopping" in rest
    assert "Traceback" not in rest


def test_it_ends_in_the_middle_of_pushes_to_clients_that_do_not_read(config: Path) -> None:
    process = Serving("--config", str(config)).ready()
    channel = grpc.insecure_channel(process.xds, options=[("grpc.http2.lookahead_bytes", 1024)])
    over = threading.Event()
    names = [f"s{number}.default.svc.cluster.local:9080" for number in range(2000)]

    def requests() -> Any:
        request = discovery_pb2.DiscoveryRequest(type_url=LDS, resource_names=names)
        request.node.id, request.node.user_agent_name = SDK_NODE, "meshsdk"
        yield request.SerializeToString()
        over.wait(30)

    calls: list[Any] = [channel.stream_stream(METHOD)(requests()) for _ in range(20)]
    (config / "many.yaml").write_text(
        "".join(service(f"s{number}", "http:9080") for number in range(2000))
    )
    process.until("pushed a change|serving")
    assert process.stop() == 0
    over.set()
    for call in calls:
        call.cancel()
    channel.close()
    assert "Traceback" not in process.rest()


def test_a_hangup_is_nothing_under_nohup(config: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = Serving("--config", str(config)).ready()
    finally:
        signal.signal(signal.SIGHUP, before)
    process.process.send_signal(signal.SIGHUP)
    (config / "more.yaml").write_text(service("ratings", "http:9080"))
    process.until("pushed a change")
    assert process.stop() == 0


# --- two of them -----------------------------------------------------------------------------


def test_two_control_planes_do_not_share_a_memory(config: Path) -> None:
    """Each would take the other's workloads for its own that have gone away."""
    first = Serving("--config", str(config)).ready()
    kept = config / ".state" / "registrations.json"
    with AdsClient(first.xds, AUTO_REGISTER_GROUP="reviews", MESHSDK_PORTS={"http": 9}) as client:
        client.subscribe(LDS, NAME)
        wait_until(lambda: kept.exists() and json.loads(kept.read_text()))
        second = Serving("--config", str(config)).ready()
        assert any("another control plane" in line and "--state-dir" in line
                   for line in second.lines), second.lines  # fmt: skip
        assert not any("taken over" in line for line in second.lines)
        assert second.stop() == 0
        assert json.loads(kept.read_text())
    assert first.stop() == 0
    third = Serving("--config", str(config)).ready()
    assert not any("another control plane" in line for line in third.lines)
    assert third.stop() == 0


def test_a_taken_port_on_ipv6_is_named_with_its_owner(config: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = str(taken.getsockname()[1])
        code, lines = _output("--config", str(config), "--address", "::1", "--http-port", port)
    assert code == 1
    (line,) = lines
    assert line.startswith(f"[::1]:{port} is taken by process ")
    assert line.endswith("--http-port")
