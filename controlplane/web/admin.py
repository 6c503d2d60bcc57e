"""HTTP for operators and `meshctl`: readiness, status, configuration. Loopback only.

    GET    /ready /healthz /version
    GET    /debug/list        the debug pages
    GET    /debug/syncz       one entry per connected client (`Hub.status`)
    GET    /debug/configz     every document
    GET    /debug/registryz   services with their endpoints
    GET    /debug/config_dump?node=ID    what a connected client has been sent, by type
    GET    /metrics           Prometheus text
    GET    /config            documents; ?kind= ?namespace= ?name= narrow it down
    POST   /config/apply      YAML in; {"results": [...], "findings": [...]} out
    POST   /config/delete     YAML in: the documents that it names are deleted
    DELETE /config/{kind}/{namespace}/{name}

Bad input is answered with 422 and {"errors": [...]}, each one readable line with its place.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.model.resource import ConfigError, Finding, Resource
from controlplane.translate import resources as xds
from controlplane.web.metrics import metrics_text
from controlplane.world import World
from controlplane.xds.push import SHORT_NAMES, Hub

_PAGES = ("syncz", "configz", "registryz", "config_dump", "list")


class Plane(Protocol):
    """What the pages need of the running control plane."""

    hub: Hub
    version: str

    @property
    def world(self) -> World:
        """What is served now."""

    @property
    def ready(self) -> bool:
        """Whether clients are served."""

    async def apply(self, text: str) -> tuple[list[dict[str, str]], list[Finding]]:
        """Writes documents; what was done with each, and what is to be said about them."""

    async def delete(self, text: str) -> list[dict[str, str]]:
        """Deletes the documents that a text names."""

    async def delete_one(self, kind: str, namespace: str, name: str) -> list[dict[str, str]]:
        """Deletes one document."""


def make_app(plane: Plane) -> ASGIApp:
    """The application; answers callers on this machine only."""
    pages = _Pages(plane)
    app = Starlette(
        routes=[
            Route("/ready", pages.ready),
            Route("/healthz", pages.healthz),
            Route("/version", pages.version),
            Route("/metrics", pages.metrics),
            Route("/debug/list", pages.debug_list),
            Route("/debug/syncz", pages.syncz),
            Route("/debug/configz", pages.config),
            Route("/debug/registryz", pages.registryz),
            Route("/debug/config_dump", pages.config_dump),
            Route("/config", pages.config),
            Route("/config/apply", pages.apply, methods=["POST"]),
            Route("/config/delete", pages.delete, methods=["POST"]),
            Route("/config/{kind}/{namespace}/{name}", pages.delete_one, methods=["DELETE"]),
        ],
        exception_handlers={ConfigError: _config_error, HTTPException: _http_error},
    )
    return _LoopbackOnly(app)


class _Pages:
    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def ready(self, _request: Request) -> Response:
        ready = self._plane.ready
        return PlainTextResponse("ready" if ready else "not ready", 200 if ready else 503)

    async def healthz(self, _request: Request) -> Response:
        return PlainTextResponse("ok")

    async def version(self, _request: Request) -> Response:
        return JSONResponse({"version": self._plane.version})

    async def metrics(self, _request: Request) -> Response:
        text = metrics_text(self._plane.hub, self._plane.version)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def debug_list(self, _request: Request) -> Response:
        return JSONResponse([f"/debug/{page}" for page in _PAGES])

    async def syncz(self, _request: Request) -> Response:
        return JSONResponse(self._plane.hub.status())

    async def config(self, request: Request) -> Response:
        wanted = request.query_params
        found = select(
            self._plane.world.resources,
            wanted.get("kind", ""),
            wanted.get("namespace", ""),
            wanted.get("name", ""),
        )
        body = json.dumps({"items": [document(resource) for resource in found]}, default=str)
        return Response(body, media_type="application/json")

    async def registryz(self, _request: Request) -> Response:
        world = self._plane.world
        return JSONResponse([_service(world, service) for service in world.services])

    async def config_dump(self, request: Request) -> Response:
        wanted = request.query_params.get("node", "")
        hub = self._plane.hub
        clients = [c for c in hub.clients if wanted in (c.node.id, c.node.name)]
        if not clients:
            raise HTTPException(404, f"no client {wanted!r} is connected; see /debug/syncz")
        dump: dict[str, list[Any]] = {short: [] for short in SHORT_NAMES.values()}
        client = min(clients, key=lambda c: c.number)
        for type_url, short in SHORT_NAMES.items():
            state = client.subscription.types.get(type_url)
            for name in sorted(state.told if state else ()):
                made = xds.make(hub.world, client.variant, type_url, name)
                if made.message is not None:
                    dump[short].append(json_format.MessageToDict(made.message))
        return JSONResponse(dump)

    async def apply(self, request: Request) -> Response:
        results, findings = await self._plane.apply(await _text(request))
        listed = [finding_dict(finding) for finding in findings]
        return JSONResponse({"results": results, "findings": listed})

    async def delete(self, request: Request) -> Response:
        return JSONResponse({"results": await self._plane.delete(await _text(request))})

    async def delete_one(self, request: Request) -> Response:
        path = request.path_params
        results = await self._plane.delete_one(path["kind"], path["namespace"], path["name"])
        if not results:
            raise HTTPException(
                404, f"{path['kind']} {path['namespace']}/{path['name']}: no such resource"
            )
        return JSONResponse({"results": results})


async def _text(request: Request) -> str:
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError as error:
        raise HTTPException(422, f"the body is not UTF-8: {error.reason}") from None


def select(
    resources: Iterable[Resource], kind: str = "", namespace: str = "", name: str = ""
) -> list[Resource]:
    """Documents by kind (any letter case, plural or not), namespace and name."""
    asked = kind.lower()
    return [
        resource
        for resource in resources
        if (not asked or asked in _kind_names(resource.kind))
        and namespace in ("", resource.namespace)
        and name in ("", resource.name)
    ]


def _kind_names(kind: str) -> tuple[str, str, str]:
    singular = kind.lower()
    # `ies` for ServiceEntry, `es` for nothing that Istio has but Kubernetes' -ss and -x words.
    plural = singular[:-1] + "ies" if singular.endswith("y") else singular + "s"
    return singular, plural, singular + "es"


def document(resource: Resource) -> Mapping[str, Any]:
    """A document as it was written; a registered workload as it would be."""
    if resource.document:
        return resource.document
    metadata = {
        "name": resource.name,
        "namespace": resource.namespace,
        "labels": dict(resource.labels),
        "annotations": dict(resource.annotations),
    }
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {key: value for key, value in metadata.items() if value},
        "spec": dict(resource.spec),
        **({"status": dict(resource.status)} if resource.status else {}),
    }


def finding_dict(finding: Finding) -> dict[str, Any]:
    """A finding as data; the keys are those of `meshctl analyze -o json`."""
    return {
        "code": finding.code,
        "level": finding.level.label,
        "resource": finding.resource,
        "path": finding.path,
        "message": finding.message,
        "file": finding.origin.file,
        "line": finding.origin.line,
    }


def _service(world: World, service: Any) -> dict[str, Any]:
    return {
        "hostname": service.hostname,
        "namespace": service.namespace,
        "source": service.source,
        "resolution": service.resolution.value,
        "ports": [
            {
                "name": port.name,
                "number": port.number,
                "protocol": port.protocol.value,
                "endpoints": [
                    {
                        "address": endpoint.address,
                        "port": endpoint.port,
                        "health": endpoint.health.value,
                        "labels": dict(endpoint.labels),
                        "locality": str(endpoint.locality),
                        "workload": endpoint.workload,
                    }
                    for endpoint in world.endpoints(service, port)
                ],
            }
            for port in service.ports
        ],
    }


async def _config_error(_request: Request, error: Exception) -> Response:
    findings = error.findings if isinstance(error, ConfigError) else ()
    return JSONResponse(
        {"errors": [str(f) for f in findings], "findings": [finding_dict(f) for f in findings]},
        422,
    )


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"errors": [error.detail]}, error.status_code)


class _LoopbackOnly:
    """Refuses pages of other sites in a browser on this machine (DNS rebinding, forged forms)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Request(scope).headers
            origin = headers.get("origin", "")
            hosts = [headers.get("host", ""), *([origin.partition("//")[2]] if origin else [])]
            if not all(map(_is_local, hosts)):
                refusal = JSONResponse({"errors": ["only loopback names are answered"]}, 403)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_local(authority: str) -> bool:
    host = authority.rpartition(":")[0] if authority.rpartition(":")[2].isdigit() else authority
    host = host.strip("[]").lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
