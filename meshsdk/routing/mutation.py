"""Changes of request and response headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshsdk.formats import Context, Exchange
from meshsdk.model import AppendAction, HeaderChange, HeaderMutations, HeaderOption
from meshsdk.routing.request import Headers, Request

Level = tuple[tuple[HeaderOption, ...], tuple[str, ...], str]
Levels = tuple[Level, ...]

_NO_EXCHANGE = Exchange()


def mutate(
    headers: Headers,
    levels: Iterable[Level],
    request: Request,
    *,
    of_request: bool,
    exchange: Exchange = _NO_EXCHANGE,
    status: int = 0,
    endpoint: Any = None,
    body: str = "",
) -> list[tuple[str, str]]:
    """Headers after the mutations of each level, in order: the last level wins.

    Within a level names are removed first; then all values and conditions are evaluated, and only
    then written, overwriting before appending (seen on Envoy 1.40).

    Args:
        levels: (options, names to remove, authority that the levels behind see, if another).
        request: answers `%REQ(name)%` in values.
        of_request: these are the request's own headers, so that a level sees what earlier ones did.
        exchange, status, endpoint, body: what other operators speak of.
    """
    result = list(headers)
    for options, remove, host in levels:
        if remove:
            result = [pair for pair in result if pair[0].lower() not in remove]
        if of_request:
            request = request.having(result)
            context = Context(request, exchange)
        else:
            context = Context(
                request, exchange, response=result, status=status, endpoint=endpoint, body=body
            )
        result = _write(result, options, context)
        if host:
            request = request.having(result, authority=host)
    return result


def _write(
    headers: list[tuple[str, str]], options: tuple[HeaderOption, ...], context: Context
) -> list[tuple[str, str]]:
    present = {name.lower() for name, _ in headers}
    overwritten: dict[str, str] = {}
    added: list[tuple[str, str]] = []
    for option in options:
        value = option.format.fill(context)
        if not value and not option.keep_empty:
            continue
        match option.action:
            case AppendAction.OVERWRITE if option.name not in present:
                pass
            case AppendAction.ADD_IF_ABSENT if option.name in present:
                pass
            case AppendAction.OVERWRITE | AppendAction.OVERWRITE_OR_ADD:
                overwritten[option.name] = value
            case _:
                added.append((option.name, value))
    kept = [pair for pair in headers if pair[0].lower() not in overwritten]
    return [*kept, *overwritten.items(), *added]


def apply_changes(
    headers: Headers, changes: Iterable[HeaderChange], request: Request
) -> list[tuple[str, str]]:
    """Headers after a list of single changes, each seeing what the ones before it did."""
    result = list(headers)
    for change in changes:
        if change.option is None:
            result = [pair for pair in result if pair[0].lower() != change.remove]
        else:
            result = _write(result, (change.option,), Context(request.having(result)))
    return result


def request_levels(
    mutations: Iterable[HeaderMutations], first: HeaderMutations | None = None, host: str = ""
) -> Levels:
    """
    Args:
        first: the mutations behind which the authority becomes `host`.
    """
    found = []
    for level in mutations:
        if level.request_set or level.request_remove:
            rewritten = host if level is first else ""
            found.append((level.request_set, level.request_remove, rewritten))
    if host and found and not found[0][2]:
        found.insert(0, ((), (), host))
    return tuple(found)


def response_levels(mutations: Iterable[HeaderMutations]) -> Levels:
    return tuple(
        (m.response_set, m.response_remove, "")
        for m in mutations
        if m.response_set or m.response_remove
    )


def is_constant(levels: Levels) -> bool:
    """Whether what is set does not depend on the call."""
    return all(option.format.plain is not None for options, _, _ in levels for option in options)
