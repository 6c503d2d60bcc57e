"""What Istio's webhook and CRDs accept, warn about and refuse (data/istio/validation)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.model.documents import Chunk
from controlplane.model.parse import Parsed, parse_chunk, parse_text
from controlplane.model.resource import Level
from controlplane.model.rules import RULES
from controlplane.model.schema import kind_schemas

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "istio" / "validation"
if not DATA.exists():
    pytest.skip(f"no cases at {DATA}", allow_module_level=True)

Case = dict[str, Any]

DISAGREEMENTS = {
    "ValidateK8sGateway/1": "the same document as ValidateGateway/5, which must be refused; the Go"
    " test tells them apart by an annotation that only Gateway API conversion sets",
    "ValidateTlsOptions/8": "three certificates pass the Go check, but not the CRD (maxItems 2)",
    "ValidateRequestAuthentication/8": "an empty issuer passes the Go check, but not the CRD",
    "ValidateSidecar/52": "a warning about hosts of two unrelated namespaces, said to overlap",
}


def cases(file: str) -> list[Case]:
    loaded: list[Case] = json.loads((DATA / file).read_text())
    return loaded


def parsed(case: Case) -> Parsed:
    return parse_chunk(Chunk(json.dumps(case["resource"]), 0), "case.json")


def problem(case: Case) -> str:
    """Where we differ from what is expected; empty when we do not."""
    expect = case.get("expect", case)
    result = parsed(case)
    said = [str(finding) for finding in result.findings]
    if (not result.errors) != expect["valid"]:
        return f"valid should be {expect['valid']}: {said}"
    warned = any(finding.level is Level.WARNING for finding in result.findings)
    if expect["valid"] and expect.get("warning") is not None and warned != expect["warning"]:
        return f"warning should be {expect['warning']}: {said}"
    return ""


def marks(case: Case) -> list[pytest.MarkDecorator]:
    """Cases that contradict others of the same origin count as not fulfilled."""
    said = DISAGREEMENTS.get(case["id"])
    return [pytest.mark.awaits(f"agreement: {said}")] if said else []


ALL = [
    pytest.param(case, id=f"{file.removesuffix('.json')}:{case['id']}", marks=marks(case))
    for file in ("semantic.json", "crd-cel.json")
    for case in cases(file)
]


@pytest.mark.topic("istio/validation")
@pytest.mark.parametrize("case", ALL)
def test_verdict(case: Case) -> None:
    found = problem(case)
    assert not found, found


@pytest.mark.topic("istio/validation")
@pytest.mark.parametrize("case", cases("dataset.json"), ids=lambda case: case["id"])
def test_canonical_example(case: Case) -> None:
    result = parse_text((DATA / "files" / case["file"]).read_text(), case["file"])
    assert (not result.errors) == case["expect"]["valid"], result.errors
    assert result.resources or not case["expect"]["valid"]


def test_every_error_names_its_field() -> None:
    """Schema, rule and semantic errors all carry a path into the document."""
    for parameter in ALL:
        for error in parsed(parameter.values[0]).errors:  # type: ignore[arg-type]
            assert error.path.startswith(("spec", "metadata")), str(error)


def test_every_rule_of_the_schemas_has_its_meaning() -> None:
    found: set[str] = set()

    def collect(schema: Any) -> None:
        if isinstance(schema, dict):
            found.update(rule for rule, _ in schema.get("x-rules", ()))
            for value in schema.values():
                collect(value)
        elif isinstance(schema, list):
            for value in schema:
                collect(value)

    for kind in kind_schemas().values():
        collect(kind.schema)
    assert found == RULES.keys()
