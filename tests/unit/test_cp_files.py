"""The directory source: changes arrive, broken files keep their last good version."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from controlplane.model.parse import load_text
from controlplane.model.resource import ConfigError, ResourceRef
from controlplane.sources.base import Snapshot, Sources, merge
from controlplane.sources.files import FileSource, is_config_file
from controlplane.sources.writing import dump

DEADLINE = 10.0


def rule(name: str, host: str = "reviews", **extra: str) -> str:
    lines = "".join(f"  {key}: {value}\n" for key, value in extra.items())
    return (
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
        f"metadata:\n  name: {name}\nspec:\n  host: {host}\n{lines}"
    )


def hosts(snapshot: Snapshot) -> dict[str, str]:
    return {res.name: res.spec["host"] for res in snapshot.resources}


class Follower:
    """Collects the snapshots of a source and waits for the one that is wanted."""

    def __init__(self, changes: AsyncIterator[Snapshot]) -> None:
        self.changes = changes
        self.latest = Snapshot()

    async def until(self, wanted: Callable[[Snapshot], bool]) -> Snapshot:
        async def look() -> Snapshot:
            if wanted(self.latest):
                return self.latest
            async for snapshot in self.changes:
                self.latest = snapshot
                if wanted(snapshot):
                    return snapshot
            raise AssertionError("the source ended")

        return await asyncio.wait_for(look(), DEADLINE)


@asynccontextmanager
async def following(source: FileSource | Sources) -> AsyncIterator[Follower]:
    async with aclosing(source.changes()) as changes:
        yield Follower(changes)


def test_reads_all_files_below_and_ignores_the_rest(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.yml").write_text(rule("a"))
    (tmp_path / "b.json").write_text(
        '{"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",'
        ' "metadata": {"name": "b"}, "spec": {"host": "ratings"}}'
    )
    for name in ("notes.txt", ".hidden.yaml", "x.yaml~", ".x.yaml.swp", "#x.yaml#", "x.yaml.tmp"):
        (tmp_path / name).write_text("{not: [yaml")
    snapshot = FileSource([tmp_path]).load()
    assert hosts(snapshot) == {"a": "reviews", "b": "ratings"}
    assert snapshot.findings == ()


@pytest.mark.parametrize("name", ["4913", "x.yaml~", ".a.yaml", "#a.yaml#", "a.yaml.bak", "a.txt"])
def test_editors_files_are_not_configuration(name: str) -> None:
    assert not is_config_file(name)


def test_missing_directory_is_said(tmp_path: Path) -> None:
    snapshot = FileSource([tmp_path / "nowhere"]).load()
    assert [finding.message for finding in snapshot.errors] == ["does not exist"]
    assert "nowhere" in snapshot.errors[0].origin.file


def test_unreadable_text_is_an_error_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (error,) = FileSource([tmp_path]).load().errors
    assert "cannot be read" in error.message
    assert error.origin.file.endswith("a.yaml")


async def test_change_arrives_within_a_second(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(rule("a"))
    source = FileSource([tmp_path])
    assert hosts(source.load()) == {"a": "reviews"}
    async with following(source) as follower:
        waiting = asyncio.create_task(follower.until(lambda s: hosts(s) == {"a": "ratings"}))
        await asyncio.sleep(0.3)  # lets the watch begin, so that the time is that of an event
        started = time.monotonic()
        file.write_text(rule("a", "ratings"))
        await waiting
        took = [time.monotonic() - started]
        for to in ("details", "reviews"):
            started = time.monotonic()
            file.write_text(rule("a", to))
            await follower.until(lambda s, to=to: hosts(s) == {"a": to})
            took.append(time.monotonic() - started)
        assert min(took) < 1.0  # a busy machine may hold one up


async def test_create_rename_delete_and_atomic_replace(tmp_path: Path) -> None:
    source = FileSource([tmp_path])
    source.load()
    async with following(source) as follower:
        (tmp_path / "a.yaml").write_text(rule("a"))
        await follower.until(lambda s: hosts(s) == {"a": "reviews"})
        (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
        moved = await follower.until(
            lambda s: bool(s.resources) and s.resources[0].origin.file.endswith("b.yaml")
        )
        assert hosts(moved) == {"a": "reviews"}
        (tmp_path / ".new").write_text(rule("a", "details"))
        os.replace(tmp_path / ".new", tmp_path / "b.yaml")
        await follower.until(lambda s: hosts(s) == {"a": "details"})
        (tmp_path / "b.yaml").unlink()
        await follower.until(lambda s: s.resources == ())


async def test_broken_file_keeps_its_last_good_version_until_it_is_fixed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(rule("a"))
    (tmp_path / "other.yaml").write_text(rule("other"))
    source = FileSource([tmp_path])
    source.load()
    caplog.set_level(logging.INFO, "controlplane.sources.files")
    async with following(source) as follower:
        file.write_text(rule("a", trafficPolice="{}"))
        broken = await follower.until(lambda s: bool(s.errors))
        assert hosts(broken) == {"a": "reviews", "other": "reviews"}
        (error,) = broken.errors
        assert error.path == "spec.trafficPolice"
        assert error.message == 'unknown field, did you mean "trafficPolicy"?'
        assert str(error.origin) == f"{file}:7"
        assert "its last good version stays in force" in caplog.text
        file.write_text("a: [1, 2\n")
        broken = await follower.until(lambda s: any("not YAML" in e.message for e in s.errors))
        assert hosts(broken)["a"] == "reviews"
        file.write_text(rule("a", "fine"))
        fixed = await follower.until(lambda s: not s.errors)
        assert hosts(fixed)["a"] == "fine"
        assert f"{file}: fixed" in caplog.text


async def test_file_that_is_empty_for_a_moment_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(rule("a"))
    source = FileSource([tmp_path])
    source.load()
    seen: list[Snapshot] = []
    async with aclosing(source.changes()) as changes:

        async def follow() -> None:
            async for snapshot in changes:
                seen.append(snapshot)
                if hosts(snapshot) == {"a": "ratings"}:
                    return

        task = asyncio.create_task(follow())
        await asyncio.sleep(0.3)
        file.write_text("")  # as an editor that writes in place does
        await asyncio.sleep(0.1)
        file.write_text(rule("a", "ratings"))
        await asyncio.wait_for(task, DEADLINE)
    assert all(snapshot.resources for snapshot in seen)


async def test_links_are_followed_as_in_a_mounted_config_map(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    for version, host in (("..1", "reviews"), ("..2", "ratings")):
        (mounted / version).mkdir(parents=True)
        (mounted / version / "a.yaml").write_text(rule("a", host))
    (mounted / "..data").symlink_to("..1")
    (mounted / "a.yaml").symlink_to("..data/a.yaml")
    source = FileSource([mounted])
    assert hosts(source.load()) == {"a": "reviews"}
    async with following(source) as follower:
        (mounted / "..tmp").symlink_to("..2")
        os.replace(mounted / "..tmp", mounted / "..data")
        await follower.until(lambda s: hosts(s) == {"a": "ratings"})


async def test_link_to_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    outside = tmp_path / "outside.yaml"
    outside.write_text(rule("a"))
    (tmp_path / "config" / "a.yaml").symlink_to(outside)
    source = FileSource([tmp_path / "config"])
    source.load()
    async with following(source) as follower:
        outside.write_text(rule("a", "ratings"))
        await follower.until(lambda s: hosts(s) == {"a": "ratings"})


async def test_directory_may_come_back(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "a.yaml").write_text(rule("a"))
    source = FileSource([config])
    source.load()
    async with following(source) as follower:
        config.rename(tmp_path / "elsewhere")
        gone = await follower.until(lambda s: bool(s.errors))
        assert gone.errors[0].message == "does not exist; what it held stays in force"
        assert hosts(gone) == {"a": "reviews"}
        config.mkdir()
        (config / "a.yaml").write_text(rule("a", "ratings"))
        await follower.until(lambda s: hosts(s) == {"a": "ratings"} and not s.errors)
        (config / "a.yaml").unlink()
        await follower.until(lambda s: s.resources == ())


def test_a_directory_that_cannot_be_listed_keeps_what_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "team"
    below.mkdir()
    (below / "a.yaml").write_text(rule("a"))
    (tmp_path / "b.yaml").write_text(rule("b"))
    source = FileSource([tmp_path])
    source.load()
    scandir = os.scandir

    def refused(path: str) -> object:
        if path == str(below):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    (tmp_path / "b.yaml").unlink()
    snapshot = source.load()
    assert hosts(snapshot) == {"a": "reviews"}
    assert str(snapshot.errors[0]) == f"{below}: Error config: cannot be listed: Permission denied"
    monkeypatch.undo()
    assert source.load().errors == ()


async def test_a_link_to_nowhere_is_said_and_the_rest_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "a.yaml").write_text(rule("a"))
    (config / "link.yaml").symlink_to(tmp_path / "outside" / "b.yaml")
    source = FileSource([config])
    (error,) = source.load().errors
    assert error.message.endswith(f"it links to {tmp_path}/outside/b.yaml, which does not exist")
    async with following(source) as follower:
        (config / "a.yaml").write_text(rule("a", "ratings"))
        await follower.until(lambda s: hosts(s) == {"a": "ratings"})
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "b.yaml").write_text(rule("b"))
        await follower.until(lambda s: hosts(s) == {"a": "ratings", "b": "reviews"})
        (tmp_path / "outside" / "b.yaml").unlink()
        lost = await follower.until(lambda s: bool(s.errors))
        assert hosts(lost)["b"] == "reviews", "the last good version stays in force"
        (config / "link.yaml").unlink()
        await follower.until(lambda s: hosts(s) == {"a": "ratings"} and not s.errors)
    assert "cannot watch" not in caplog.text


def test_files_that_may_not_be_looked_at_keep_their_last_good_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that may be listed and not entered (mode r--)."""
    file = tmp_path / "a.yaml"
    file.write_text(rule("a"))
    source = FileSource([tmp_path])
    source.load()

    def refused(path: str, **_: object) -> object:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as closed:
        for name in ("stat", "lstat"):
            whole = getattr(os, name)
            closed.setattr(
                os,
                name,
                lambda path, whole=whole, **k: (
                    refused(path) if str(path) == str(file) else whole(path, **k)
                ),
            )
        snapshot = source.load()
    assert hosts(snapshot) == {"a": "reviews"}
    assert snapshot.errors[0].message == "cannot be read: Permission denied"
    assert source.load().errors == ()


