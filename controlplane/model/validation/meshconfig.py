"""Mesh config: what its fields may hold, beyond their types.

Source: istio/istio pkg/config/validation/agent/validation.go.
"""

from __future__ import annotations

from typing import Any

from controlplane.model.duration import Duration
from controlplane.model.validation.checks import Checker, Fields, each, is_label, wildcard_problem
from controlplane.model.validation.destinationrule import (
    check_connection_pool,
    check_locality,
    check_outlier_detection,
    check_zone_aware,
)
from controlplane.model.validation.retries import check_retries

_LEAST_WINDOW = 65535
_MOST_WINDOW = 2**31 - 1
_IGNORED_INBOUND = ("perTryTimeout", "retryRemoteLocalities", "retryIgnorePreviousHosts")


def check_mesh_config(check: Checker, mesh: Fields, path: str) -> None:
    """Everything that a mesh config may get wrong without any field being of the wrong type."""
    domain = mesh.get("trustDomain")
    if isinstance(domain, str) and (problem := trust_domain_problem(domain)) is not None:
        check.error(f"{path}.trustDomain", problem)
    for place, alias in each(mesh.get("trustDomainAliases"), f"{path}.trustDomainAliases"):
        if isinstance(alias, str) and (problem := trust_domain_problem(alias)) is not None:
            check.error(place, problem)
    for place, setting in each(mesh.get("serviceSettings"), f"{path}.serviceSettings"):
        check_service_setting(check, setting or {}, place)
    if isinstance(policy := mesh.get("defaultTrafficPolicy"), dict):
        check_default_traffic_policy(check, policy, f"{path}.defaultTrafficPolicy")
    if isinstance(retry := mesh.get("defaultHttpRetryPolicy"), dict):
        check_retries(check, retry, f"{path}.defaultHttpRetryPolicy")
    if isinstance(retry := mesh.get("defaultInboundHttpRetryPolicy"), dict):
        check_inbound_retries(check, retry, f"{path}.defaultInboundHttpRetryPolicy")
    if isinstance(setting := mesh.get("localityLbSetting"), dict):
        check_locality(check, setting, f"{path}.localityLbSetting", {})
    if isinstance(setting := mesh.get("zoneAwareLbSetting"), dict):
        check_zone_aware(check, setting, f"{path}.zoneAwareLbSetting", {})
    if isinstance(defaults := mesh.get("defaultConfig"), dict):
        connections = defaults.get("connectionSettings")
        if isinstance(connections, dict):
            place = f"{path}.defaultConfig.connectionSettings"
            check_connection_settings(check, connections, place)


def trust_domain_problem(domain: str) -> str | None:
    """What is wrong with a trust domain: DNS labels, a final dot is allowed."""
    if not domain:
        return "a trust domain must not be empty"
    labels = domain.removesuffix(".").split(".")
    if not all(map(is_label, labels)):
        return f"{domain!r} is not a domain of DNS labels such as cluster.local"
    return None


def check_service_setting(check: Checker, setting: Fields, path: str) -> None:
    """The hosts of one entry of `serviceSettings`."""
    for place, host in each(setting.get("hosts"), f"{path}.hosts"):
        if (problem := wildcard_problem(host)) is not None:
            check.error(place, problem)


def check_default_traffic_policy(check: Checker, policy: Fields, path: str) -> None:
    """The two blocks that the mesh may have a default for."""
    if (pool := policy.get("connectionPool")) is not None:
        check_connection_pool(check, pool, f"{path}.connectionPool")
    if (outlier := policy.get("outlierDetection")) is not None:
        check_outlier_detection(check, outlier, f"{path}.outlierDetection")


def check_inbound_retries(check: Checker, retry: Fields, path: str) -> None:
    """Retries at the server's side: there is no other host to go to (V20)."""
    check_retries(check, retry, path)
    for name in _IGNORED_INBOUND:
        if retry.get(name):
            check.warn(f"{path}.{name}", "has no effect on what servers receive")


def check_connection_settings(check: Checker, settings: Fields, path: str) -> None:
    """Buffers, windows and times of proxies' own connections."""
    _at_least(check, settings, path, "listenerPerConnectionBufferLimitBytes", 0)
    _at_least(check, settings, path, "clusterPerConnectionBufferLimitBytes", 0)
    _at_least(check, settings, path, "httpMaxConcurrentStreams", 1)
    _at_least(check, settings, path, "http2MaxConcurrentStreams", 1)
    for name in ("http2InitialStreamWindowSize", "http2InitialConnectionWindowSize"):
        _at_least(check, settings, path, name, _LEAST_WINDOW)
        value = settings.get(name)
        if isinstance(value, int):
            check.need(value <= _MOST_WINDOW, f"{path}.{name}", f"must be at most {_MOST_WINDOW}")
    for name, value in settings.items():
        if name.endswith(("Timeout", "Duration")) and isinstance(value, str):
            _check_time(check, value, f"{path}.{name}")


def _at_least(check: Checker, settings: Fields, path: str, name: str, least: int) -> None:
    value: Any = settings.get(name)
    if isinstance(value, int):
        check.need(value >= least, f"{path}.{name}", f"must be at least {least}")


def _check_time(check: Checker, text: str, path: str) -> None:
    try:
        negative = Duration.parse(text) < 0
    except ValueError as error:
        check.error(path, str(error))
        return
    check.need(not negative, path, f"{text} is negative")
