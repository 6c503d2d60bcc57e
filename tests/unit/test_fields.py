"""docs/fields.md says of every field of every kind what becomes of it, and says it truly."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support.programs import require_data
from tools import fields, ledger
from tools.ledger import LedgerError, Pattern, Verdict, judge

HONOURED = Verdict(tests=("tests/unit/test_fields.py::test_patterns",))


def test_every_field_is_listed_and_every_pattern_decides_something() -> None:
    found = ledger.kinds(ledger.read_schemas(), ledger.read_ledger())
    assert sum(len(kind.verdicts) for kind in found) > 1000


def test_every_test_exists() -> None:
    found = ledger.kinds(ledger.read_schemas(), ledger.read_ledger())
    assert ledger.missing_tests(found) == []


def test_the_document_is_up_to_date() -> None:
    assert fields.DOCUMENT.read_text() == fields.document(), "type: make fields"


def test_the_schemas_have_the_fields_of_the_crds() -> None:
    """Also that nothing is served besides, and that versions do not differ."""
    text = (require_data("istio/crds") / "crd-all.gen.yaml").read_text()
    schemas = ledger.read_schemas()
    seen = set()
    for crd in filter(None, yaml.load_all(text, Loader=yaml.CSafeLoader)):
        spec = crd["spec"]
        key = f"{spec['group']}/{spec['names']['kind']}"
        seen.add(key)
        served = {one["name"]: one["schema"] for one in spec["versions"] if one["served"]}
        assert set(schemas[key]["versions"]) == set(served), key
        for version, schema in served.items():
            parts = schema["openAPIV3Schema"]["properties"]
            for part in ("spec", "status"):
                compiled = set(ledger.fields_of(schemas[key][part], part))
                assert compiled == set(ledger.fields_of(parts[part], part)), (key, version)
    assert seen == set(schemas)


def test_paths_of_fields() -> None:
    schema: Any = {
        "properties": {
            "name": {"type": "string"},
            "hosts": {"items": {"type": "string"}},
            "ports": {"items": {"properties": {"number": {}}}},
            "labels": {"additionalProperties": {"type": "string"}},
            "match": {"additionalProperties": {"items": {"properties": {"exact": {}}}}},
        },
        "additionalProperties": False,
    }
    assert list(ledger.fields_of(schema, "spec")) == [
        "spec.name",
        "spec.hosts[]",
        "spec.ports[]",
        "spec.ports[].number",
        "spec.labels{}",
        "spec.match{}[]",
        "spec.match{}[].exact",
    ]


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("spec.a", ["spec.a"], ["spec.a.b", "spec", "spec.ab"]),
        ("spec.*", ["spec.a", "spec.a[]"], ["spec", "spec.a.b"]),
        ("spec.**", ["spec", "spec.a", "spec.a[].b"], ["specs.a"]),
        ("**.tls", ["tls", "spec.tls", "spec.a[].tls"], ["spec.tls.mode", "spec.mtls"]),
        ("**.tls.**", ["spec.tls", "spec.tls.mode"], ["spec.mtls.mode"]),
        ("spec.**.port", ["spec.port", "spec.a.b.port"], ["port"]),
        ("spec.a[].b{}", ["spec.a[].b{}"], ["spec.a.b"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], other: list[str]) -> None:
    one = Pattern(pattern, HONOURED)
    assert [path for path in (*matching, *other) if one.matches(path)] == matching


def test_the_most_specific_pattern_counts() -> None:
    order = ["**", "spec.**", "**.mode", "spec.**.mode", "spec.tls.**", "spec.tls.*"]
    order += ["spec.tls.mode"]
    patterns = [Pattern(text, Verdict(reason=text)) for text in order]
    assert sorted(patterns, key=lambda pattern: pattern.rank) == patterns
    assert judge("K", ["spec.tls.mode"], patterns[-1:])["spec.tls.mode"].reason == order[-1]


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["spec.a"], "K spec.b: is not listed"),
        (["spec.*", "spec.c"], "K spec.c: decides no field"),
        (["spec.*", "spec.a", "spec.b"], "K spec.*: decides no field"),
        (["*.a", "spec.*", "spec.b"], r"K spec.a: \*.a and spec.\* are equally specific"),
    ],
)
def test_what_a_ledger_may_not_say(patterns: list[str], problem: str) -> None:
    with pytest.raises(LedgerError, match=problem):
        judge("K", ["spec.a", "spec.b"], [Pattern(text, HONOURED) for text in patterns])


@pytest.mark.parametrize(
    "entry",
    [None, {}, {"tests": []}, {"tests": ["a"], "not honoured": "b"}, {"tests": "a", "why": "b"}],
)
def test_an_entry_says_one_thing(entry: Any) -> None:
    with pytest.raises(LedgerError, match="must have one of"):
        ledger.verdict(entry, "K spec.a")


def test_ids_are_looked_up() -> None:
    here = "tests/unit/test_fields.py"
    known = f"{here}::test_patterns"
    ids = (known, f"{here}::test_nowhere", f"{here}::fields", "tests/nowhere.py::test_a", here)
    kind = ledger.Kind("K", "g", ("v1",), {"spec.a": Verdict(tests=ids)})
    assert ledger.missing_tests([kind]) == sorted(set(ids) - {known})


def test_versions_as_kubernetes_ranks_them() -> None:
    listed = ["v1alpha3", "v1", "v1beta1", "v2alpha1", "v1beta2"]
    assert ledger.newest_first(listed) == ("v1", "v1beta2", "v1beta1", "v2alpha1", "v1alpha3")
    with pytest.raises(LedgerError, match="no version"):
        ledger.newest_first(["one"])
