"""Steps 1 to 4 and 7 to 14: where calls go, and what a rule does to them on the way."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
import httpx

from examples.bookinfo.instance import HEADER
from examples.bookinfo.productpage.backends import TRIES, TRY_SECONDS, UNAVAILABLE
from examples.bookinfo.protos import ratings_pb2
from examples.demo.answers import CALLS, count, name_of, told
from examples.demo.check import Check
from examples.demo.stage import Stage

PAGES = 20
DELAY_SECONDS = 7.0
LATE_SECONDS = 3.0
_ABORTED = "fault filter abort"


async def all_to_v1(stage: Stage, check: Check) -> None:
    await stage.apply("01-all-v1.yaml")
    check.count(await stage.reviews(), {"reviews-v1": 1})
    pages = await _pages(stage)
    check.that(set(pages) == {"reviews-v1 without stars"}, f"the page shows {told(pages)}")


async def canary(stage: Stage, check: Check) -> None:
    await stage.apply("02-canary.yaml")
    check.count(await stage.reviews(), {"reviews-v1": 0.9, "reviews-v3": 0.1})


async def jason_to_v2(stage: Stage, check: Check) -> None:
    await stage.apply("03-jason.yaml")
    check.count(await stage.reviews({"end-user": "jason"}), {"reviews-v2": 1})
    pages = await _pages(stage, user="jason")
    check.that(
        set(pages) == {"reviews-v2 with black stars"},
        f"the page that jason sees, signed in, shows {told(pages)}",
    )


async def others_to_v1(stage: Stage, check: Check) -> None:
    await stage.apply("03-jason.yaml")
    users = ("", "mary", "JASON", "jason2")
    found: Counter[str] = Counter()
    for user in users:
        found += await stage.reviews({"end-user": user} if user else {}, CALLS // len(users))
    check.count(found, {"reviews-v1": 1})
    for user in ("", "mary"):
        pages = await _pages(stage, user)
        check.that(
            set(pages) == {"reviews-v1 without stars"},
            f"the page that {user or 'somebody not signed in'} sees shows {told(pages)}",
        )


async def new_version(stage: Stage, check: Check) -> None:
    await stage.apply("07-my-app.yaml")
    check.count(await stage.answers("http://my-app/"), {"my-app-v1": 0.8, "my-app-v2": 0.2})


async def delay(stage: Stage, check: Check) -> None:
    await stage.apply("08-delay.yaml")
    patience = TRIES * TRY_SECONDS
    check.expected = f"ratings after {DELAY_SECONDS:.1f} s, the sentence after {patience:.1f} s"
    (page, waited), (rating, delayed) = await asyncio.gather(
        _timed(stage, "http://productpage:9080/productpage"),
        _timed(stage, "http://ratings:9080/ratings/1"),
    )
    sorry = UNAVAILABLE["reviews"] in page.text
    check.counted = f"ratings after {delayed:.1f} s, the sentence after {waited:.1f} s"
    check.that(page.status_code == 200, f"the page answers {page.status_code}")
    check.that(sorry, f"the page does not say {UNAVAILABLE['reviews']!r}")
    # Nobody may be early; a busy machine may be late.
    check.that(patience <= waited < patience + LATE_SECONDS, f"the page took {waited:.2f} s")
    check.that(
        rating.status_code == 200 and DELAY_SECONDS <= delayed < DELAY_SECONDS + LATE_SECONDS,
        f"ratings answered {rating.status_code} after {delayed:.2f} s",
    )


async def _timed(stage: Stage, url: str) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    answer = await stage.http.get(url)
    return answer, time.monotonic() - started


async def abort_http(stage: Stage, check: Check) -> None:
    await stage.apply("09-abort.yaml")

    async def call() -> str:
        answer = await stage.http.get("http://ratings:9080/ratings/1")
        if answer.status_code == 200:
            return name_of(answer.headers.get(HEADER, ""), stage.processes)
        return "500 aborted" if _aborted(answer) else f"{answer.status_code} {answer.text[:80]}"

    found = await count(call)
    check.count(found, {"ratings-v1": 0.5, "500 aborted": 0.5})


def _aborted(answer: httpx.Response) -> bool:
    """Whether this is what Envoy's fault filter answers."""
    return answer.status_code == 500 and answer.text == _ABORTED


