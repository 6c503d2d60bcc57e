"""Configuration that users bring loads unmodified: the seed configuration, Istio's samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.model.parse import Parsed, parse_text
from controlplane.model.resource import Level, Resource
from controlplane.sources.base import Snapshot, merge
from controlplane.sources.files import FileSource
from controlplane.world import World

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SEED = DATA / "seed-config"
SAMPLES = DATA / "istio" / "samples" / "files"
CORPUS = DATA / "istio" / "config-corpus" / "files"
if not DATA.exists():
    pytest.skip(f"no data at {DATA}", allow_module_level=True)


def parsed(path: Path) -> Parsed:
    return parse_text(path.read_text(), path.name)


def files(*roots: Path) -> list[Path]:
    return sorted(path for root in roots for path in root.rglob("*.y*ml"))


@pytest.mark.parametrize("path", files(SEED, SAMPLES, CORPUS), ids=lambda path: path.name)
def test_file_loads(path: Path) -> None:
    result = parsed(path)
    assert result.errors == ()
    assert result.resources or path.name == "swagger.yaml"
    world = World.build(merge([Snapshot(result.resources)]).resources)
    mistakes = [finding for finding in world.findings if finding.level is Level.ERROR]
    # One file is rarely a whole mesh: only references to what other files hold may be missing.
    assert {finding.code for finding in mistakes} <= {"IST0101", "IST0112", "MSH0104"}


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
