"""What a route says beside its action: retries, hedging, hash keys, mirrors, internal redirects."""

from __future__ import annotations

import math
from typing import Any, Final

import re2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2

from meshsdk.matching import ALWAYS
from meshsdk.model import (
    HashKind,
    HashPolicy,
    HeaderChange,
    HedgePolicy,
    InternalRedirect,
    MirrorPolicy,
    RateLimitedBackOff,
    RegexRewrite,
    ResetFormat,
    RetryPolicy,
)
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    changeable,
    each,
    fraction,
    header_match,
    header_option,
    optional_seconds,
    regex,
    seconds,
    sub,
    type_name,
    unpack,
)

# --- retries and hedging ---------------------------------------------------------------------

_RETRY: Final = "envoy.extensions.retry"
_PRIORITIES: Final = f"{_RETRY}.priority.previous_priorities.v3.PreviousPrioritiesConfig"
_PREVIOUS_HOSTS: Final = f"{_RETRY}.host.previous_hosts.v3.PreviousHostsPredicate"
_OMIT_CANARY: Final = f"{_RETRY}.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate"


def retry_policy(message: Any, notes: Notes) -> RetryPolicy:
    """`envoy.config.route.v3.RetryPolicy`"""
    present = {field.name for field, _ in message.ListFields()}
    base, longest = 0.025, None
    if "retry_back_off" in present:
        base, longest = sub("retry_back_off", _back_off, message.retry_back_off, notes)
    limited = None
    if "rate_limited_retry_back_off" in present:
        field = "rate_limited_retry_back_off"
        limited = sub(field, _rate_limited, message.rate_limited_retry_back_off, notes)
    names = (name.strip() for name in message.retry_on.split(","))
    hosts = {type_name(item.typed_config) for item in message.retry_host_predicate}
    for kind in sorted(hosts - {_PREVIOUS_HOSTS, _OMIT_CANARY}):
        notes.append(f"retry_host_predicate: {kind or 'an empty type'} is not supported")
    if "retry_options_predicates" in present:
        notes.append("retry_options_predicates: is not supported, retries go without it")
    return RetryPolicy(
        tuple(name for name in names if name),
        message.num_retries.value if "num_retries" in present else 1,
        optional_seconds(message, "per_try_timeout") or None,
        tuple(message.retriable_status_codes),
        base,
        10 * base if longest is None else longest,
        optional_seconds(message, "per_try_idle_timeout") or None,
        tuple(each("retriable_headers", message.retriable_headers, header_match, notes)),
        tuple(
            each(
                "retriable_request_headers", message.retriable_request_headers, header_match, notes
            )
        ),
        limited,
        _PREVIOUS_HOSTS in hosts,
        _OMIT_CANARY in hosts,
        _priorities(message, notes) if "retry_priority" in present else None,
        message.host_selection_retry_max_attempts or 1,
        bool(getattr(message, "refresh_cluster_on_retry", False)),
    )


def _priorities(message: Any, notes: Notes) -> int | None:
    container = message.retry_priority.typed_config
    kind = type_name(container)
    if kind != _PRIORITIES:
        notes.append(f"retry_priority: {kind or 'an empty type'} is not supported")
        return None
    config = unpack(container, previous_priorities_config_pb2.PreviousPrioritiesConfig)
    frequency: int = config.update_frequency
    if frequency <= 0:
        raise Bad("retry_priority.typed_config.update_frequency", "must be more than 0")
    return frequency


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


def _rate_limited(message: Any, notes: Notes) -> RateLimitedBackOff:
    headers = tuple(each("reset_headers", message.reset_headers, _reset_header, notes))
    if not headers:
        raise Bad("reset_headers", "must not be empty")
    longest = optional_seconds(message, "max_interval")
    if longest is None:
        return RateLimitedBackOff(headers)
    if not longest:
        raise Bad("max_interval", "must be more than 0")
    return RateLimitedBackOff(headers, math.ceil(longest * 1000) / 1000)


def _reset_header(message: Any, notes: Notes) -> tuple[str, ResetFormat]:
    if not message.name:
        raise Bad("name", "must not be empty")
    if message.format not in (0, 1):
        raise Bad("format", f"{message.format} is not known")
    return message.name.lower(), ResetFormat(message.format)