async def test_a_directory_that_is_filled_anew_is_not_empty_in_between(tmp_path: Path) -> None:
    """`rm -r config; cp -r new config`, as deployments do."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "a.yaml").write_text(rule("a"))
    source = FileSource([config])
    source.load()
    seen: list[Snapshot] = []
    async with following(source) as follower:

        def wanted(snapshot: Snapshot) -> bool:
            seen.append(snapshot)
            return hosts(snapshot) == {"a": "ratings"}

        waiting = asyncio.create_task(follower.until(wanted))
        await asyncio.sleep(0.3)  # lets the watch begin
        (config / "a.yaml").unlink()
        await asyncio.sleep(0.1)  # longer than a directory must be quiet
        (config / "a.yaml").write_text(rule("a", "ratings"))
        await waiting
    assert all(snapshot.resources for snapshot in seen if snapshot is not seen[0])


async def test_a_directory_behind_a_link_may_be_exchanged(tmp_path: Path) -> None:
    """As git-sync does."""
    for revision, host in (("r1", "reviews"), ("r2", "ratings")):
        (tmp_path / revision).mkdir()
        (tmp_path / revision / "a.yaml").write_text(rule("a", host))
    link = tmp_path / "current"
    link.symlink_to("r1")
    source = FileSource([link])
    source.load()
    async with following(source) as follower:
        (tmp_path / "next").symlink_to("r2")
        os.replace(tmp_path / "next", link)
        await follower.until(lambda s: hosts(s) == {"a": "ratings"})
        (tmp_path / "r2" / "a.yaml").write_text(rule("a", "details"))
        await follower.until(lambda s: hosts(s) == {"a": "details"})
        assert source._targets() == {str(tmp_path / "r2")}


def test_what_is_gone_is_said_in_few_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(50):
        (tmp_path / f"a{number:02}.yaml").write_text(rule(f"a{number}"))
    source = FileSource([tmp_path])
    source.load()
    caplog.set_level(logging.INFO, "controlplane.sources.files")
    (tmp_path / "a00.yaml").write_text("")
    for number in range(1, 50):
        (tmp_path / f"a{number:02}.yaml").unlink()
    source.load()
    removed, emptied = (record.getMessage() for record in caplog.records)
    assert removed.startswith(f"{tmp_path}/a01.yaml, ")
    assert removed.endswith("a05.yaml and 44 more: removed")
    assert emptied.endswith("a00.yaml: holds no resource any more; removed: "
                            "DestinationRule default/a0")  # fmt: skip


async def test_a_directory_that_stays_away_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.sources.files.RETRY", 0.01)
    config = tmp_path / "config"
    config.mkdir()
    (config / "a.yaml").write_text(rule("a"))
    source = FileSource([config])
    source.load()
    async with following(source) as follower:
        config.rename(tmp_path / "elsewhere")
        await follower.until(lambda s: bool(s.errors))
        waiting = asyncio.create_task(follower.until(lambda s: not s.errors))
        await asyncio.sleep(0.3)
        (tmp_path / "elsewhere").rename(config)
        await waiting
    assert caplog.text.count("no such directory") <= 1


def test_duplicates_name_both_files(tmp_path: Path) -> None:
    for name, host in (("a.yaml", "reviews"), ("b.yaml", "ratings")):
        (tmp_path / name).write_text(rule("same", host))
    merged = merge([FileSource([tmp_path]).load()])
    assert hosts(merged) == {"same": "reviews"}
    (error,) = merged.errors
    assert f"{tmp_path}/a.yaml:1" in error.message
    assert error.origin.file == f"{tmp_path}/b.yaml"


async def test_sources_are_merged(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "a.yaml").write_text(rule("a"))
    sources = Sources([FileSource([tmp_path / "one"]), FileSource([tmp_path / "two"])])
    assert hosts(sources.load()) == {"a": "reviews"}
    async with following(sources) as follower:
        (tmp_path / "two" / "b.yaml").write_text(rule("b"))
        await follower.until(lambda s: hosts(s) == {"a": "reviews", "b": "reviews"})


def document(name: str, host: str) -> dict[str, object]:
    (resource,) = load_text(rule(name, host))
    return dict(resource.document)


def test_write_creates_replaces_and_deletes(tmp_path: Path) -> None:
    source = FileSource([tmp_path])
    path = source.write(document("a", "reviews"))
    assert Path(path) == tmp_path / "destinationrule-default-a.yaml"
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert hosts(source.load()) == {"a": "reviews"}
    assert source.write(document("a", "ratings")) == path
    assert hosts(source.load()) == {"a": "ratings"}
    ref = ResourceRef("DestinationRule", "networking.istio.io", "default", "a")
    assert source.delete(ref) == path
    assert not list(tmp_path.iterdir())
    assert source.delete(ref) is None


def test_write_replaces_one_document_among_several(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(
        f"# the rules of the shop\n{rule('a')}---\n# about b\n{rule('b')}---\n{rule('c')}"
    )
    source = FileSource([tmp_path])
    assert source.write(document("b", "ratings")) == str(file)
    assert hosts(source.load()) == {"a": "reviews", "b": "ratings", "c": "reviews"}
    text = file.read_text()
    assert "# the rules of the shop" in text
    assert "# about b" in text
    source.delete(ResourceRef("DestinationRule", "networking.istio.io", "default", "a"))
    assert hosts(source.load()) == {"b": "ratings", "c": "reviews"}
    assert [child.name for child in tmp_path.iterdir()] == ["all.yaml"]


def test_write_refuses_what_is_not_valid(tmp_path: Path) -> None:
    bad = document("a", "reviews")
    bad["spec"] = {"hots": "reviews"}
    with pytest.raises(ConfigError, match='did you mean "host"'):
        FileSource([tmp_path]).write(bad)
    assert not list(tmp_path.iterdir())


def test_dumped_text_reads_back_the_same() -> None:
    words = ["on", "yes", "1e3", "0x1F", "012", "null", "~", "12:30", "2020-01-01", "=", "", "1_0"]
    original = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "words", "annotations": {f"k{i}": w for i, w in enumerate(words)}},
    }
    (resource,) = load_text(dump(original))
    assert list(resource.annotations.values()) == words
