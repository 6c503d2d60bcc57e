"""Telemetry and ProxyConfig."""

from __future__ import annotations

from typing import Any

from controlplane.model.validation.checks import Checker, each


def check_telemetry(check: Checker) -> None:
    spec = check.spec
    check.selector(spec.get("selector"), "spec.selector")
    check.target_refs()
    for section in ("tracing", "metrics", "accessLogging"):
        entries = spec.get(section) or ()
        if section == "tracing" and len(entries) > 1:
            check.warn(f"spec.{section}", "only one entry is used")
        for path, entry in each(entries, f"spec.{section}"):
            providers = (entry or {}).get("providers") or ()
            if section == "tracing" and len(providers) > 1:
                check.warn(f"{path}.providers", "only one tracing provider is used")
            for place, provider in each(providers, f"{path}.providers"):
                check.need((provider or {}).get("name"), f"{place}.name", "is required")
    for path, entry in each(spec.get("tracing"), "spec.tracing"):
        if "randomSamplingPercentage" in (entry or {}):
            check.percent(entry["randomSamplingPercentage"], f"{path}.randomSamplingPercentage")
        for name, tag in ((entry or {}).get("customTags") or {}).items():
            _check_tag(check, name, tag, f"{path}.customTags.{name}")
    for path, entry in each(spec.get("metrics"), "spec.metrics"):
        for place, override in each((entry or {}).get("overrides"), f"{path}.overrides"):
            _check_override(check, override or {}, place)


def _check_tag(check: Checker, name: str, tag: Any, path: str) -> None:
    check.need(name, path, "the name of a tag must not be empty")
    if not check.need(tag, path, f"tag '{name}' may not have a nil value"):
        return
    for kind, field in (("literal", "value"), ("environment", "name"), ("header", "name")):
        if kind in tag:
            check.need((tag[kind] or {}).get(field), f"{path}.{kind}.{field}", "is required")


def _check_override(check: Checker, override: dict[str, Any], path: str) -> None:
    match = override.get("match") or {}
    if "customMetric" in match:
        check.need(match["customMetric"], f"{path}.match.customMetric", "must not be empty")
    for name, tag in (override.get("tagOverrides") or {}).items():
        place = f"{path}.tagOverrides.{name}"
        operation, value = (tag or {}).get("operation", "UPSERT"), (tag or {}).get("value", "")
        if operation == "UPSERT":
            check.need(value, f"{place}.value", "is required with UPSERT")
        else:
            check.need(not value, f"{place}.value", f"must not be set with {operation}")


def check_proxy_config(check: Checker) -> None:
    check.selector(check.spec.get("selector"), "spec.selector")
    concurrency = check.spec.get("concurrency", 0) or 0
    check.need(concurrency >= 0, "spec.concurrency", f"{concurrency} is negative")
