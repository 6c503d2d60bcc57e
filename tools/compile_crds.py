"""Compiles Istio's CRDs into the compact schemas that the control plane validates with.

    python tools/compile_crds.py CRD_FILE [--out controlplane/model/schemas/istio.json]

Descriptions go; objects without `x-kubernetes-preserve-unknown-fields` forbid unknown fields;
`nullable`, `int-or-string` and `format` become plain JSON Schema; CEL rules are kept as
`x-rules: [[rule, message]]`, whose meaning is in `controlplane/model/rules.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
KEPT = frozenset(
    [
        "type",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "maxProperties",
        "minProperties",
        "required",
        "oneOf",
        "anyOf",
        "allOf",
        "not",
    ]
)
INT_FORMATS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


def compile_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """One OpenAPI v3 structural schema as JSON Schema."""
    out = {key: _sub(value) for key, value in schema.items() if key in KEPT}
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("anyOf", None)
        out["type"] = ["integer", "string"]
    if properties := schema.get("properties"):
        out["properties"] = {name: compile_schema(value) for name, value in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "type" in schema:
            out["additionalProperties"] = False
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        out["additionalProperties"] = compile_schema(extra)
    if "items" in schema:
        out["items"] = compile_schema(schema["items"])
    if schema.get("nullable") and "type" in out:
        kinds = out["type"] if isinstance(out["type"], list) else [out["type"]]
        out["type"] = [*kinds, "null"]
    if (bounds := INT_FORMATS.get(schema.get("format", ""))) and schema.get("type") == "integer":
        out.setdefault("minimum", bounds[0])
        out.setdefault("maximum", bounds[1])
    if rules := schema.get("x-kubernetes-validations"):
        out["x-rules"] = [[rule["rule"], rule.get("message", rule["rule"])] for rule in rules]
    if keys := schema.get("x-kubernetes-list-map-keys"):
        out["x-unique"] = keys
    return out


def _sub(value: Any) -> Any:
    """Combinators hold schemas; everything else is a plain value."""
    if isinstance(value, list):
        return [compile_schema(item) if isinstance(item, dict) else item for item in value]
    return compile_schema(value) if isinstance(value, dict) else value


def compile_crds(text: str) -> dict[str, Any]:
    """All kinds of a CRD file: `{"<group>/<kind>": {"versions": […], "plural": …, "spec": …}}`.

    `status` is kept for docs/fields.md: nothing is validated by it.
    """
    kinds: dict[str, Any] = {}
    for crd in yaml.load_all(text, Loader=yaml.CSafeLoader):
        if not crd:
            continue
        spec = crd["spec"]
        versions = {
            version["name"]: {
                part: compile_schema(version["schema"]["openAPIV3Schema"]["properties"][part])
                for part in ("spec", "status")
            }
            for version in spec["versions"]
            if version["served"]
        }
        first = next(iter(versions.values()))
        if any(schema != first for schema in versions.values()):
            raise SystemExit(f"{spec['names']['kind']}: the schemas of its versions differ")
        kinds[f"{spec['group']}/{spec['names']['kind']}"] = {
            "versions": sorted(versions),
            "plural": spec["names"]["plural"],
            "short": spec["names"].get("shortNames", []),
            **first,
        }
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("crds", type=Path)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "controlplane" / "model" / "schemas" / "istio.json"
    )
    arguments = parser.parse_args()
    kinds = compile_crds(arguments.crds.read_text())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(kinds, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{arguments.out}: {len(kinds)} kinds, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
