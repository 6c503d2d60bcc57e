"""Access logs: what of them is decoded, and how lines get to their files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from google.protobuf import json_format

from meshsdk.accesslog import Record, finish
from meshsdk.accesslog.sink import Sink
from meshsdk.call import Request
from meshsdk.errors import InvalidResource
from meshsdk.formats import Format
from meshsdk.model import AccessLog, Listener, ListenerView
from meshsdk.xds.decode import DECODERS
from tests.support.ads import wait_until
from tests.support.envoy import HCM, typed
from tests.support.resources import LDS

LOGGERS = "envoy.extensions.access_loggers"
FILE = f"{LOGGERS}.file.v3.FileAccessLog"


def decoded(*logs: dict[str, Any]) -> tuple[Listener, list[str]]:
    manager = typed(HCM, route_config={"name": "rc"}, access_log=list(logs))
    listener = {"name": "l", "api_listener": {"api_listener": manager}}
    notes: list[str] = []
    message = json_format.ParseDict(listener, listener_pb2.Listener())
    return DECODERS[LDS].decode(message, notes), notes


def log(kind: str = FILE, only: Any = None, **fields: Any) -> dict[str, Any]:
    if kind == FILE:
        fields.setdefault("path", "/x")
    made: dict[str, Any] = {"name": kind, "typed_config": typed(kind, **fields)}
    return made if only is None else {**made, "filter": only}


def test_standard_streams_and_files() -> None:
    found, notes = decoded(
        log(),
        log(f"{LOGGERS}.stream.v3.StdoutAccessLog"),
        log(f"{LOGGERS}.stream.v3.StderrAccessLog", log_format={"text_format": "%PROTOCOL%"}),
        log(format="%RESPONSE_CODE%"),
    )
    assert [each.path for each in found.access_logs] == ["/x", "/dev/stdout", "/dev/stderr", "/x"]
    assert found.access_logs[2].form == Format("%PROTOCOL%", "-")
    assert found.access_logs[3].form == Format("%RESPONSE_CODE%", "-")
    assert notes == []


LOG_SERVICE = als_pb2.HttpGrpcAccessLogConfig.DESCRIPTOR.full_name


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        (log(LOG_SERVICE), f"access_log[0].typed_config: {LOG_SERVICE} is not written"),
        (
            log(only={"metadata_filter": {}}),
            "access_log[0].the filter metadata_filter: the log is not written",
        ),
        (
            log(only={"extension_filter": {"name": "cel"}}),
            "access_log[0].the filter extension_filter: the log is not written",
        ),
        (
            log(log_format={"text_format_source": {"filename": "/etc/format"}}),
            "access_log[0].text_format_source.inline_string alone is read: the log is not written",
        ),
    ],
)
def test_what_is_not_known_is_left_out_and_said(unknown: dict[str, Any], said: str) -> None:
    found, notes = decoded(unknown, log(path="/y"))
    assert [each.path for each in found.access_logs] == ["/y"]
    assert len(notes) == 1
    assert notes[0].endswith(said)


def test_operators_without_value_and_traces_are_said() -> None:
    found, notes = decoded(
        log(log_format={"text_format": "%UPSTREAM_LOCAL_ADDRESS% %REQUESTED_SERVER_NAME%"}),
        log(only={"traceable_filter": {}}),
    )
    assert len(found.access_logs) == 2
    assert len(notes) == 2
    assert "%UPSTREAM_LOCAL_ADDRESS% is not known here" in notes[0]
    assert "traceable_filter" in notes[1]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (log(path=""), "access_log[0].typed_config.path"),
        (log(log_format={"text_format": "%NONSENSE%"}), "log_format.text_format"),
        (log(log_format={"json_format": {"a": ["%REQ%"]}}), "log_format.json_format"),
        (log(only={"response_flag_filter": {"flags": ["XX"]}}), "response_flag_filter.flags"),
        (log(only={"and_filter": {}}), "filter.and_filter.filters"),
        (log(only={}), "access_log[0].filter"),
        (log(only={"status_code_filter": {}}), "status_code_filter.comparison"),
    ],
)
def test_what_envoy_refuses_is_refused(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidResource, match="Listener l") as caught:
        decoded(wrong)
    assert field in str(caught.value)


# --- the sink ----------------------------------------------------------------------------------


def record(path: Path, text: str) -> Record:
    view = ListenerView("l", access_logs=(AccessLog(str(path), Format(text, "-")),))
    return Record(view, Request("GET", "/x", authority="a", start=0.0), 1.0, lambda: 0.5)


def test_a_call_is_logged_once(tmp_path: Path) -> None:
    one = record(tmp_path / "log", "%REQ(:PATH)% %DURATION%\n")
    for _ in range(2):
        finish(one, 1.25)
    finish(record(tmp_path / "log", "last\n"), 2.0)
    written = tmp_path / "log"
    wait_until(lambda: written.exists() and "last" in written.read_text(), what="the last line")
    assert (tmp_path / "log").read_text() == "/x 250\nlast\n"


def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink(str(tmp_path / "none" / "log"))
    with caplog.at_level(logging.WARNING, "meshsdk.accesslog"):
        for _ in range(3):
            sink.put("line\n")
        sink.at_exit()
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.messages[0]
    (tmp_path / "none").mkdir()
    sink.put("later\n")  # it is tried again with each line
    sink.at_exit()
    assert (tmp_path / "none" / "log").read_text() == "later\n"


def test_lines_of_a_forked_child_come_once_each(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "log"))
    sink.put("parent\n")
    child = os.fork()
    if child == 0:
        try:
            sink.put("child\n")
            sink.at_exit()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    sink.at_exit()
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["child", "parent"]


def test_a_full_pipe_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    sink = Sink("/dev/stdout")
    sink._file = writer
    line = "x" * 1000 + "\n"
    with caplog.at_level(logging.WARNING, "meshsdk.accesslog"):
        for _ in range(20_000):
            sink.put(line)
    assert [text for text in caplog.messages if "slower than the calls" in text]
    os.close(reader)
    sink.at_exit()
    os.close(writer)
