"""What the page asks of the other services, and how long it is willing to wait."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Any

import httpx

import meshsdk
from examples.bookinfo.instance import HEADER

_log = logging.getLogger("bookinfo.productpage")

DETAILS_URL = os.environ.get("DETAILS_URL", "http://details:9080")
REVIEWS_URL = os.environ.get("REVIEWS_URL", "http://reviews:9080")
RATINGS_URL = os.environ.get("RATINGS_URL", "http://ratings:9080")

TRY_SECONDS = 3.0
TRIES = 2

UNAVAILABLE = {
    "reviews": "Sorry, product reviews are currently unavailable for this book.",
    "details": "Sorry, product details are currently unavailable for this book.",
    "ratings": "Sorry, product ratings are currently unavailable for this book.",
}


@dataclass(frozen=True, slots=True)
class Part:
    """What one service said: its data, or the sentence that stands in for it.

    Attributes:
        status: 200, or what an API answers when the part is missing.
        served_by: the process that answered, empty when none did.
    """

    status: int
    data: dict[str, Any]
    error: str = ""
    served_by: str = ""


class Backends:
    """Asks details, reviews and ratings over HTTP, each at most twice for 3 s."""

    def __init__(self, mesh: meshsdk.Mesh) -> None:
        self._client = httpx.AsyncClient(transport=mesh.async_transport(), timeout=TRY_SECONDS)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def details(self, book: int, user: str = "") -> Part:
        return await self._part("details", f"{DETAILS_URL}/details/{book}", user)

    async def reviews(self, book: int, user: str = "") -> Part:
        return await self._part("reviews", f"{REVIEWS_URL}/reviews/{book}", user)

    async def ratings(self, book: int, user: str = "") -> Part:
        return await self._part("ratings", f"{RATINGS_URL}/ratings/{book}", user)

    async def _part(self, service: str, url: str, user: str) -> Part:
        # The user comes from the sign-in here; behind this page the mesh carries the name on.
        headers = {"end-user": user} if user else {}
        for number in range(1, TRIES + 1):
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    answer = await self._client.get(url, headers=headers)
                if answer.status_code < 500:
                    return _part_of(service, answer)
                problem = f"status {answer.status_code} from {answer.headers.get(HEADER, '-')}"
            except TimeoutError:
                problem = f"no answer within {TRY_SECONDS:g} s"
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            _log.warning("%s, try %d of %d: %s", url, number, TRIES, problem)
        return Part(503, {}, UNAVAILABLE[service])


def _part_of(service: str, answer: httpx.Response) -> Part:
    served_by = answer.headers.get(HEADER, "")
    try:
        data = answer.json()
    except ValueError:
        data = None
    if answer.status_code == 200 and isinstance(data, dict):
        return Part(200, data, served_by=served_by)
    status = answer.status_code if answer.status_code >= 400 else 502
    return Part(status, {}, UNAVAILABLE[service], served_by)
