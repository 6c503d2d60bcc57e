"""Actions of routes → `model.Action`.

An action that cannot be carried out becomes `UnsupportedAction`: calls that match the route fail
and say why, all others go on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from envoy.extensions.path.rewrite.uri_template.v3 import uri_template_rewrite_pb2

from meshsdk.formats import Format
from meshsdk.matching import PathKind
from meshsdk.matching.templates import TemplateRewrite
from meshsdk.model import (
    Action,
    DirectResponseAction,
    ForwardAction,
    HedgePolicy,
    JsonBody,
    MirrorPolicy,
    NonForwardingAction,
    RedirectAction,
    RegexRewrite,
    RetryPolicy,
    RouteMatch,
    UnsupportedAction,
    WeightedCluster,
)
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    mutations,
    optional_seconds,
    struct,
    sub,
    text_format,
    type_name,
    unpack,
)
from meshsdk.xds.decode.filters import Overrides
from meshsdk.xds.decode.policies import (
    hash_policy,
    hedge_policy,
    internal_redirect,
    mirror_policy,
    regex_rewrite,
    retry_policy,
)

_DEFAULT_TIMEOUT: Final = 15.0
_MAX_WEIGHT: Final = 2**32 - 1
_REWRITE: Final = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig"
_NOT_FOUND: Final = {0: 503, 1: 404, 2: 500}
_PLUGINS: Final = (
    "envoy.extensions.router.cluster_specifiers.",
    "envoy.extensions.router.cluster_specifier.",
    "grpc.lookup.v1.",
)

# Fields of a RouteAction that add to a call which is routed rightly without them.
_NOTED: Final = ("rate_limits", "retry_policy_typed_config", "internal_redirect_action")


class Inherited:
    """What routes get from their virtual host."""

    __slots__ = ("hedge", "mirrors", "overrides", "retry")

    def __init__(
        self,
        retry: RetryPolicy | None,
        hedge: HedgePolicy | None,
        mirrors: tuple[MirrorPolicy, ...],
        overrides: Overrides,
    ) -> None:
        self.retry = retry
        self.hedge = hedge
        self.mirrors = mirrors
        self.overrides = overrides


class Actions:
    """Decodes the actions of one configuration, which has a say in some of their fields.

    Args:
        plugins: the declared cluster specifier plugins, and whether each is optional.
        body_limit: bytes that the body of a direct response may have.
    """

    def __init__(self, plugins: dict[str, bool], body_limit: int) -> None:
        self._plugins = plugins
        self._body_limit = body_limit

    def action(
        self, route: Any, match: RouteMatch, inherited: Inherited, own: Overrides, notes: Notes
    ) -> Action | None:
        """The action; None when the route is to be ignored (gRFC A47)."""
        which = route.WhichOneof("action")
        if which == "route":

            def forward(message: Any, notes: Notes) -> Action | None:
                return self._forward(message, match, inherited, own, notes)

            return sub("route", forward, route.route, notes)
        if which == "redirect":
            action = sub("redirect", _redirect, route.redirect, notes)
            if match.path.kind is PathKind.TEMPLATE and action.prefix_rewrite is not None:
                raise Bad("redirect.prefix_rewrite", "does not go together with path_match_policy")
            return action
        if which == "direct_response":
            return sub("direct_response", self._direct_response, route.direct_response, notes)
        if which == "non_forwarding_action":
            return NonForwardingAction()
        if which is None:
            raise Bad("action", "route, redirect or direct_response is needed")
        return UnsupportedAction(f"{which} is not supported by this SDK")

    # --- sending on ---

    def _forward(
        self,
        message: Any,
        match: RouteMatch,
        inherited: Inherited,
        own: Overrides,
        notes: Notes,
    ) -> Action | None:
        present = {field.name for field, _ in message.ListFields()}
        for name in _NOTED:
            if name in present:
                notes.append(f"{name}: is not supported, calls go without it")
        clusters = self._clusters(message, own, notes)
        action = _plain(message, present, clusters, inherited, notes)
        action = _rewrites(message, present, action, match, notes)
        action = _policies(message, present, action, inherited, notes)
        _check_upgrades(message)
        if clusters is None or isinstance(clusters, UnsupportedAction):
            return clusters
        return action

    def _clusters(
        self, message: Any, own: Overrides, notes: Notes
    ) -> tuple[WeightedCluster, ...] | UnsupportedAction | None:
        """The clusters; None when the route is to be ignored."""
        which = message.WhichOneof("cluster_specifier")
        if which == "cluster":
            if not message.cluster:
                raise Bad("cluster", "must not be empty")
            return (WeightedCluster(message.cluster, 1),)
        if which == "cluster_header":
            if not message.cluster_header:
                raise Bad("cluster_header", "must not be empty")
            return (WeightedCluster("", 1, header=message.cluster_header.lower()),)
        if which == "weighted_clusters":

            def weighted(message: Any, notes: Notes) -> tuple[WeightedCluster, ...]:
                return _weighted_clusters(message, own, notes)

            return sub(which, weighted, message.weighted_clusters, notes)
        if which is None:
            raise Bad("cluster", "cluster or weighted_clusters is needed")
        # gRFC A47: routes of an optional plugin that a client lacks are ignored.
        if self._is_optional(which, message):
            return None
        return UnsupportedAction(f"route.{which} is not supported by this SDK")

    def _is_optional(self, which: str, message: Any) -> bool:
        """Whether the cluster specifier plugin of a route is; raises `Bad` where it is unknown."""
        if which == "cluster_specifier_plugin":
            name = message.cluster_specifier_plugin
            if name not in self._plugins:
                raise Bad(which, f"{name!r} is not declared in cluster_specifier_plugins")
            return self._plugins[name]
        plugin = message.inline_cluster_specifier_plugin
        kind = type_name(plugin.extension.typed_config)
        if not (plugin.is_optional or kind.startswith(_PLUGINS)):
            raise Bad(f"{which}.extension.typed_config", f"{kind or 'an empty type'} is unknown")
        return bool(plugin.is_optional)

    # --- answering ---

    def _direct_response(self, message: Any, notes: Notes) -> Action:
        if not 200 <= message.status < 600:
            raise Bad("status", f"is {message.status}, must be from 200 to 599")
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
        if not message.HasField("body_format"):
            return DirectResponseAction(message.status, body)
        form = sub("body_format", _body_format, message.body_format, notes)
        if form is None:
            return UnsupportedAction("direct_response.body_format is not supported by this SDK")
        kind = message.body_format.content_type
        if not kind and isinstance(form, JsonBody):
            kind = "application/json"
        return DirectResponseAction(message.status, body, form, kind)


def _body_format(message: Any, notes: Notes) -> Format | JsonBody | None:
    which = message.WhichOneof("format")
    missing = "" if message.omit_empty_values else "-"
    if which == "text_format":
        return text_format("text_format", message.text_format, missing=missing)
    if which == "json_format":
        return JsonBody(_json_formats(struct(message.json_format), missing))
    if which == "text_format_source":
        if message.text_format_source.WhichOneof("specifier") != "inline_string":
            return None
        text = message.text_format_source.inline_string
        return text_format("text_format_source.inline_string", text, missing=missing)
    raise Bad("format", "text_format, json_format or text_format_source is needed")


def _json_formats(value: Any, missing: str) -> Any:
    if isinstance(value, str):
        return text_format("json_format", value, missing=missing)
    if isinstance(value, dict):
        return {key: _json_formats(part, missing) for key, part in sorted(value.items())}
    return [_json_formats(part, missing) for part in value] if isinstance(value, list) else value


# --- the parts of a RouteAction ----------------------------------------------------------------


def _plain(
    message: Any,
    present: set[str],
    clusters: tuple[WeightedCluster, ...] | UnsupportedAction | None,
    inherited: Inherited,
    notes: Notes,
) -> ForwardAction:
    """Clusters and times."""
    timeout, max_grpc_timeout, kept = _times(message, present, notes)
    weighted = message.weighted_clusters
    status = message.cluster_not_found_response_code
    if status not in _NOT_FOUND:
        raise Bad("cluster_not_found_response_code", f"{status} is not known")
    subset = message.metadata_match.filter_metadata
    return ForwardAction(
        clusters if isinstance(clusters, tuple) else (),
        timeout,
        max_grpc_timeout,
        inherited.retry,
        host_rewrite=_header_safe("host_rewrite_literal", message.host_rewrite_literal),
        random_header=weighted.header_name.lower(),
        hashed_choice=weighted.use_hash_policy.value,
        not_found_status=_NOT_FOUND[status],
        mirrors=inherited.mirrors,
        hedge=inherited.hedge,
        high_priority=message.priority == 1,
        subset=struct(subset["envoy.lb"]) if "envoy.lb" in subset else {},
        **kept,
    )


def _times(
    message: Any, present: set[str], notes: Notes
) -> tuple[float | None, float | None, dict[str, Any]]:
    """(timeout, upper limit for the caller's gRPC deadline, all as configured).

    An absent `timeout` is 15 s and 0 is none, as in Envoy. `max_stream_duration` limits the whole
    call as the timeout does: the shorter one counts.
    """
    configured = optional_seconds(message, "timeout")
    timeout = _DEFAULT_TIMEOUT if configured is None else configured or None
    kept: dict[str, Any] = {
        "route_timeout": configured,
        "idle_timeout": optional_seconds(message, "idle_timeout"),
        "flush_timeout": optional_seconds(message, "flush_timeout"),
    }
    if "max_stream_duration" not in present:
        kept["grpc_timeout_offset"] = optional_seconds(message, "grpc_timeout_offset")
        return timeout, optional_seconds(message, "max_grpc_timeout") or None, kept
    longest, grpc, offset = sub(
        "max_stream_duration", _stream_duration, message.max_stream_duration, notes
    )
    if longest:
        timeout = min(timeout or longest, longest)
    kept |= {"max_stream_duration": longest, "grpc_timeout_offset": offset}
    return timeout, grpc or None, kept


def _stream_duration(message: Any, notes: Notes) -> tuple[float | None, float | None, float | None]:
    return (
        optional_seconds(message, "max_stream_duration"),
        optional_seconds(message, "grpc_timeout_header_max"),
        optional_seconds(message, "grpc_timeout_header_offset"),
    )


def _rewrites(
    message: Any, present: set[str], action: ForwardAction, match: RouteMatch, notes: Notes
) -> ForwardAction:
    """Path and host."""
    ways = {"prefix_rewrite", "regex_rewrite", "path_rewrite_policy", "path_rewrite"} & present
    host_ways = {"host_rewrite_header", "host_rewrite_path_regex", "host_rewrite"} & present
    if not (ways or host_ways or present & {"auto_host_rewrite", "append_x_forwarded_host"}):
        return action
    if len(ways) > 1:
        raise Bad(max(ways), f"only one of {', '.join(sorted(ways))} may be set")
    if match.path.kind is PathKind.TEMPLATE and "prefix_rewrite" in ways:
        raise Bad("prefix_rewrite", "does not go together with path_match_policy")
    formats: dict[str, Any] = {}
    if "path_rewrite" in ways:
        formats["path_format"] = text_format("path_rewrite", message.path_rewrite)
    if "host_rewrite" in host_ways:
        formats["host_format"] = text_format("host_rewrite", message.host_rewrite, missing="-")
    return replace(
        action,
        prefix_rewrite=_header_safe("prefix_rewrite", message.prefix_rewrite),
        regex_rewrite=_regex(message, present, "regex_rewrite", notes),
        template_rewrite=_template(message, match) if "path_rewrite_policy" in ways else None,
        host_regex=_regex(message, present, "host_rewrite_path_regex", notes),
        host_header=message.host_rewrite_header.lower(),
        host_of_endpoint=message.auto_host_rewrite.value,
        forwarded_host=message.append_x_forwarded_host,
        **formats,
    )


def _regex(message: Any, present: set[str], field: str, notes: Notes) -> RegexRewrite | None:
    if field not in present:
        return None
    return sub(field, regex_rewrite, getattr(message, field), notes)


def _template(message: Any, match: RouteMatch) -> TemplateRewrite:
    field = "path_rewrite_policy.typed_config"
    container = message.path_rewrite_policy.typed_config
    kind = type_name(container)
    if kind != _REWRITE:
        raise Bad(field, f"{kind or 'an empty type'} is not supported")
    config = unpack(container, uri_template_rewrite_pb2.UriTemplateRewriteConfig)
    try:
        rewrite = TemplateRewrite(config.path_template_rewrite)
    except ValueError as error:
        raise Bad(f"{field}.path_template_rewrite", str(error)) from None
    if match.path.template is None:
        raise Bad("path_rewrite_policy", "needs a path_match_policy of the same kind")
    missing = sorted(rewrite.variables - set(match.path.template.variables))
    if missing:
        problem = f"{rewrite.pattern!r}: {match.path.value!r} has no variable {missing[0]!r}"
        raise Bad(f"{field}.path_template_rewrite", problem)
    return rewrite


def _policies(
    message: Any, present: set[str], action: ForwardAction, inherited: Inherited, notes: Notes
) -> ForwardAction:
    """Retries, hedging, mirrors, hash keys, internal redirects."""
    found: dict[str, Any] = {}
    if "retry_policy" in present:
        found["retry"] = sub("retry_policy", retry_policy, message.retry_policy, notes)
    if "hedge_policy" in present:
        found["hedge"] = sub("hedge_policy", hedge_policy, message.hedge_policy, notes)
    if "request_mirror_policies" in present:
        policies = message.request_mirror_policies
        found["mirrors"] = tuple(each("request_mirror_policies", policies, mirror_policy, notes))
    if "hash_policy" in present:
        policies = each("hash_policy", message.hash_policy, hash_policy, notes)
        found["hash_policy"] = tuple(policy for policy in policies if policy is not None)
    if "internal_redirect_policy" in present:
        field = "internal_redirect_policy"
        policy = message.internal_redirect_policy
        found["internal_redirect"] = sub(field, internal_redirect, policy, notes)
        notes.append(f"{field}: is not supported, redirects go to the caller")
    return replace(action, **found) if found else action


def _check_upgrades(message: Any) -> None:
    seen: set[str] = set()
    for index, upgrade in enumerate(message.upgrade_configs):
        kind = upgrade.upgrade_type.lower()
        if kind in seen:
            raise Bad(f"upgrade_configs[{index}].upgrade_type", f"{kind!r} comes twice")
        seen.add(kind)
        if upgrade.HasField("connect_config") and kind not in ("connect", "connect-udp"):
            problem = f"is for CONNECT, not for {upgrade.upgrade_type}"
            raise Bad(f"upgrade_configs[{index}].connect_config", problem)


def _weighted_clusters(message: Any, own: Overrides, notes: Notes) -> tuple[WeightedCluster, ...]:
    def weighted(message: Any, notes: Notes) -> WeightedCluster:
        return _weighted_cluster(message, own, notes)

    found = each("clusters", message.clusters, weighted, notes)
    total = sum(item.weight for item in found)
    if not 0 < total <= _MAX_WEIGHT:
        raise Bad("clusters", f"the weights sum to {total}, must be from 1 to 2^32-1")
    # A cluster of weight 0 gets no call, so nothing needs to wait for it.
    return tuple(item for item in found if item.weight)


def _weighted_cluster(message: Any, own: Overrides, notes: Notes) -> WeightedCluster:
    if message.name and message.cluster_header:
        raise Bad("cluster_header", "only one of name and cluster_header may be set")
    if not message.name and not message.cluster_header:
        raise Bad("name", "must not be empty")
    if not message.HasField("weight"):
        raise Bad("weight", "is needed")
    overrides = own.below(message, notes)
    return WeightedCluster(
        message.name,
        message.weight.value,
        mutations(message, notes),
        _header_safe("host_rewrite_literal", message.host_rewrite_literal),
        overrides.own.fault,
        message.cluster_header.lower(),
        overrides.cors() if overrides.own.cors is not None else None,
    )


# --- redirects -------------------------------------------------------------------------------

_STATUS: Final = {0: 301, 1: 302, 2: 303, 3: 307, 4: 308}


def _redirect(message: Any, notes: Notes) -> RedirectAction:
    present = {field.name for field, _ in message.ListFields()}
    status = _STATUS.get(message.response_code)
    if status is None:
        raise Bad("response_code", f"{message.response_code} is not known")
    if message.port_redirect > 65535:
        raise Bad("port_redirect", f"is {message.port_redirect}, must be at most 65535")
    form = None
    if "path_rewrite" in present and message.path_rewrite:
        form = text_format("path_rewrite", message.path_rewrite)
    return RedirectAction(
        status=status,
        scheme=_header_safe("scheme_redirect", message.scheme_redirect),
        https=message.https_redirect,
        host=_header_safe("host_redirect", message.host_redirect),
        port=message.port_redirect or None,
        path=_header_safe("path_redirect", message.path_redirect),
        prefix_rewrite=_header_safe("prefix_rewrite", message.prefix_rewrite),
        regex_rewrite=_regex(message, present, "regex_rewrite", notes),
        strip_query=message.strip_query,
        path_format=form,
    )


def _header_safe(field: str, value: str) -> str | None:
    """A text that becomes part of a header; None when it is empty."""
    if any(c in value for c in "\r\n\0"):
        raise Bad(field, "must not contain CR, LF or NUL")
    return value or None
