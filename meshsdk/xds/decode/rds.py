"""RouteConfiguration → `model.RouteConfiguration`.

What this SDK does not know is never misrouted:

- A *condition* that cannot be evaluated (dynamic metadata, filter state, TLS, URI templates)
  rejects the configuration: with a guess at the condition, other routes would get its calls.
- An *action* that cannot be carried out becomes `UnsupportedAction`: calls that match the route
  fail and say why, all others go on.
- What only adds to a call that is routed rightly (mirroring, rate limits, CORS) is left out with
  a note for the log.

Sources: Envoy `config/route/v3/route_components.proto` with its validation rules; gRFC A28, A31,
A39, A44, A47.
"""

from __future__ import annotations

from typing import Any, Final

import re2
from envoy.config.route.v3 import route_pb2

from meshsdk.matching import HeaderMatch, PathKind, PathMatch, QueryMatch
from meshsdk.model import (
    Action,
    DirectResponseAction,
    Fault,
    ForwardAction,
    RedirectAction,
    RegexRewrite,
    RetryPolicy,
    Route,
    RouteConfiguration,
    RouteMatch,
    UnsupportedAction,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    entry,
    fraction,
    header_match,
    mutations,
    optional_seconds,
    regex,
    seconds,
    string_match,
    sub,
)
from meshsdk.xds.decode.filters import per_route_fault
from meshsdk.xds.resources import ROUTE, Decoder

_DEFAULT_TIMEOUT: Final = 15.0
_MAX_WEIGHT: Final = 2**32 - 1


def _decode(message: Any, notes: Notes) -> RouteConfiguration:
    return entry("RouteConfiguration", message.name, route_configuration, message, notes)


DECODER: Final = Decoder(
    ROUTE,
    "RouteConfiguration",
    False,
    route_pb2.RouteConfiguration.FromString,
    "name",
    _decode,
)

# Fields that change which route or virtual host a call gets.
_REJECTED_IN_CONFIG: Final = frozenset(
    {"vhds", "vhost_header", "ignore_path_parameters_in_path_matching"}
)
_REJECTED_IN_HOST: Final = frozenset({"matcher"})
_NOTED_IN_CONFIG: Final = frozenset({"request_mirror_policies"})
_NOTED_IN_HOST: Final = frozenset(
    {"request_mirror_policies", "rate_limits", "cors", "hedge_policy", "retry_policy_typed_config"}
)


def route_configuration(message: Any, notes: Notes) -> RouteConfiguration:
    """Decode a RouteConfiguration; raises `Bad`."""
    _look_at_fields(message, _REJECTED_IN_CONFIG, _NOTED_IN_CONFIG, notes)
    plugins = {item.extension.name: item.is_optional for item in message.cluster_specifier_plugins}
    limit = 4096
    if message.HasField("max_direct_response_body_size_bytes"):
        limit = message.max_direct_response_body_size_bytes.value
    routes = _Routes(plugins, limit, per_route_fault(message, notes))
    hosts = each("virtual_hosts", message.virtual_hosts, routes.virtual_host, notes)
    _check_domains(hosts)
    return RouteConfiguration(
        message.name,
        tuple(hosts),
        mutations(message, notes),
        message.most_specific_header_mutations_wins,
        message.ignore_port_in_host_matching,
    )


def _look_at_fields(
    message: Any, rejected: frozenset[str], noted: frozenset[str], notes: Notes
) -> set[str]:
    """Names of the fields that are set; rejects or notes those that the SDK does not honour."""
    present = {field.name for field, _ in message.ListFields()}
    if present.isdisjoint(rejected) and present.isdisjoint(noted):
        return present
    for name in sorted(present & rejected):
        raise Bad(name, "is not supported")
    for name in sorted(present & noted):
        notes.append(f"{name}: is not supported, calls go without it")
    return present


def _check_domains(hosts: list[VirtualHost]) -> None:
    seen: dict[str, int] = {}
    for index, host in enumerate(hosts):
        for position, domain in enumerate(host.domains):
            lower = domain.lower()
            if not domain or ("*" in domain and not _is_wildcard(domain)):
                problem = "is no domain: a name, `*.suffix`, `prefix*` or `*` is needed"
            elif lower in seen:
                problem = f"is taken by virtual_hosts[{seen[lower]}] already"
            else:
                seen[lower] = index
                continue
            raise Bad(f"virtual_hosts[{index}].domains[{position}]", f"{domain!r} {problem}")


def _is_wildcard(domain: str) -> bool:
    return domain.count("*") == 1 and (domain.startswith("*") or domain.endswith("*"))


