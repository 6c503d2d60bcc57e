"""Configuration that users bring loads unmodified: the seed configuration, Istio's samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.model.parse import Parsed, parse_text
from controlplane.model.resource import Level, Resource, unique
from controlplane.sources.base import Snapshot, merge
from controlplane.sources.files import FileSource
from controlplane.world import World
from tests.support.validation import envoy_accepts, envoy_bootstrap

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SEED = DATA / "seed-config"
SAMPLES = DATA / "istio" / "samples" / "files"
if not DATA.exists():
    pytest.skip(f"no data at {DATA}", allow_module_level=True)


def parsed(path: Path) -> Parsed:
    return parse_text(path.read_text(), path.name)


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.y*ml"))


def listed(topic: str) -> list[Any]:
    """Every entry of a topic."""
    folder = DATA / topic
    cases = json.loads((folder / "cases.json").read_text())
    return [pytest.param(folder / "files" / case["file"], id=case["id"]) for case in cases]


def check_loads(path: Path) -> tuple[Resource, ...]:
    result = parsed(path)
    assert result.errors == ()
    assert result.resources or path.name == "swagger.yaml"
    world = World.build(merge([Snapshot(result.resources)]).resources)
    mistakes = [finding for finding in world.findings if finding.level is Level.ERROR]
    # One file is rarely a whole mesh: only references to what other files hold may be missing.
    # MSH0104 is about TLS that clients cannot do yet.
    assert {finding.code for finding in mistakes} <= {"IST0101", "IST0112", "MSH0104"}
    return result.resources


@pytest.mark.parametrize("path", files(SEED), ids=lambda path: path.name)
def test_seed_file_loads(path: Path) -> None:
    check_loads(path)


@pytest.mark.topic("istio/samples")
@pytest.mark.parametrize("path", listed("istio/samples"))
def test_sample_loads(path: Path) -> None:
    check_loads(path)


@pytest.mark.topic("istio/config-corpus")
@pytest.mark.parametrize("path", listed("istio/config-corpus"))
def test_corpus_is_xds_that_envoy_accepts(path: Path, tmp_path: Path) -> None:
    world = World.build(check_loads(path), analyze=False)
    envoy_accepts(envoy_bootstrap(world, sdk=True), tmp_path)


def test_bookinfo_whole_has_no_mistakes_but_about_gateways() -> None:
    paths = [*files(SAMPLES / "bookinfo" / "platform" / "kube")]
    paths += files(SAMPLES / "bookinfo" / "networking")
    kept, _ = unique(resource for path in paths for resource in parsed(path).resources)
    wrong = [f for f in World.build(kept).findings if f.level is Level.ERROR]
    # The files rule the same hosts by turns, and ask for TLS of the mesh, which is not there yet.
    # cert-manager is installed with the gateway, not by these files.
    others = [str(f) for f in wrong if f.code not in ("IST0109", "MSH0104")]
    assert [line for line in others if "cert-manager-resolver" not in line] == []


def test_seed_as_one_directory() -> None:
    """Several files rule the same host on purpose: the first is kept, the rest named."""
    snapshot = merge([FileSource([SEED]).load()])
    duplicates = [finding for finding in snapshot.errors if finding.code == "MSH0102"]
    assert duplicates == list(snapshot.errors)
    assert any("01-reviews-v1.yaml" in finding.message for finding in duplicates)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("07-least-conn-outlier.yaml", ["IST0002", "IST0002", "MSH0105", "MSH0133"]),
        ("23-operator-sampling.yaml", ["MSH0150"]),
        ("22-envoyfilter-json-log.yaml", []),
        ("19-tcp-service.yaml", []),
    ],
)
def test_what_is_said_about_a_seed_file(name: str, said: list[str]) -> None:
    result = parsed(SEED / name)
    findings = [*result.findings, *World.build(result.resources).findings]
    codes = [finding.code for finding in findings if finding.code != "MSH0130"]
    assert sorted(codes) == said


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("10-mtls-strict.yaml", 1),
        ("11-reviews-only-productpage.yaml", 1),
        ("12-payment-ip.yaml", 2),
        ("21-deny-shadows-allow.yaml", 2),
        ("13-gateway.yaml", 0),
    ],
)
def test_policies_that_are_not_enforced(name: str, count: int) -> None:
    assert len(World.build(parsed(SEED / name).resources).unenforced) == count


def bookinfo(*names: str) -> World:
    resources: list[Resource] = []
    for name in ("platform/kube/bookinfo.yaml", *names):
        resources += parsed(SAMPLES / "bookinfo" / name).resources
    return World.build(resources)


NETWORKING = sorted((SAMPLES / "bookinfo" / "networking").glob("virtual-service-re*.yaml"))


@pytest.mark.parametrize("path", NETWORKING, ids=lambda path: path.name)
def test_bookinfo_has_no_findings(path: Path) -> None:
    world = bookinfo("networking/destination-rule-all.yaml", f"networking/{path.name}")
    wrong = [finding for finding in world.findings if finding.level > Level.INFO]
    assert wrong == []
    rule = world.virtual_service_for("default", "reviews.default.svc.cluster.local")
    ratings = world.virtual_service_for("default", "ratings.default.svc.cluster.local")
    assert rule or ratings
