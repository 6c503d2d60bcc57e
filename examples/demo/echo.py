"""A service that answers with what has reached it: my-app and store in the demo.

python -m examples.demo.echo --service store --address 127.0.0.18 --port 8080
"""

from __future__ import annotations

import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import meshsdk
from examples.bookinfo import serving
from examples.bookinfo.instance import Instance, arguments


def create_app(instance: Instance) -> Starlette:
    async def echo(request: Request) -> JSONResponse:
        return JSONResponse(
            {
                "method": request.method,
                "path": request.url.path,
                "query": request.url.query,
                "headers": dict(request.headers),
                "served_by": instance.served_by,
            }
        )

    return Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])


def main() -> int:
    # Whose part it plays comes first; the rest is what every service takes.
    argv = sys.argv[1:]
    service = "echo"
    if argv[:1] == ["--service"] and len(argv) > 1:
        service, argv = argv[1], argv[2:]
    instance = arguments(service, versions=("v1", "v2"), argv=argv)
    mesh = meshsdk.Mesh()
    app = create_app(instance)
    return serving.run(mesh.asgi(app, port=instance.port, address=instance.address), instance)


if __name__ == "__main__":
    sys.exit(main())