class _Routes:
    """Decodes the virtual hosts of one configuration, which has a say in some of their fields."""

    def __init__(self, plugins: dict[str, bool], body_limit: int, fault: Fault | None) -> None:
        self._plugins = plugins
        self._body_limit = body_limit
        self._fault = fault

    def virtual_host(self, message: Any, notes: Notes) -> VirtualHost:
        if not message.domains:
            raise Bad("domains", "must not be empty")
        _look_at_fields(message, _REJECTED_IN_HOST, _NOTED_IN_HOST, notes)
        if message.require_tls:
            raise Bad("require_tls", "is not supported; a redirect route does the same")
        retry = None
        if message.HasField("retry_policy"):
            retry = sub("retry_policy", _retry_policy, message.retry_policy, notes)

        def decode(route: Any, notes: Notes) -> Route | None:
            return self._route(route, retry, notes)

        routes = each("routes", message.routes, decode, notes)
        return VirtualHost(
            message.name,
            tuple(message.domains),
            tuple(route for route in routes if route is not None),
            mutations(message, notes),
            per_route_fault(message, notes) or self._fault,
        )

    def _route(self, message: Any, retry: RetryPolicy | None, notes: Notes) -> Route | None:
        """A route; None when no call of this SDK can ever choose it."""
        if not message.HasField("match"):
            raise Bad("match", "is needed")
        match = sub("match", _route_match, message.match, notes)
        action = self._action(message, retry, notes)
        changes, fault = mutations(message, notes), per_route_fault(message, notes)
        if match is None or action is None:
            return None
        return Route(message.name, match, action, changes, fault)

    def _action(self, message: Any, retry: RetryPolicy | None, notes: Notes) -> Action | None:
        which = message.WhichOneof("action")
        if which == "route":
            return sub("route", lambda m, n: self._forward(m, retry, n), message.route, notes)
        if which == "redirect":
            return sub("redirect", _redirect, message.redirect, notes)
        if which == "direct_response":
            return sub("direct_response", self._direct_response, message.direct_response, notes)
        if which is None:
            raise Bad("action", "route, redirect or direct_response is needed")
        return UnsupportedAction(f"{which} is not supported by this SDK")

    def _direct_response(self, message: Any, notes: Notes) -> Action:
        if not 200 <= message.status < 600:
            raise Bad("status", f"is {message.status}, must be from 200 to 599")
        if message.HasField("body_format"):
            return UnsupportedAction("direct_response.body_format is not supported by this SDK")
        which = message.body.WhichOneof("specifier")
        if which == "inline_string":
            body = message.body.inline_string.encode()
        elif which in ("inline_bytes", None):
            body = message.body.inline_bytes
        else:
            return UnsupportedAction(f"direct_response.body.{which} is not supported by this SDK")
        if len(body) > self._body_limit:
            problem = f"has {len(body)} bytes, at most {self._body_limit} are allowed"
            raise Bad("body", problem)
        return DirectResponseAction(message.status, body)

    def _forward(self, message: Any, retry: RetryPolicy | None, notes: Notes) -> Action | None:
        present = _look_at_fields(message, frozenset(), _NOTED_IN_ACTION, notes)
        if "auto_host_rewrite" in present and message.auto_host_rewrite.value:
            notes.append("auto_host_rewrite: is not supported, the authority stays")
        clusters = self._clusters(message, notes)
        timeout, max_grpc_timeout = _timeouts(message, notes)
        if "retry_policy" in present:
            retry = sub("retry_policy", _retry_policy, message.retry_policy, notes)
        if "prefix_rewrite" in present and "regex_rewrite" in present:
            raise Bad("regex_rewrite", "only one of prefix_rewrite and regex_rewrite may be set")
        rewrite = None
        if "regex_rewrite" in present:
            rewrite = sub("regex_rewrite", _regex_rewrite, message.regex_rewrite, notes)
        if not present.isdisjoint(_UNSUPPORTED_IN_ACTION):
            name = min(present & _UNSUPPORTED_IN_ACTION)
            return UnsupportedAction(f"route.{name} is not supported by this SDK")
        if clusters is None or isinstance(clusters, UnsupportedAction):
            return clusters
        return ForwardAction(
            clusters,
            timeout,
            max_grpc_timeout,
            retry,
            _header_safe("prefix_rewrite", message.prefix_rewrite),
            rewrite,
            _header_safe("host_rewrite_literal", message.host_rewrite_literal),
        )

    def _clusters(
        self, message: Any, notes: Notes
    ) -> tuple[WeightedCluster, ...] | UnsupportedAction | None:
        """The clusters; None when the route is to be ignored."""
        which = message.WhichOneof("cluster_specifier")
        if which == "cluster":
            if not message.cluster:
                raise Bad("cluster", "must not be empty")
            return (WeightedCluster(message.cluster, 1),)
        if which == "weighted_clusters":
            return sub(which, _weighted_clusters, message.weighted_clusters, notes)
        if which is None:
            raise Bad("cluster", "cluster or weighted_clusters is needed")
        if which == "cluster_specifier_plugin":
            plugin = message.cluster_specifier_plugin
            if plugin not in self._plugins:
                raise Bad(which, f"{plugin!r} is not declared in cluster_specifier_plugins")
            if self._plugins[plugin]:
                # gRFC A47: routes of an optional plugin that a client lacks are ignored.
                return None
        return UnsupportedAction(f"route.{which} is not supported by this SDK")


