"""DestinationRule and the traffic policy in it."""

from __future__ import annotations

from typing import Any

from controlplane.model.hosts import is_address
from controlplane.model.validation.checks import Checker, Fields, each, host_or_ip_problem, is_label

_TOPOLOGY = frozenset(
    {
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "topology.istio.io/subzone",
    }
)
_POLICY_FIELDS = (
    "loadBalancer",
    "connectionPool",
    "outlierDetection",
    "tls",
    "portLevelSettings",
    "tunnel",
    "proxyProtocol",
    "retryBudget",
)
# Envoy's bound for Maglev tables (maglev.proto).
MAX_MAGLEV_TABLE = 5_000_011


def check_destination_rule(check: Checker) -> None:
    spec = check.spec
    host = spec.get("host", "")
    if not is_address(host):
        check.wildcard_domain(host, "spec.host")
    check_traffic_policy(check, spec.get("trafficPolicy"), "spec.trafficPolicy")
    names: set[str] = set()
    for path, subset in each(spec.get("subsets"), "spec.subsets"):
        name = subset.get("name", "")
        check.need(is_label(name), f"{path}.name", f"{name!r} is not a DNS label")
        check.need(name not in names, f"{path}.name", f"subset {name!r} is there twice")
        names.add(name)
        check.labels(subset.get("labels"), f"{path}.labels")
        check_traffic_policy(check, subset.get("trafficPolicy"), f"{path}.trafficPolicy")
    check.selector(spec.get("workloadSelector"), "spec.workloadSelector")
    check.export_to(with_selector="workloadSelector" in spec)


def check_traffic_policy(check: Checker, policy: Any, path: str) -> None:
    """A TrafficPolicy at any level."""
    if policy is None:
        return
    given = any(policy.get(name) is not None for name in _POLICY_FIELDS)
    check.need(given, path, "says nothing: set at least one field")
    _check_blocks(check, policy, path)
    for place, settings in each(policy.get("portLevelSettings"), f"{path}.portLevelSettings"):
        number = (settings.get("port") or {}).get("number", 0)
        check.port(number, f"{place}.port.number")
        _check_blocks(check, settings, place)
    if (tunnel := policy.get("tunnel")) is not None:
        _check_tunnel(check, tunnel, f"{path}.tunnel")
    if (budget := policy.get("retryBudget")) is not None and "percent" in budget:
        check.percent(budget["percent"], f"{path}.retryBudget.percent")


def _check_blocks(check: Checker, policy: Fields, path: str) -> None:
    outlier = policy.get("outlierDetection")
    if outlier is not None:
        check_outlier_detection(check, outlier, f"{path}.outlierDetection")
    if (pool := policy.get("connectionPool")) is not None:
        check_connection_pool(check, pool, f"{path}.connectionPool")
    if (balancer := policy.get("loadBalancer")) is not None:
        check_load_balancer(check, balancer, f"{path}.loadBalancer", outlier)
    if (tls := policy.get("tls")) is not None:
        check_client_tls(check, tls, f"{path}.tls")


def check_outlier_detection(check: Checker, outlier: Fields, path: str) -> None:
    check.durations(outlier, path, "interval", "baseEjectionTime")
    if outlier.get("consecutiveErrors"):
        message = (
            "deprecated and without effect: consecutive5xxErrors (default 5) or"
            " consecutiveGatewayErrors counts"
        )
        check.warn(f"{path}.consecutiveErrors", message, "IST0002")
    local = outlier.get("consecutiveLocalOriginFailures") or 0
    if local > 0 and not outlier.get("splitExternalLocalOriginErrors"):
        check.error(
            f"{path}.consecutiveLocalOriginFailures", "needs splitExternalLocalOriginErrors: true"
        )
    for name in ("maxEjectionPercent", "minHealthPercent"):
        check.percent(outlier.get(name, 0), f"{path}.{name}")


