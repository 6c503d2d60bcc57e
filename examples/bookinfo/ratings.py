"""ratings: how many stars each reviewer gave, over HTTP and over gRPC.

python -m examples.bookinfo.ratings --address 127.0.0.15 --port 9080 --grpc-port 9081
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator

import grpc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import meshsdk
import meshsdk.grpc_server
from examples.bookinfo import serving
from examples.bookinfo.instance import Instance, arguments
from examples.bookinfo.protos import ratings_pb2, ratings_pb2_grpc

STARS = {
    1: {"Oona Field": 5, "Tobias Renn": 4},
    2: {"Marguerite Sol": 4, "Idris Vale": 5},
    3: {"Henrike Blom": 3, "Paolo Anselm": 5},
}
"""Stars from 1 to 5, by book and reviewer."""


class RatingsServicer(ratings_pb2_grpc.RatingsServicer):
    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def GetRatings(  # noqa: N802 - the name is given by the interface
        self,
        request: ratings_pb2.GetRatingsRequest,
        context: grpc.aio.ServicerContext[
            ratings_pb2.GetRatingsRequest, ratings_pb2.GetRatingsResponse
        ],
    ) -> ratings_pb2.GetRatingsResponse:
        stars = STARS.get(request.book_id)
        if stars is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no book {request.book_id}")
        return ratings_pb2.GetRatingsResponse(
            book_id=request.book_id, stars=stars, served_by=self._instance.served_by
        )


def create_app(instance: Instance, mesh: meshsdk.Mesh) -> Starlette:
    """The HTTP side; while it runs, so does the gRPC side."""

    async def ratings(request: Request) -> JSONResponse:
        book = request.path_params["book"]
        stars = STARS.get(book)
        if stars is None:
            return JSONResponse({"error": f"there is no book {book}"}, 404)
        return JSONResponse({"id": book, "ratings": stars, "served_by": instance.served_by})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "served_by": instance.served_by})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        server = meshsdk.grpc_server.aio_server(options=[("grpc.so_reuseport", 0)], mesh=mesh)
        ratings_pb2_grpc.add_RatingsServicer_to_server(  # type: ignore[no-untyped-call]
            RatingsServicer(instance), server
        )
        server.add_insecure_port(f"{instance.address}:{instance.grpc_port}")
        await server.start()
        yield
        await server.stop(grace=5)

    routes = [Route("/ratings/{book:int}", ratings), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> int:
    instance = arguments("ratings", grpc_port=9081)
    try:
        # gRPC says of a taken port only that it did not get it.
        socket.create_server((instance.address, instance.grpc_port)).close()
    except OSError as error:
        taken = f"{instance.address}:{instance.grpc_port}: {os.strerror(error.errno or 0)}"
        sys.stderr.write(f"{instance.name}: {taken}; give another --grpc-port\n")
        return 1
    mesh = meshsdk.Mesh()
    app = create_app(instance, mesh)
    return serving.run(mesh.asgi(app, port=instance.port, address=instance.address), instance)


if __name__ == "__main__":
    sys.exit(main())