# Fields of a RouteAction that add to a call which is routed rightly without them.
_NOTED_IN_ACTION: Final = frozenset(
    {
        "request_mirror_policies",
        "rate_limits",
        "cors",
        "hedge_policy",
        "internal_redirect_policy",
        "retry_policy_typed_config",
    }
)

# Fields without which the call would go to the wrong place.
_UNSUPPORTED_IN_ACTION: Final = frozenset(
    {
        "metadata_match",
        "path_rewrite_policy",
        "path_rewrite",
        "host_rewrite_header",
        "host_rewrite_path_regex",
        "host_rewrite",
    }
)


def _weighted_clusters(
    message: Any, notes: Notes
) -> tuple[WeightedCluster, ...] | UnsupportedAction:
    if message.WhichOneof("random_value_specifier"):
        notes.append("random_value_specifier: is not supported, the choice is random")
    found = each("clusters", message.clusters, _weighted_cluster, notes)
    unsupported = next((item for item in found if isinstance(item, UnsupportedAction)), None)
    if unsupported is not None:
        return unsupported
    clusters = tuple(item for item in found if isinstance(item, WeightedCluster))
    total = sum(item.weight for item in clusters)
    if not 0 < total <= _MAX_WEIGHT:
        raise Bad("clusters", f"the weights sum to {total}, must be from 1 to 2^32-1")
    # A cluster of weight 0 gets no call, so nothing needs to wait for it.
    return tuple(item for item in clusters if item.weight)


def _weighted_cluster(message: Any, notes: Notes) -> WeightedCluster | UnsupportedAction:
    if message.name and message.cluster_header:
        raise Bad("cluster_header", "only one of name and cluster_header may be set")
    if message.cluster_header or message.HasField("metadata_match"):
        name = "cluster_header" if message.cluster_header else "metadata_match"
        return UnsupportedAction(f"weighted_clusters.{name} is not supported by this SDK")
    if not message.name:
        raise Bad("name", "must not be empty")
    if not message.HasField("weight"):
        raise Bad("weight", "is needed")
    return WeightedCluster(
        message.name,
        message.weight.value,
        mutations(message, notes),
        _header_safe("host_rewrite_literal", message.host_rewrite_literal),
        per_route_fault(message, notes),
    )


def _timeouts(message: Any, notes: Notes) -> tuple[float | None, float | None]:
    """(timeout, upper limit for the caller's gRPC deadline), None for no limit.

    An absent `timeout` is 15 s and 0 is none, as in Envoy. `max_stream_duration` limits the whole
    call as the timeout does: the shorter one counts.
    """
    timeout = optional_seconds(message, "timeout")
    timeout = _DEFAULT_TIMEOUT if timeout is None else timeout or None
    if not message.HasField("max_stream_duration"):
        return timeout, optional_seconds(message, "max_grpc_timeout") or None
    longest, grpc = sub("max_stream_duration", _stream_duration, message.max_stream_duration, notes)
    if longest:
        timeout = min(timeout or longest, longest)
    return timeout, grpc or None


def _stream_duration(message: Any, notes: Notes) -> tuple[float | None, float | None]:
    return (
        optional_seconds(message, "max_stream_duration"),
        optional_seconds(message, "grpc_timeout_header_max"),
    )


# --- match -----------------------------------------------------------------------------------

_REJECTED_IN_MATCH: Final = frozenset(
    {"path_match_policy", "tls_context", "dynamic_metadata", "filter_state"}
)
_PATH_KINDS: Final = {
    "prefix": PathKind.PREFIX,
    "path": PathKind.EXACT,
    "path_separated_prefix": PathKind.SEGMENT_PREFIX,
}


def _route_match(message: Any, notes: Notes) -> RouteMatch | None:
    """The conditions; None for a route of CONNECT requests, which this SDK never sends."""
    present = _look_at_fields(message, _REJECTED_IN_MATCH, frozenset(), notes)
    path = _path_match(message, present)
    share = None
    if "runtime_fraction" in present:
        default = message.runtime_fraction.default_value
        share = fraction("runtime_fraction.default_value", default)
    headers: list[HeaderMatch] = []
    if "headers" in present:
        headers = each("headers", message.headers, header_match, notes)
    queries: list[QueryMatch] = []
    if "query_parameters" in present:
        queries = each("query_parameters", message.query_parameters, _query_match, notes)
    if path is None:
        return None
    return RouteMatch(path, tuple(headers), tuple(queries), share, "grpc" in present)


