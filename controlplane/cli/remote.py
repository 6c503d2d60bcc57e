"""The admin port of a running control plane: one request, and its answer, checked."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Required, TypedDict

import msgspec

from controlplane.cli.output import Failure

DEFAULT_SERVER = "http://127.0.0.1:15014"
_TIMEOUT = 30.0
_OTHERWISE = "name another with --server or MESHCTL_SERVER"


class Node(TypedDict, total=False):
    """What `ps` shows of a connected process; it may have more."""

    node: Required[str]
    name: Required[str]
    namespace: Required[str]
    user_agent: Required[str]
    version: Required[str]
    types: Required[dict[str, dict[str, Any]]]
    notes: Required[list[str]]


class Document(TypedDict, total=False):
    """A resource."""

    kind: Required[str]
    metadata: dict[str, Any] | None


class Items(TypedDict):
    """Resources."""

    items: list[Document]


class Result(TypedDict):
    """What was done with one resource."""

    resource: str
    action: str
    file: str


class Remark(TypedDict):
    """A finding."""

    code: str
    level: str
    resource: str
    path: str
    message: str
    file: str
    line: int


class Changes(TypedDict, total=False):
    """What was changed."""

    results: Required[list[Result]]
    findings: list[Remark]


def ask(
    server: str, path: str, wanted: Any, body: str | None = None, method: str | None = None
) -> Any:
    """One request; its JSON answer.

    Args:
        server: as `--server` names it.
        wanted: the type that the answer must have; more fields than it names are kept.

    Raises:
        Failure: no control plane is there or it does not answer (1), it refused the data (65), or
            `server` is no address (64).
    """
    base = _base(server)
    request = urllib.request.Request(  # noqa: S310 - the operator names the server
        base + path, None if body is None else body.encode(), method=method
    )
    changes = body is not None or method is not None
    try:
        with _opener.open(request, timeout=_TIMEOUT) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise Failure(_problem(error, base), 65 if error.code in (404, 422) else 1) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Failure(_silence(base, error, changes=changes)) from None
    try:
        found = json.loads(text)
        msgspec.convert(found, wanted)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors too
        raise Failure(f"{base} answers, and is no control plane: {_OTHERWISE}") from None
    return found


def _base(server: str) -> str:
    base = server if "//" in server else f"http://{server}"
    try:
        parts = urllib.parse.urlsplit(base)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise Failure(f"--server {server}: must be an address such as {DEFAULT_SERVER}", 64)
    return base.rstrip("/")


def _silence(base: str, error: Exception, *, changes: bool) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
        unsure = "; whether anything was changed is not known" if changes else ""
        return f"{base} does not answer within {_TIMEOUT:.0f} s{unsure}: {_OTHERWISE}"
    said = " ".join(str(reason).split()) or type(error).__name__
    return (
        f"no control plane answers at {base}: {said}. Start one with: "
        f"meshctl serve --config DIR, or name it with --server or MESHCTL_SERVER"
    )


def _problem(error: urllib.error.HTTPError, base: str) -> str:
    try:
        lines: list[str] = msgspec.convert(json.load(error)["errors"], list[str])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        said = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
        return f"{base} answers {said}, and is no control plane: {_OTHERWISE}"
    return "\n".join(lines)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A control plane sends nobody elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


# Proxies of the environment are for the outside; the control plane is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