async def abort_grpc(stage: Stage, check: Check) -> None:
    await stage.apply("09-abort.yaml")
    request = ratings_pb2.GetRatingsRequest(book_id=1)

    async def call() -> str:
        try:
            answer = await stage.ratings.GetRatings(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            details = "aborted" if error.details() == _ABORTED else error.details()
            return f"{error.code().name} {details}"
        return name_of(answer.served_by, stage.processes)

    found = await count(call)
    check.count(found, {"ratings-v1": 0.5, "UNKNOWN aborted": 0.5})


async def redirect(stage: Stage, check: Check) -> None:
    await stage.apply("11-store.yaml")
    goal = "http://store.default.svc.cluster.local/new"
    check.expected = "/old to /new by 308, store answers there"
    answer = await stage.http.get("http://store:8080/old/shelf")
    location = answer.headers.get("location", "")
    followed = await stage.http.get("http://store:8080/old/shelf", follow_redirects=True)
    reached = _echoed(followed).get("path", f"status {followed.status_code}")
    path = httpx.URL(location).path
    check.counted = f"/old to {path} by {answer.status_code}, {reached} answered"
    check.that(
        answer.status_code == 308 and location == goal,
        f"status {answer.status_code}, location {location!r} instead of {goal!r}",
    )
    check.that(reached == "/new", f"following it ends at {followed.url}: {followed.text[:200]}")


async def rewrite(stage: Stage, check: Check) -> None:
    await stage.apply("11-store.yaml")
    check.expected = "/v2 for alice and bob in English, else /catalog"
    asked = {
        "alice": ("alice", "en", "/v2/books"),
        "bob": ("bob", "en", "/v2/books"),
        "carol": ("carol", "en", "/catalog/books"),
        "alice (fr)": ("alice", "fr", "/catalog/books"),
    }
    seen = {}
    for name, (user, language, path) in asked.items():
        answer = await stage.http.get(
            f"http://store:8080/catalog/books?lang={language}", headers={"x-user": user}
        )
        seen[name] = str(_echoed(answer).get("path", f"{answer.status_code} {answer.text[:100]}"))
        check.that(seen[name] == path, f"for {name} the path was {seen[name]}, not {path}")
    check.counted = ", ".join(f"{name} {path}" for name, path in seen.items())


async def headers(stage: Stage, check: Check) -> None:
    await stage.apply("11-store.yaml")
    check.expected = "x-routed-by set, x-internal removed, x-served-by added"
    answer = await stage.http.get(
        "http://store:8080/catalog/books?lang=en",
        headers={"x-user": "alice", "x-internal": "secret", "x-routed-by": "me"},
    )
    received = _echoed(answer).get("headers", {})
    added = "store" in answer.headers.get_list(HEADER, split_commas=True)
    named = name_of(answer.headers.get_list(HEADER)[0], stage.processes) if added else ""
    check.that(received.get("x-routed-by") == "mesh", f"store received {received}")
    check.that("x-internal" not in received, f"store received {received}")
    check.that(added and named == "store-v1", f"the answer has {answer.headers.multi_items()}")
    check.counted = (
        f"x-routed-by {received.get('x-routed-by')}, "
        f"x-internal {'sent' if 'x-internal' in received else 'removed'}, "
        f"x-served-by {'added' if added else 'not added'}"
    )


async def east(stage: Stage, check: Check) -> None:
    await stage.apply("14-east.yaml")
    found = await stage.answers("http://reviews.east.example:9080/reviews/1")
    check.expected = "both zones of east, nobody else"
    check.counted = told(Counter(dict(sorted(found.items()))))
    check.that(set(found) == {"east-v1", "east-v2"}, f"answered: {told(found)}")
    zones = await stage.control_plane.localities("reviews.east.example")
    check.that(zones == {"east/zone-1", "east/zone-2"}, f"the endpoints are in {zones}")


def _echoed(answer: httpx.Response) -> dict[str, Any]:
    """What store says that it received; empty when that is not what answered."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def _pages(stage: Stage, user: str = "") -> Counter[str]:
    """Whose reviews, and which stars, a reader's pages show."""
    async with stage.reader() as reader:
        if user:
            answer = await reader.post("/login", data={"username": user, "next": "/productpage"})
            if answer.status_code != 303:
                return Counter({f"no sign-in: {answer.status_code}": 1})

        async def look() -> str:
            answer = await reader.get("/productpage")
            who = name_of(answer.headers.get("x-reviews-served-by", ""), stage.processes)
            for colour in ("black", "red"):
                if f'class="stars {colour}"' in answer.text:
                    return f"{who} with {colour} stars"
            return f"{who} without stars"

        return await count(look, PAGES, 4)