def hedge_policy(message: Any, notes: Notes) -> HedgePolicy:
    first = message.initial_requests.value if message.HasField("initial_requests") else 1
    if first < 1:
        raise Bad("initial_requests", "must be at least 1")
    return HedgePolicy(
        first,
        fraction("additional_request_chance", message.additional_request_chance),
        message.hedge_on_per_try_timeout,
    )


# --- rewriting -------------------------------------------------------------------------------


def regex_rewrite(message: Any, notes: Notes) -> RegexRewrite:
    """`envoy.type.matcher.v3.RegexMatchAndSubstitute`"""
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


# --- hash keys -------------------------------------------------------------------------------


def hash_policy(message: Any, notes: Notes) -> HashPolicy | None:
    """One hash policy; None for a source that gives nothing."""
    which = message.WhichOneof("policy_specifier")
    if which is None:
        raise Bad("policy_specifier", "header, cookie, connection_properties … is needed")
    kind, source, terminal = HashKind(which), getattr(message, which), message.terminal
    if kind is HashKind.HEADER:
        if not source.header_name:
            raise Bad("header.header_name", "must not be empty")
        rewrite = None
        if source.HasField("regex_rewrite"):
            rewrite = sub("header.regex_rewrite", regex_rewrite, source.regex_rewrite, notes)
        return HashPolicy(kind, source.header_name.lower(), terminal, rewrite)
    if kind is HashKind.COOKIE:
        if not source.name:
            raise Bad("cookie.name", "must not be empty")
        ttl = optional_seconds(source, "ttl")
        attributes = tuple((item.name, item.value) for item in source.attributes)
        whole = None if ttl is None else int(ttl)
        return HashPolicy(kind, source.name, terminal, None, whole, source.path, attributes)
    if kind is HashKind.SOURCE_IP:
        return HashPolicy(kind, "", terminal) if source.source_ip else None
    if kind is HashKind.FILTER_STATE:  # gRPC says nothing against one without a key
        return HashPolicy(kind, source.key, terminal) if source.key else None
    if not source.name:
        raise Bad("query_parameter.name", "must not be empty")
    return HashPolicy(kind, source.name, terminal)


# --- mirrors ---------------------------------------------------------------------------------


def mirror_policy(message: Any, notes: Notes) -> MirrorPolicy:
    if bool(message.cluster) == bool(message.cluster_header):
        raise Bad("", "exactly one of cluster and cluster_header is needed")
    share = ALWAYS
    if message.HasField("runtime_fraction"):
        default = message.runtime_fraction.default_value
        share = fraction("runtime_fraction.default_value", default)
    changes = each("request_headers_mutations", message.request_headers_mutations, _change, notes)
    return MirrorPolicy(
        message.cluster,
        message.cluster_header.lower(),
        share,
        not message.disable_shadow_host_suffix_append,
        message.host_rewrite_literal,
        message.trace_sampled.value if message.HasField("trace_sampled") else None,
        tuple(change for change in changes if change is not None),
    )


def _change(message: Any, notes: Notes) -> HeaderChange | None:
    which = message.WhichOneof("action")
    if which == "append":
        return HeaderChange(sub(which, header_option, message.append, notes))
    if which == "remove":
        return HeaderChange(remove=changeable("remove", message.remove))
    notes.append(f"{which or 'action'}: is not supported, copies go without it")
    return None


# --- internal redirects ----------------------------------------------------------------------

_PREDICATES: Final = "envoy.extensions.internal_redirect."
_NOT_COPIED: Final = frozenset({":status", "host", ":path", ":authority", ":method", ":scheme"})


def internal_redirect(message: Any, notes: Notes) -> InternalRedirect:
    """Kept as configured: the caller follows its redirects itself."""
    kinds = [type_name(item.typed_config) for item in message.predicates]
    for index, kind in enumerate(kinds):
        if not kind.startswith(_PREDICATES):
            raise Bad(
                f"predicates[{index}].typed_config", f"{kind or 'an empty type'} is not known"
            )
    names = [name.lower() for name in message.response_headers_to_copy]
    for index, name in enumerate(names):
        if name.startswith(":") or name in _NOT_COPIED:
            raise Bad(f"response_headers_to_copy[{index}]", f"{name!r} may not be copied")
    statuses = tuple(s for s in message.redirect_response_codes if s in (301, 302, 303, 307, 308))
    given = message.HasField("max_internal_redirects")
    return InternalRedirect(
        message.max_internal_redirects.value if given else 1,
        statuses if message.redirect_response_codes else (302,),
        message.allow_cross_scheme_redirect,
        tuple(kinds),
        tuple(names),
    )
