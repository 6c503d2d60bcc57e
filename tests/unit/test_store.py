"""The last good configuration on disk."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from meshsdk.xds import store as store_module
from meshsdk.xds.store import Store

LDS = "type.googleapis.com/envoy.config.listener.v3.Listener"
CDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
SDS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def make(directory: Path, workload: str = "web") -> Store:
    return Store(str(directory), "default", workload, "127.0.0.1:15010")


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    make(tmp_path).save({LDS: {"a:80": b"\x00\xff"}, CDS: {"c": b"x"}}, {LDS: "v7"}, {})
    saved = make(tmp_path).load()
    assert saved is not None
    assert saved.resources == {LDS: {"a:80": b"\x00\xff"}, CDS: {"c": b"x"}}
    assert saved.versions == {LDS: "v7"}
    assert saved.confirmed == os.stat(make(tmp_path).path).st_mtime


def test_nothing_saved_is_no_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert make(tmp_path / "none").load() is None
    assert not caplog.records


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    store = make(tmp_path / "new")
    before = os.umask(0)
    try:
        store.save({LDS: {"a:80": b"x"}}, {}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o700
    assert os.listdir(tmp_path / "new") == [os.path.basename(store.path)]


def test_private_keys_are_never_written(tmp_path: Path) -> None:
    store = make(tmp_path)
    key = b"-----BEGIN EC PRIVATE KEY-----\nMHcCAQ=="
    store.save({LDS: {"a:80": b"x"}, CDS: {"inline": key, "c": b"y"}, SDS: {"s": b"z"}}, {}, {})
    saved = store.load()
    assert saved is not None
    assert saved.resources == {LDS: {"a:80": b"x"}, CDS: {"c": b"y"}}


def test_what_another_process_wrote_stays_unless_it_is_ours(tmp_path: Path) -> None:
    mine, other = make(tmp_path), make(tmp_path)
    other.save({LDS: {"theirs:80": b"1", "ours:80": b"2"}}, {}, {})
    mine.save({LDS: {"mine:80": b"3"}}, {}, {LDS: frozenset({"mine:80", "ours:80"})})
    saved = make(tmp_path).load()
    assert saved is not None
    assert saved.resources == {LDS: {"theirs:80": b"1", "mine:80": b"3"}}


def test_what_nobody_uses_any_more_is_dropped_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path).save({LDS: {"old:80": b"1"}}, {}, {})
    monkeypatch.setattr(store_module, "KEEP_SECONDS", -1.0)
    make(tmp_path).save({LDS: {"new:80": b"2"}}, {}, {})
    saved = make(tmp_path).load()
    assert saved is not None
    assert saved.resources == {LDS: {"new:80": b"2"}}


def test_each_workload_has_its_own_file(tmp_path: Path) -> None:
    paths = {
        make(tmp_path, "web").path,
        make(tmp_path, "../../etc/passwd").path,
        Store(str(tmp_path), "other", "web", "127.0.0.1:15010").path,
        Store(str(tmp_path), "default", "web", "127.0.0.1:15011").path,
    }
    assert len(paths) == 4
    assert {os.path.dirname(path) for path in paths} == {str(tmp_path)}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not JSON"),
        (b'{"meshsdk": 1, "resou', "not JSON"),
        (b"\xff\xfe\x00\x01", "not JSON"),
        (b"[]", "format is None"),
        (b'{"apiVersion": "v1"}', "format is None"),
        (b'{"meshsdk": 0}', "format is 0, not 1"),
        (b'{"meshsdk": 1}', "damaged"),
        (b'{"meshsdk": 1, "versions": {}, "resources": {"t": {"n": {"seen": 1}}}}', "damaged"),
        (
            b'{"meshsdk": 1, "versions": {}, "resources": '
            b'{"t": {"n": {"seen": 1, "value": "%%%"}}}}',
            "damaged",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line_and_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, problem: str
) -> None:
    store = make(tmp_path)
    Path(store.path).write_bytes(content)
    with caplog.at_level(logging.WARNING, "meshsdk.store"):
        assert store.load() is None
    (record,) = caplog.records
    assert store.path in record.getMessage()
    assert problem in record.getMessage()
    store.save({LDS: {"a:80": b"x"}}, {}, {})
    assert store.load() is not None


def test_a_directory_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    store = make(blocked)
    for _ in range(3):
        store.save({LDS: {"a:80": b"x"}}, {}, {})
    (record,) = caplog.records
    assert store.path in record.getMessage()
    assert store.load() is None


def _write_often(directory: str, number: int) -> None:
    store = Store(directory, "default", "web", "127.0.0.1:15010")
    for _ in range(30):
        store.save({LDS: {f"host-{number}:80": b"x" * 2000}}, {LDS: str(number)}, {}, durable=False)


def test_processes_that_share_a_file_never_damage_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(str(tmp_path), n)) for n in range(4)]
    for writer in writers:
        writer.start()
    store = make(tmp_path)
    while any(writer.is_alive() for writer in writers):
        saved = store.load()
        if saved is not None:
            assert set(saved.resources[LDS]) <= {f"host-{n}:80" for n in range(4)}
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert not caplog.records
    assert json.loads(Path(store.path).read_text())["meshsdk"] == 1
    assert os.listdir(tmp_path) == [os.path.basename(store.path)]