def check_connection_pool(check: Checker, pool: Fields, path: str) -> None:
    http, tcp = pool.get("http"), pool.get("tcp")
    check.need(http is not None or tcp is not None, path, "says nothing: set http or tcp")
    if http is not None:
        place = f"{path}.http"
        for name in (
            "http1MaxPendingRequests",
            "http2MaxRequests",
            "maxRequestsPerConnection",
            "maxRetries",
            "maxConcurrentStreams",
        ):
            value = http.get(name, 0)
            check.need(value >= 0, f"{place}.{name}", f"{value} is negative")
        check.durations(http, place, "idleTimeout")
        both = http.get("h2UpgradePolicy") == "UPGRADE" and http.get("useClientProtocol")
        message = "h2UpgradePolicy UPGRADE and useClientProtocol exclude each other"
        check.need(not both, place, message)
        if (keepalive := http.get("http2KeepAlive")) is not None:
            place = f"{place}.http2KeepAlive"
            check.need("interval" in keepalive, f"{place}.interval", "is required")
            check.durations(keepalive, place, "interval", "timeout")
    if tcp is not None:
        place = f"{path}.tcp"
        value = tcp.get("maxConnections", 0)
        check.need(value >= 0, f"{place}.maxConnections", f"{value} is negative")
        check.durations(tcp, place, "connectTimeout", "maxConnectionDuration")
        if "idleTimeout" in tcp and tcp["idleTimeout"] not in ("0s", "0"):
            check.duration(tcp["idleTimeout"], f"{place}.idleTimeout")
        keepalive = tcp.get("tcpKeepalive") or {}
        check.durations(keepalive, f"{place}.tcpKeepalive", "time", "interval")


def check_load_balancer(check: Checker, balancer: Fields, path: str, outlier: Any) -> None:
    if balancer.get("simple") == "LEAST_CONN":
        check.warn(f"{path}.simple", "deprecated name: write LEAST_REQUEST", "IST0002")
    if (hashing := balancer.get("consistentHash")) is not None:
        _check_consistent_hash(check, hashing, f"{path}.consistentHash")
    if (warmup := balancer.get("warmup")) is not None:
        place = f"{path}.warmup"
        check.need("duration" in warmup, f"{place}.duration", "is required")
        check.durations(warmup, place, "duration")
        aggression = warmup.get("aggression", 1)
        check.need(aggression >= 1, f"{place}.aggression", f"{aggression} is less than 1")
        if "minimumPercent" in warmup:
            check.percent(warmup["minimumPercent"], f"{place}.minimumPercent")
        both = "warmupDurationSecs" in balancer
        check.need(not both, path, "only one of warmup, warmupDurationSecs may be set")
        _need_warmable(check, balancer, place)
    if "warmupDurationSecs" in balancer:
        place = f"{path}.warmupDurationSecs"
        check.warn(place, "deprecated: use warmup.duration", "IST0002")
        check.duration(balancer["warmupDurationSecs"], place)
        _need_warmable(check, balancer, place)
    locality, zone_aware = balancer.get("localityLbSetting"), balancer.get("zoneAwareLbSetting")
    both = locality is not None and zone_aware is not None
    check.need(not both, path, "only one of localityLbSetting, zoneAwareLbSetting may be set")
    if locality is not None:
        check_locality(check, locality, f"{path}.localityLbSetting", outlier)
    if zone_aware is not None:
        check_zone_aware(check, zone_aware, f"{path}.zoneAwareLbSetting", outlier)


def _need_warmable(check: Checker, balancer: Fields, path: str) -> None:
    simple = balancer.get("simple", "UNSPECIFIED")
    fits = "consistentHash" not in balancer and simple not in ("RANDOM", "PASSTHROUGH")
    check.need(fits, path, "works with ROUND_ROBIN and LEAST_REQUEST only")


def _check_consistent_hash(check: Checker, hashing: Fields, path: str) -> None:
    cookie = hashing.get("httpCookie")
    if cookie is not None:
        check.need(cookie.get("name"), f"{path}.httpCookie.name", "is required")
        # 0s asks for a session cookie.
        if "ttl" in cookie and cookie["ttl"] not in ("0s", "0"):
            check.duration(cookie["ttl"], f"{path}.httpCookie.ttl")
    size = (hashing.get("maglev") or {}).get("tableSize", 0)
    if size:
        place = f"{path}.maglev.tableSize"
        check.need(_is_prime(size), place, f"{size} is not a prime number")
        check.need(size <= MAX_MAGLEV_TABLE, place, f"{size} is more than {MAX_MAGLEV_TABLE}")


