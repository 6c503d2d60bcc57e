"""Other paths, other hosts, redirects."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from meshsdk.formats import Context, Exchange
from meshsdk.matching import PathKind, PathMatch, compile_regex
from meshsdk.model import ForwardAction, RedirectAction, RegexRewrite
from meshsdk.routing.request import Headers, Request

_WHOLE = (PathKind.REGEX, PathKind.CONNECT, PathKind.TEMPLATE)

_GROUP = re.compile(r"\\(.)")


@lru_cache(maxsize=1024)
def _substituter(pattern: str, substitution: str) -> Callable[[str], str]:
    """As RE2's `GlobalReplace`: \\0 is the whole match, \\1 to \\9 are its groups."""
    pieces: list[str | int] = []
    position = 0
    for found in _GROUP.finditer(substitution):
        pieces.append(substitution[position : found.start()])
        pieces.append(int(found[1]) if found[1].isdecimal() else found[1])
        position = found.end()
    pieces.append(substitution[position:])

    def expand(match: Any) -> str:
        return "".join(p if isinstance(p, str) else match[p] or "" for p in pieces)

    regex = compile_regex(pattern)
    return lambda text: str(regex.sub(expand, text))


def replaced(rewrite: RegexRewrite, text: str) -> str:
    """A text with every match of the expression substituted."""
    return _substituter(rewrite.pattern, rewrite.substitution)(text)


def split_target(target: str) -> tuple[str, str]:
    """(path, query and fragment)"""
    end = min((i for i in (target.find("?"), target.find("#")) if i >= 0), default=len(target))
    return target[:end], target[end:]


def rewrite_path(
    target: str, match: PathMatch, prefix: str | None, regex: RegexRewrite | None
) -> str:
    """Path with query after `prefix_rewrite` or `regex_rewrite`; the query stays.

    A prefix rewrite replaces what the route names of the path, and all of it where the route
    matched by expression; path parameters that were ignored stay behind it. A rewrite that leaves
    nothing changes nothing.
    """
    if not prefix and regex is None:
        return target
    path, rest = split_target(target)
    if prefix:
        if match.kind in _WHOLE:
            return prefix + rest
        matched, behind = path[: len(match.value)], path[len(match.value) :]
        if matched != match.value and not (match.ignore_case and _alike(matched, match.value)):
            return target  # with path parameters in between
        return prefix + behind + rest
    assert regex is not None
    rewritten = replaced(regex, path)
    return rewritten + rest if rewritten else target


def _alike(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def path_of(action: ForwardAction, match: PathMatch, request: Request, exchange: Exchange) -> str:
    """Path with query, as it is sent on."""
    target = request.target
    if action.path_format is not None:
        path = action.path_format.fill(Context(request, exchange))
    elif action.template_rewrite is not None:
        captures = match.template.captures(split_target(target)[0]) if match.template else None
        path = "" if captures is None else action.template_rewrite.apply(captures)
    else:
        return rewrite_path(target, match, action.prefix_rewrite, action.regex_rewrite)
    return path + split_target(target)[1] if path else target


def host_of(action: ForwardAction, request: Request, exchange: Exchange) -> str | None:
    """The host that the route puts in; None when it leaves the present one.

    Args:
        request: with the headers as they are sent on.
    """
    host: str | None
    if action.host_rewrite is not None:
        host = action.host_rewrite
    elif action.host_header:
        host = next(iter(request.values(action.host_header)), None)
    elif action.host_regex is not None:
        host = replaced(action.host_regex, request.path)
    elif action.host_format is not None:
        host = action.host_format.fill(Context(request, exchange))
    else:
        return None
    return host or None


def forwarded_host(headers: list[tuple[str, str]], host: str) -> list[tuple[str, str]]:
    """The headers with a former host at the end of `x-forwarded-host`, unless it is there."""
    if not host:
        return headers
    name = "x-forwarded-host"
    known = ",".join(value for key, value in headers if key.lower() == name)
    if known:
        if known.split(",")[-1] == host:
            return headers
        host = f"{known},{host}"
    return [*((k, v) for k, v in headers if k.lower() != name), (name, host)]


def without_forwarded_host(headers: Headers, host: str) -> list[tuple[str, str]]:
    """The headers before `forwarded_host` put this one in."""
    found = []
    for name, value in headers:
        if name.lower() == "x-forwarded-host":
            if value == host:
                continue
            value = value.removesuffix(f",{host}")
        found.append((name, value))
    return found


def shadow_host(host: str) -> str:
    """The host of a copy: `-shadow` in front of the port."""
    name, colon, port = host.rpartition(":")
    if colon and not port.endswith("]"):
        return f"{name}-shadow:{port}"
    return f"{host}-shadow"


# --- redirects -------------------------------------------------------------------------------


def redirected_target(action: RedirectAction, match: PathMatch, target: str) -> str:
    """The path that operators in the headers of a redirect see."""
    return rewrite_path(target, match, action.prefix_rewrite, action.regex_rewrite)


def redirect_location(
    action: RedirectAction, request: Request, match: PathMatch, context: Context | None = None
) -> str:
    """The Location header of a redirect. Source: Envoy `RedirectAction`."""
    scheme = action.scheme or ("https" if action.https else request.scheme)
    if action.host is not None:
        host = action.host
    else:
        host = _host_for(request, scheme, drop_port=action.port is not None)
    port = f":{action.port}" if action.port is not None else ""
    path = _redirect_path(action, request, match, context)
    return f"{scheme}://{host}{port}{path}"


def tls_location(request: Request) -> str:
    """Where a request goes that must use TLS."""
    return f"https://{request.authority}{request.target}"


def _host_for(request: Request, scheme: str, *, drop_port: bool) -> str:
    """The request's host; its port goes when it is the old scheme's default or is replaced."""
    host, colon, port = request.authority.rpartition(":")
    if not colon or not port.isdigit():
        return request.authority
    default = "443" if request.scheme == "https" else "80"
    if drop_port or (scheme != request.scheme and port == default):
        return host
    return request.authority


def _redirect_path(
    action: RedirectAction, request: Request, match: PathMatch, context: Context | None
) -> str:
    query = f"?{request.query}" if request.query else ""
    path: str | None = action.path
    if action.path_format is not None:
        path = action.path_format.fill(context or Context(request))
    if path is not None:
        return path if action.strip_query or "?" in path else path + query
    path = rewrite_path(request.path, match, action.prefix_rewrite, action.regex_rewrite)
    return path if action.strip_query else path + query


def own_uri(request: Request) -> str:
    """The URI of the request itself, which answers of 201 and 3xx give as their location."""
    return f"{request.scheme}://{request.authority}{request.target}"
