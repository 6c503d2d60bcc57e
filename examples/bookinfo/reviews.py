"""reviews: what readers wrote about a book, with stars from ratings.

    python -m examples.bookinfo.reviews --version v2 --address 127.0.0.13 --port 9080

v1 shows no stars and never asks for ratings; v2 shows black stars, v3 red ones.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import meshsdk
from examples.bookinfo import serving
from examples.bookinfo.instance import Instance, arguments
from examples.bookinfo.protos import ratings_pb2, ratings_pb2_grpc

COLOURS = {"v1": "", "v2": "black", "v3": "red"}

RATINGS_TARGET = os.environ.get("RATINGS_TARGET", "ratings:9081")
RATINGS_SECONDS = 10.0

REVIEWS: dict[int, list[dict[str, str]]] = {
    1: [
        {
            "reviewer": "Oona Field",
            "title": "I packed a bag after chapter two",
            "text": (
                "Forty harbours that the maps gave up on, each with its tide table, its gossip "
                "and one good place to eat. Calder writes as if she had rowed into every one of "
                "them at dusk. By the third chapter I was looking up ferry times."
            ),
        },
        {
            "reviewer": "Tobias Renn",
            "title": "Read it slowly, with an atlas",
            "text": (
                "It meanders, and it should: the detours are the point. The drawings of mooring "
                "knots alone are worth the price. One star off for an index that sends you to "
                "the wrong coast twice."
            ),
        },
    ],
    2: [
        {
            "reviewer": "Marguerite Sol",
            "title": "Seven winters, one stove",
            "text": (
                "A book about keeping warm that turns out to be about keeping company. The "
                "recipe for walnut bread works; I have tried it three times."
            ),
        },
        {
            "reviewer": "Idris Vale",
            "title": "The quietest page-turner I know",
            "text": (
                "Hardly anything happens and I could not put it down. The avalanche lasts half "
                "a page and stays with you for weeks."
            ),
        },
    ],
    3: [
        {
            "reviewer": "Henrike Blom",
            "title": "Lovely, if you like clocks",
            "text": (
                "Sixty pages on escapements is a lot to ask before anybody falls in love. After "
                "that it runs like, well, you know."
            ),
        },
        {
            "reviewer": "Paolo Anselm",
            "title": "I set my watch by it",
            "text": (
                "Clever, kind and exactly as long as it needs to be. The night shift at the "
                "observatory is the best chapter I have read this year."
            ),
        },
    ],
}


class Stars:
    """The ratings of a book, asked over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, colour: str) -> None:
        self._stub = ratings_pb2_grpc.RatingsStub(channel)  # type: ignore[no-untyped-call]
        self._colour = colour

    async def of(self, book: int) -> tuple[dict[str, Any], str]:
        """By reviewer what to show, and who answered; an error to show where nobody did."""
        request = ratings_pb2.GetRatingsRequest(book_id=book)
        try:
            answer = await self._stub.GetRatings(request, timeout=RATINGS_SECONDS)
        except grpc.aio.AioRpcError as error:
            problem = {"error": f"{error.code().name}: {error.details()}"}
            return dict.fromkeys((r["reviewer"] for r in REVIEWS[book]), problem), ""
        rated = {
            name: {"stars": stars, "colour": self._colour} for name, stars in answer.stars.items()
        }
        return rated, answer.served_by


def create_app(instance: Instance, mesh: meshsdk.Mesh, target: str = RATINGS_TARGET) -> Starlette:
    colour = COLOURS[instance.version]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with mesh.aio_channel(target) as channel:
            app.state.stars = Stars(channel, colour)
            yield

    async def reviews(request: Request) -> JSONResponse:
        book = request.path_params["book"]
        if book not in REVIEWS:
            return JSONResponse({"error": f"there is no book {book}"}, 404)
        rated: dict[str, Any] = {}
        rated_by = ""
        if colour:
            rated, rated_by = await request.app.state.stars.of(book)
        found = [review | {"rating": rated.get(review["reviewer"])} for review in REVIEWS[book]]
        return JSONResponse(
            {
                "id": book,
                "reviews": found,
                "version": instance.version,
                "served_by": instance.served_by,
                "ratings_served_by": rated_by,
                "end_user": request.headers.get("end-user", ""),
            }
        )

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "served_by": instance.served_by})

    routes = [Route("/reviews/{book:int}", reviews), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> int:
    instance = arguments("reviews", versions=COLOURS)
    mesh = meshsdk.Mesh()
    app = create_app(instance, mesh)
    return serving.run(mesh.asgi(app, port=instance.port, address=instance.address), instance)


if __name__ == "__main__":
    sys.exit(main())