def _is_prime(number: int) -> bool:
    if number < 2 or number > MAX_MAGLEV_TABLE:
        return number > MAX_MAGLEV_TABLE  # too large is said elsewhere
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def check_locality(check: Checker, setting: Fields, path: str, outlier: Any) -> None:
    """LocalityLoadBalancerSetting (L4)."""
    distribute = setting.get("distribute") or ()
    both = distribute and setting.get("failover")
    check.need(not both, path, "only one of distribute, failover may be set")
    sources = []
    for place, rule in each(distribute, f"{path}.distribute"):
        sources.append(rule.get("from", ""))
        targets = rule.get("to") or {}
        for name, weight in targets.items():
            in_range = 0 < weight <= 100
            check.need(in_range, f"{place}.to.{name}", f"weight {weight} is not from 1 to 100")
        total = sum(targets.values())
        check.need(total == 100, f"{place}.to", f"the weights add up to {total}, not 100")
        check_localities(check, list(targets), f"{place}.to")
    check_localities(check, sources, f"{path}.distribute")
    if setting.get("failover"):
        for place, label in each(setting.get("failoverPriority"), f"{path}.failoverPriority"):
            known = label.partition("=")[0] in _TOPOLOGY
            check.need(not known, place, f"{label!r} cannot stand beside failover")
    check_failover(check, setting, path, outlier)


def check_failover(check: Checker, setting: Fields, path: str, outlier: Any) -> None:
    """The failover part of locality and zone-aware settings."""
    failover = setting.get("failover") or ()
    if (failover or setting.get("failoverPriority")) and outlier is None:
        check.warn(path, "failover works only together with outlierDetection")
    for place, rule in each(failover, f"{path}.failover"):
        source, target = rule.get("from", ""), rule.get("to", "")
        check.need(source != target, place, "from and to are the same region")
        for side, name in (("from", source), ("to", target)):
            plain = "*" not in name and "/" not in name
            check.need(plain, f"{place}.{side}", f"{name!r} is not the name of a region")


def check_zone_aware(check: Checker, setting: Fields, path: str, outlier: Any) -> None:
    """ZoneAwareLoadBalancerSetting: localities are its own affair, priorities take other labels."""
    check_failover(check, setting, path, outlier)
    for place, label in each(setting.get("failoverPriority"), f"{path}.failoverPriority"):
        known = label.partition("=")[0] in _TOPOLOGY
        check.need(not known, place, f"{label!r} is part of zone-aware balancing itself")


def check_localities(check: Checker, names: list[str], path: str) -> None:
    """Localities of one list: `*` only at the end of a name, and no overlap."""
    known: list[str] = []
    for name in names:
        parts = name.split("/")
        if "" in parts:
            check.error(path, f"locality {name!r} must not have empty parts")
            continue
        star = name.find("*")
        if star >= 0 and star + 1 < len(name):
            check.error(path, f"locality {name!r}: a wildcard can only stand at the end")
            continue
        for other in known:
            if locality_overlap(name, other):
                check.error(path, f"locality {name!r} overlaps with {other!r}")
        known.append(name)


def locality_overlap(a: str, b: str) -> bool:
    """Whether two localities share a place."""
    left, right = a.split("/"), b.split("/")
    for x, y in zip(left, right, strict=False):
        if x == "*" or y == "*":
            return True
        if x.endswith("*") and y.startswith(x[:-1]):
            return True
        if y.endswith("*") and x.startswith(y[:-1]):
            return True
        if x != y:
            return False
    return True


def check_client_tls(check: Checker, tls: Fields, path: str) -> None:
    """ClientTLSSettings (D19 to D21)."""
    mode = tls.get("mode", "DISABLE")
    if tls.get("insecureSkipVerify"):
        excluded = {
            "SIMPLE": ("caCertificates", "credentialName", "subjectAltNames"),
            "MUTUAL": ("caCertificates", "subjectAltNames"),
        }.get(mode, ())
        for name in excluded:
            if tls.get(name):
                check.error(f"{path}.{name}", "cannot stand beside insecureSkipVerify")
    if mode in ("SIMPLE", "MUTUAL") and tls.get("credentialName"):
        for name in ("clientCertificate", "privateKey", "caCertificates", "caCrl"):
            if tls.get(name):
                check.error(f"{path}.{name}", "cannot stand beside credentialName")
        return
    if mode == "MUTUAL":
        for name in ("clientCertificate", "privateKey"):
            check.need(tls.get(name), f"{path}.{name}", "is required with mode MUTUAL")


def _check_tunnel(check: Checker, tunnel: Fields, path: str) -> None:
    protocol = tunnel.get("protocol", "")
    message = f"{protocol!r} is neither CONNECT nor POST"
    check.need(protocol in ("", "CONNECT", "POST"), f"{path}.protocol", message)
    problem = host_or_ip_problem(tunnel.get("targetHost", ""))
    check.need(problem is None, f"{path}.targetHost", problem or "")
    check.port(tunnel.get("targetPort", 0), f"{path}.targetPort")
