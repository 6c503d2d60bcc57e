"""RouteConfiguration → `model.RouteConfiguration`.

What this SDK does not know is never misrouted:

- A *condition* that cannot be evaluated rejects the configuration: with a guess at the condition,
  other routes would get its calls.
- An *action* that cannot be carried out becomes `UnsupportedAction`: calls that match the route
  fail and say why, all others go on.
- What only adds to a call that is routed rightly (rate limits, tracing) is left out with a note for
  the log.

Sources: Envoy `config/route/v3/route_components.proto` with its validation rules; gRFC A28, A31,
A39, A44, A47.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.config.route.v3 import route_pb2

from meshsdk.model import (
    RequireTls,
    Route,
    RouteConfiguration,
    VirtualCluster,
    VirtualHost,
)
from meshsdk.xds.decode.actions import Actions, Inherited
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    entry,
    filter_metadata,
    header_match,
    mutations,
    sub,
)
from meshsdk.xds.decode.filters import Overrides, filter_overrides
from meshsdk.xds.decode.matches import Trees, route_match
from meshsdk.xds.decode.policies import hedge_policy, mirror_policy, retry_policy
from meshsdk.xds.decode.rules import check_rules
from meshsdk.xds.resources import ROUTE, Decoder
from meshsdk.xds.schema import amended


def _decode(message: Any, notes: Notes) -> RouteConfiguration:
    return entry("RouteConfiguration", message.name, route_configuration, message, notes)


DECODER: Final = Decoder(
    ROUTE,
    "RouteConfiguration",
    False,
    amended(route_pb2.RouteConfiguration).FromString,
    "name",
    _decode,
)

# Fields that change which route or virtual host a call gets.
_REJECTED_IN_CONFIG: Final = frozenset({"vhds"})
_NOTED_IN_HOST: Final = frozenset({"rate_limits", "retry_policy_typed_config"})
_REJECTED_ANYWHERE: Final = "route_specifiers"


def route_configuration(message: Any, notes: Notes) -> RouteConfiguration:
    """Decode a RouteConfiguration; raises `Bad`."""
    check_rules(message)
    _look_at_fields(message, _REJECTED_IN_CONFIG, frozenset(), notes)
    plugins = {item.extension.name: item.is_optional for item in message.cluster_specifier_plugins}
    limit = 4096
    if message.HasField("max_direct_response_body_size_bytes"):
        limit = message.max_direct_response_body_size_bytes.value
    hosts = _Hosts(message, Actions(plugins, limit), notes)
    decoded = each("virtual_hosts", message.virtual_hosts, hosts.virtual_host, notes)
    _check_domains(decoded)
    return RouteConfiguration(
        message.name,
        tuple(decoded),
        mutations(message, notes),
        message.most_specific_header_mutations_wins,
        message.ignore_port_in_host_matching,
        message.vhost_header.lower(),
        message.ignore_path_parameters_in_path_matching,
    )


def _look_at_fields(
    message: Any, rejected: frozenset[str], noted: frozenset[str], notes: Notes
) -> set[str]:
    """Names of the fields that are set; rejects or notes those that the SDK does not honour."""
    present = {field.name for field, _ in message.ListFields()}
    if _REJECTED_ANYWHERE in present:
        raise Bad(_REJECTED_ANYWHERE, "is not supported")
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


class _Hosts:
    """Decodes the virtual hosts of one configuration, which has a say in some of their fields."""

    def __init__(self, config: Any, actions: Actions, notes: Notes) -> None:
        self._actions = actions
        self._overrides = Overrides(filter_overrides(config, notes))
        policies = config.request_mirror_policies
        self._mirrors = tuple(each("request_mirror_policies", policies, mirror_policy, notes))

    def virtual_host(self, message: Any, notes: Notes) -> VirtualHost:
        if not message.domains:
            raise Bad("domains", "must not be empty")
        present = _look_at_fields(message, frozenset(), _NOTED_IN_HOST, notes)
        if "matcher" in present and message.routes:
            raise Bad("matcher", "only one of matcher and routes may be set")
        inherited = self._inherited(message, present, notes)

        def route(item: Any, notes: Notes) -> Route | None:
            return self._route(item, inherited, notes)

        routes = each("routes", message.routes, route, notes)
        tree = None
        if "matcher" in present:
            trees = Trees(lambda item, notes: self._leaf(item, inherited, notes))
            tree = sub("matcher", trees.tree, message.matcher, notes)
        if message.require_tls not in (0, 1, 2):
            raise Bad("require_tls", f"{message.require_tls} is not known")
        clusters = each("virtual_clusters", message.virtual_clusters, _virtual_cluster, notes)
        return VirtualHost(
            message.name,
            tuple(message.domains),
            tuple(route for route in routes if route is not None),
            mutations(message, notes),
            inherited.overrides.fault(),
            tree,
            RequireTls(message.require_tls),
            tuple(clusters),
            message.include_request_attempt_count,
            message.include_attempt_count_in_response,
            filter_metadata(message.metadata) if "metadata" in present else {},
        )

    def _inherited(self, message: Any, present: set[str], notes: Notes) -> Inherited:
        retry = hedge = None
        if "retry_policy" in present:
            retry = sub("retry_policy", retry_policy, message.retry_policy, notes)
        if "hedge_policy" in present:
            hedge = sub("hedge_policy", hedge_policy, message.hedge_policy, notes)
        mirrors = self._mirrors
        if "request_mirror_policies" in present:
            policies = message.request_mirror_policies
            mirrors = tuple(each("request_mirror_policies", policies, mirror_policy, notes))
        overrides = self._overrides.below(message, notes)
        if "cors" in present:
            overrides = overrides.with_cors(message.cors, notes)
        return Inherited(retry, hedge, mirrors, overrides)

    def _leaf(self, message: Any, inherited: Inherited, notes: Notes) -> Route:
        route = self._route(message, inherited, notes)
        if route is None:
            raise Bad("", "a route that is ignored cannot stand in a tree")
        return route

    def _route(self, message: Any, inherited: Inherited, notes: Notes) -> Route | None:
        """A route; None when no call of this SDK can ever choose it."""
        present = _look_at_fields(message, frozenset(), frozenset(), notes)
        if "match" not in present:
            raise Bad("match", "is needed")
        match = sub("match", route_match, message.match, notes)
        overrides = inherited.overrides.below(message, notes)
        if "route" in present and message.route.HasField("cors"):
            overrides = overrides.with_cors(message.route.cors, notes)
        action = self._actions.action(message, match, inherited, overrides, notes)
        changes = mutations(message, notes)
        if action is None:
            return None
        return Route(
            message.name,
            match,
            action,
            changes,
            overrides.own.fault,
            overrides.cors(),
            overrides.own.local_rate_limit,
            filter_metadata(message.metadata) if "metadata" in present else {},
        )


def _virtual_cluster(message: Any, notes: Notes) -> VirtualCluster:
    if not message.headers:
        raise Bad("headers", "must not be empty")
    return VirtualCluster(
        message.name, tuple(each("headers", message.headers, header_match, notes))
    )
