"""The pages and the small API of productpage."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

import meshsdk
from examples.bookinfo.instance import Instance
from examples.bookinfo.productpage.backends import Backends, Part
from examples.bookinfo.productpage.catalogue import BOOKS, Book

_HERE = Path(__file__).parent
_USER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,30}[A-Za-z0-9])?")
_DAY = 24 * 3600

templates = Jinja2Templates(directory=_HERE / "templates")


def create_app(instance: Instance, mesh: meshsdk.Mesh, secret: str) -> Starlette:
    """The app.

    Args:
        mesh: what the calls to the other services go through.
        secret: signs the cookie that remembers who is signed in.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.backends = Backends(mesh)
        yield
        await app.state.backends.aclose()

    app = Starlette(
        routes=[
            Route("/", home),
            Route("/productpage", productpage),
            Route("/login", login, methods=["GET", "POST"]),
            Route("/logout", logout, methods=["GET", "POST"]),
            Route("/health", health),
            Route("/api/v1/products", products),
            Route("/api/v1/products/{book:int}", part_of_book("details")),
            Route("/api/v1/products/{book:int}/reviews", part_of_book("reviews")),
            Route("/api/v1/products/{book:int}/ratings", part_of_book("ratings")),
            Mount("/static", StaticFiles(directory=_HERE / "static"), name="static"),
        ],
        middleware=[
            Middleware(
                SessionMiddleware,
                secret_key=secret,
                session_cookie="bookinfo",
                max_age=_DAY,
                same_site="lax",
            )
        ],
        lifespan=lifespan,
    )
    app.state.instance = instance
    return app


def _user(request: Request) -> str:
    return str(request.session.get("user", ""))


def _page(request: Request, name: str, status: int = 200, **values: Any) -> Response:
    shared = {"user": _user(request), "here": request.url.path, "books": BOOKS.values()}
    return templates.TemplateResponse(request, name, {**shared, **values}, status_code=status)


async def home(request: Request) -> Response:
    return _page(request, "home.html")


async def productpage(request: Request) -> Response:
    """The page of one book, `?id=1` unless another is asked for."""
    number = request.query_params.get("id", "1")
    book = BOOKS.get(int(number)) if number.isdecimal() and len(number) < 10 else None
    if book is None:
        return _page(request, "missing.html", 404)
    backends: Backends = request.app.state.backends
    user = _user(request)
    details, reviews = await asyncio.gather(
        backends.details(book.id, user), backends.reviews(book.id, user)
    )
    response = _page(
        request,
        "productpage.html",
        book=book,
        details=details,
        reviews=reviews,
        stars=_average(reviews),
        trail=_trail(request.app.state.instance, details, reviews),
    )
    # Who answered behind the page, for whoever counts without reading HTML.
    response.headers["x-reviews-served-by"] = reviews.served_by
    response.headers["x-details-served-by"] = details.served_by
    return response


def _average(reviews: Part) -> float | None:
    rated = [review.get("rating") or {} for review in reviews.data.get("reviews", ())]
    stars = [rating["stars"] for rating in rated if "stars" in rating]
    return sum(stars) / len(stars) if stars else None


def _trail(instance: Instance, details: Part, reviews: Part) -> list[dict[str, str]]:
    """The processes that made the page, in the order of the calls."""
    served = [
        ("productpage", instance.served_by),
        ("details", details.served_by),
        ("reviews", reviews.served_by),
    ]
    if reviews.data.get("ratings_served_by"):
        served.append(("ratings", reviews.data["ratings_served_by"]))
    return [_stop(service, text) for service, text in served]


def _stop(service: str, served_by: str) -> dict[str, str]:
    name, _, rest = served_by.partition("; ")
    pairs = dict(item.partition("=")[::2] for item in rest.split("; "))
    return {
        "service": service,
        "version": name.removeprefix(f"{service}-"),
        "address": pairs.get("address", ""),
        "pid": pairs.get("pid", ""),
    }


async def login(request: Request) -> Response:
    """Signs in whoever says a name: this is a demonstration, there are no passwords."""
    if request.method == "GET":
        return _page(request, "login.html", next=_local(request.query_params.get("next")))
    # More than a name does not fit into the form.
    body = (await request.body())[:4096].decode("utf-8", "replace")
    form = parse_qs(body)
    name = form.get("username", [""])[0].strip()
    target = _local(form.get("next", [""])[0])
    if not _USER.fullmatch(name):
        problem = "Please give a name of letters, digits, dots, dashes and spaces."
        return _page(request, "login.html", 422, next=target, problem=problem)
    request.session["user"] = name
    return RedirectResponse(target, 303)


async def logout(request: Request) -> Response:
    request.session.clear()
    return RedirectResponse(_local(request.query_params.get("next")), 303)


def _local(target: str | None) -> str:
    """A path of this site; anything else would let a link send readers elsewhere."""
    if not target or not re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", target):
        return "/productpage"
    return target


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok", "served_by": request.app.state.instance.served_by})


async def products(request: Request) -> JSONResponse:
    return JSONResponse([_summary(book) for book in BOOKS.values()])


def _summary(book: Book) -> dict[str, Any]:
    return {"id": book.id, "title": book.title, "author": book.author, "description": book.blurb}


def part_of_book(service: str) -> Any:
    """Hands on what one service says of a book."""

    async def answer(request: Request) -> JSONResponse:
        book = request.path_params["book"]
        if book not in BOOKS:
            return JSONResponse({"error": f"there is no book {book}"}, 404)
        ask = getattr(request.app.state.backends, service)
        part: Part = await ask(book, _user(request))
        return JSONResponse(part.data or {"error": part.error}, part.status)

    return answer