def _path_match(message: Any, present: set[str]) -> PathMatch | None:
    which = message.WhichOneof("path_specifier")
    if which is None:
        raise Bad("path_specifier", "prefix, path, path_separated_prefix or safe_regex is needed")
    if which == "connect_matcher":
        return None
    if which == "safe_regex":
        return PathMatch(PathKind.REGEX, regex("safe_regex", message.safe_regex))
    value = getattr(message, which)
    if which == "path_separated_prefix" and (
        len(value) < 2 or value.endswith("/") or "?" in value or "#" in value
    ):
        problem = "must be longer than 1, must not end in / nor hold ? or #"
        raise Bad(which, f"{value!r} {problem}")
    ignore_case = "case_sensitive" in present and not message.case_sensitive.value
    return PathMatch(_PATH_KINDS[which], value, ignore_case)


def _query_match(message: Any, notes: Notes) -> QueryMatch:
    if not message.name:
        raise Bad("name", "must not be empty")
    which = message.WhichOneof("query_parameter_match_specifier")
    if which == "string_match":
        string = sub("string_match", string_match, message.string_match, notes)
        return QueryMatch(message.name, string)
    return QueryMatch(message.name, present=message.present_match if which else True)


# --- actions ---------------------------------------------------------------------------------

_STATUS: Final = {0: 301, 1: 302, 2: 303, 3: 307, 4: 308}


def _redirect(message: Any, notes: Notes) -> RedirectAction:
    status = _STATUS.get(message.response_code)
    if status is None:
        raise Bad("response_code", f"{message.response_code} is not known")
    if message.port_redirect > 65535:
        raise Bad("port_redirect", f"is {message.port_redirect}, must be at most 65535")
    rewrite = None
    if message.HasField("regex_rewrite"):
        rewrite = sub("regex_rewrite", _regex_rewrite, message.regex_rewrite, notes)
    prefix = _header_safe("prefix_rewrite", message.prefix_rewrite)
    return RedirectAction(
        status=status,
        scheme=_header_safe("scheme_redirect", message.scheme_redirect),
        https=message.https_redirect,
        host=_header_safe("host_redirect", message.host_redirect),
        port=message.port_redirect or None,
        path=_header_safe("path_redirect", message.path_redirect),
        prefix_rewrite=prefix or ("" if message.HasField("prefix_rewrite") else None),
        regex_rewrite=rewrite,
        strip_query=message.strip_query,
    )


def _header_safe(field: str, value: str) -> str | None:
    """A text that becomes part of a header; None when it is empty."""
    if any(c in value for c in "\r\n\0"):
        raise Bad(field, "must not contain CR, LF or NUL")
    return value or None


def _regex_rewrite(message: Any, notes: Notes) -> RegexRewrite:
    pattern = regex("pattern", message.pattern)
    text = message.substitution
    groups = re2.compile(pattern).groups
    position = text.find("\\")
    while position >= 0:
        following = text[position + 1 : position + 2]
        if following != "\\" and not (following.isdecimal() and int(following) <= groups):
            problem = f"{text!r}: a backslash needs another one or a group from 0 to {groups}"
            raise Bad("substitution", problem)
        position = text.find("\\", position + 2)
    return RegexRewrite(pattern, text)


def _retry_policy(message: Any, notes: Notes) -> RetryPolicy:
    base, longest = 0.025, None
    if message.HasField("retry_back_off"):
        base, longest = sub("retry_back_off", _back_off, message.retry_back_off, notes)
    names = (name.strip() for name in message.retry_on.split(","))
    return RetryPolicy(
        tuple(name for name in names if name),
        message.num_retries.value if message.HasField("num_retries") else 1,
        optional_seconds(message, "per_try_timeout") or None,
        tuple(message.retriable_status_codes),
        base,
        10 * base if longest is None else longest,
    )


def _back_off(message: Any, notes: Notes) -> tuple[float, float | None]:
    """(base interval, longest interval or None). Source: gRFC A44."""
    base = seconds("base_interval", message.base_interval)
    if message.HasField("base_interval") and not base:
        raise Bad("base_interval", "must be more than 0")
    base = base or 0.025
    longest = optional_seconds(message, "max_interval")
    if longest is not None and longest < base:
        raise Bad("max_interval", f"is {longest} s, must be at least base_interval, {base} s")
    return base, longest
