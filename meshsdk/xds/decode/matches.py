"""Route matches and match trees → `model.RouteMatch`, `model.MatchTree`.

A *condition* that cannot be evaluated rejects the configuration: with a guess at it, other routes
would get its calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.path.match.uri_template.v3 import uri_template_match_pb2
from envoy.type.matcher.v3 import http_inputs_pb2

from meshsdk.matching import (
    CookieMatch,
    MetadataMatch,
    PathKind,
    PathMatch,
    QueryMatch,
    StringKind,
    StringMatch,
    ValueKind,
    ValueMatch,
)
from meshsdk.model import MatchTree, Predicate, Route, RouteMatch
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    fraction,
    header_match,
    regex,
    string_match,
    sub,
    type_name,
    unpack,
)
from meshsdk.xds.schema import amended

_PATH_KINDS: Final = {
    "prefix": PathKind.PREFIX,
    "path": PathKind.EXACT,
    "path_separated_prefix": PathKind.SEGMENT_PREFIX,
}
_TEMPLATE: Final = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"


def route_match(message: Any, notes: Notes) -> RouteMatch:
    present = {field.name for field, _ in message.ListFields()}
    path = _path_match(message, present)
    if len(present) == 1 and path.kind is not PathKind.CONNECT:
        return RouteMatch(path)
    share, key = None, ""
    if "runtime_fraction" in present:
        runtime = message.runtime_fraction
        share, key = (
            fraction("runtime_fraction.default_value", runtime.default_value),
            (runtime.runtime_key),
        )
    tls = message.tls_context
    return RouteMatch(
        path,
        _each(message, present, "headers", header_match, notes),
        _each(message, present, "query_parameters", _query_match, notes),
        share,
        "grpc" in present,
        _each(message, present, "cookies", _cookie_match, notes),
        _each(message, present, "dynamic_metadata", _metadata_match, notes),
        tls.presented.value if tls.HasField("presented") else None,
        tls.validated.value if tls.HasField("validated") else None,
        "filter_state" in present,
        key,
    )


def _each(
    message: Any, present: set[str], field: str, decode: Callable[[Any, Notes], Any], notes: Notes
) -> tuple[Any, ...]:
    return tuple(each(field, getattr(message, field), decode, notes)) if field in present else ()


def _path_match(message: Any, present: set[str]) -> PathMatch:
    which = message.WhichOneof("path_specifier")
    if which is None:
        raise Bad("path_specifier", "prefix, path, path_separated_prefix or safe_regex is needed")
    if which == "connect_matcher":
        return PathMatch(PathKind.CONNECT, "")
    if which == "safe_regex":
        return PathMatch(PathKind.REGEX, regex("safe_regex", message.safe_regex))
    if which == "path_match_policy":
        return PathMatch(PathKind.TEMPLATE, _template(message.path_match_policy))
    value = getattr(message, which)
    if which == "path_separated_prefix" and (
        len(value) < 2 or value.endswith("/") or "?" in value or "#" in value
    ):
        problem = "must be longer than 1, must not end in / nor hold ? or #"
        raise Bad(which, f"{value!r} {problem}")
    ignore_case = "case_sensitive" in present and not message.case_sensitive.value
    return PathMatch(_PATH_KINDS[which], value, ignore_case)


def _template(policy: Any) -> str:
    kind = type_name(policy.typed_config)
    if kind != _TEMPLATE:
        raise Bad("path_match_policy.typed_config", f"{kind or 'an empty type'} is not supported")
    config = unpack(policy.typed_config, uri_template_match_pb2.UriTemplateMatchConfig)
    try:
        PathMatch(PathKind.TEMPLATE, config.path_template)
    except ValueError as error:
        raise Bad("path_match_policy.typed_config.path_template", str(error)) from None
    template: str = config.path_template
    return template


def _query_match(message: Any, notes: Notes) -> QueryMatch:
    if not message.name:
        raise Bad("name", "must not be empty")
    which = message.WhichOneof("query_parameter_match_specifier")
    if which == "string_match":
        string = sub("string_match", string_match, message.string_match, notes)
        return QueryMatch(message.name, string)
    return QueryMatch(message.name, present=message.present_match if which else True)


def _cookie_match(message: Any, notes: Notes) -> CookieMatch:
    if not message.name:
        raise Bad("name", "must not be empty")
    string = sub("string_match", string_match, message.string_match, notes)
    return CookieMatch(message.name, string, message.invert_match)


def _metadata_match(message: Any, notes: Notes) -> MetadataMatch:
    if not message.filter:
        raise Bad("filter", "must not be empty")
    path = tuple(segment.key for segment in message.path)
    value = sub("value", _value_match, message.value, notes)
    return MetadataMatch(message.filter, path, value, message.invert)


def _value_match(message: Any, notes: Notes) -> ValueMatch:
    which = message.WhichOneof("match_pattern")
    if which is None:
        raise Bad("", "no pattern is given")
    kind, inner = ValueKind(which), getattr(message, which)
    if kind is ValueKind.STRING:
        return ValueMatch(kind, sub(which, string_match, inner, notes))
    if kind in (ValueKind.BOOL, ValueKind.PRESENT):
        return ValueMatch(kind, flag=inner)
    if kind is ValueKind.DOUBLE:
        exact = inner.WhichOneof("match_pattern") == "exact"
        span = (inner.exact, inner.exact) if exact else (inner.range.start, inner.range.end)
        return ValueMatch(kind, number=span, exact=exact)
    if kind is ValueKind.LIST:
        return ValueMatch(
            kind, parts=(sub("list_match.one_of", _value_match, inner.one_of, notes),)
        )
    if kind is ValueKind.OR:
        parts = each("or_match.value_matchers", inner.value_matchers, _value_match, notes)
        return ValueMatch(kind, parts=tuple(parts))
    return ValueMatch(kind)


# --- trees -----------------------------------------------------------------------------------

_INPUT: Final = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
_ROUTE: Final = "envoy.config.route.v3.Route"
_ROUTE_LIST: Final = "envoy.config.route.v3.RouteList"

MakeRoute = Callable[[Any, Notes], Route]


class Trees:
    """Decodes the match trees of one virtual host, whose routes `make` decodes."""

    def __init__(self, make: MakeRoute) -> None:
        self._make = make

    def tree(self, message: Any, notes: Notes) -> MatchTree:
        """`xds.type.matcher.v3.Matcher`"""
        otherwise = None
        if message.HasField("on_no_match"):
            otherwise = sub("on_no_match", self._outcome, message.on_no_match, notes)
        which = message.WhichOneof("matcher_type")
        if which == "matcher_list":
            matchers = message.matcher_list.matchers
            branches = each("matcher_list.matchers", matchers, self._branch, notes)
            return MatchTree(tuple(branches), otherwise=otherwise)
        if which is None:
            if otherwise is None:
                raise Bad("", "matcher_list, matcher_tree or on_no_match is needed")
            return MatchTree(otherwise=otherwise)
        tree = message.matcher_tree
        header = sub("matcher_tree.input", _header_input, tree.input, notes)
        kind = tree.WhichOneof("tree_type")
        if kind not in ("exact_match_map", "prefix_match_map"):
            found = f"{kind} is not supported" if kind else "a map is needed"
            raise Bad("matcher_tree", f"{found}: exact_match_map or prefix_match_map")
        entries = getattr(tree, kind).map
        table = {
            key: sub(f'matcher_tree.{kind}.map["{key}"]', self._outcome, entries[key], notes)
            for key in sorted(entries)
        }
        return MatchTree((), header, table, kind == "prefix_match_map", otherwise)

    def _branch(self, message: Any, notes: Notes) -> Any:
        predicate = sub("predicate", _predicate, message.predicate, notes)
        return predicate, sub("on_match", self._outcome, message.on_match, notes)

    def _outcome(self, message: Any, notes: Notes) -> Any:
        which = message.WhichOneof("on_match")
        if which == "matcher":
            return sub("matcher", self.tree, message.matcher, notes)
        if which is None:
            raise Bad("", "matcher or action is needed")
        container = message.action.typed_config
        kind = type_name(container)
        if kind == _ROUTE:
            route = unpack(container, amended(route_components_pb2.Route))
            return (sub("action.typed_config", self._make, route, notes),)
        if kind == _ROUTE_LIST:
            found = unpack(container, amended(route_components_pb2.RouteList))
            return tuple(each("action.typed_config.routes", found.routes, self._make, notes))
        raise Bad("action.typed_config", f"is {kind or 'empty'}, a Route or RouteList is needed")


def _header_input(message: Any, notes: Notes) -> str:
    kind = type_name(message.typed_config)
    if kind != _INPUT:
        raise Bad("typed_config", f"is {kind or 'empty'}, routes are found by request headers only")
    config = unpack(message.typed_config, http_inputs_pb2.HttpRequestHeaderMatchInput)
    if not config.header_name:
        raise Bad("typed_config.header_name", "must not be empty")
    name: str = config.header_name.lower()
    return name


def _predicate(message: Any, notes: Notes) -> Predicate:
    which = message.WhichOneof("match_type")
    if which == "single_predicate":
        return sub(which, _single, message.single_predicate, notes)
    if which in ("or_matcher", "and_matcher"):
        parts = tuple(each(which, getattr(message, which).predicate, _predicate, notes))
        return Predicate(some=parts) if which == "or_matcher" else Predicate(every=parts)
    if which == "not_matcher":
        return Predicate(some=(sub(which, _predicate, message.not_matcher, notes),), negated=True)
    raise Bad("", "single_predicate, or_matcher, and_matcher or not_matcher is needed")


def _single(message: Any, notes: Notes) -> Predicate:
    header = sub("input", _header_input, message.input, notes)
    if message.WhichOneof("matcher") != "value_match":
        raise Bad("", "value_match is needed, custom_match is not supported")
    value = message.value_match
    if value.WhichOneof("match_pattern") == "safe_regex":
        pattern = regex("value_match.safe_regex", value.safe_regex)
        return Predicate(header, StringMatch(StringKind.REGEX, pattern))
    return Predicate(header, sub("value_match", string_match, value, notes))
