"""Load: clients of every kind that call through the mesh all the time and forgive nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

import grpc
import httpx

import meshsdk
from examples.bookinfo.instance import HEADER
from examples.bookinfo.protos import ratings_pb2, ratings_pb2_grpc
from examples.demo.answers import name_of
from examples.demo.processes import Processes, Trouble

PAUSE_SECONDS = 0.01
CALL_SECONDS = 10.0
_SORRY = ("currently unavailable", "no answer")


class BadAnswer(Exception):
    """An answer came, and it is not the one that a reader wants."""


@dataclass(frozen=True, slots=True)
class FailedCall:
    """One call that failed: when (Unix time), whose, and how."""

    at: float
    client: str
    error: str

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        return f"{clock}.{int(self.at * 1000) % 1000:03d} {self.client}: {self.error}"


@dataclass
class Record:
    """What the clients saw. Threads and tasks write to it under its lock."""

    calls: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    failures: list[FailedCall] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def add(self, client: str, served_by: str = "", error: Exception | None = None) -> None:
        with self.lock:
            self.calls[client] += 1
            if client == "reviews over httpx, async" and served_by:
                self.reviews[served_by] += 1
            if error is not None:
                text = f"{type(error).__name__}: {' '.join(str(error).split())}"
                self.failures.append(FailedCall(time.time(), client, text[:300]))


class Load:
    """Eight clients over the four ways into the mesh; `async with Load(...) as load:`.

    Attributes:
        record: what they have seen so far.
    """

    def __init__(self, mesh: meshsdk.Mesh, processes: Processes) -> None:
        self.record = Record()
        self._mesh = mesh
        self._processes = processes
        self._stop = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: list[threading.Thread] = []

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(transport=self._mesh.async_transport(), timeout=CALL_SECONDS)
        self._channel = self._mesh.aio_channel("ratings:9081")
        ratings = ratings_pb2_grpc.RatingsStub(self._channel)  # type: ignore[no-untyped-call]
        kinds: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("productpage over httpx, async", self._page),
            ("productpage over httpx, async", self._page),
            ("reviews over httpx, async", self._review),
            ("reviews over httpx, async", self._review),
            ("ratings over grpc, aio", lambda: self._rating(ratings)),
            ("ratings over grpc, aio", lambda: self._rating(ratings)),
        ]
        self._tasks = [asyncio.create_task(self._repeat(name, call)) for name, call in kinds]
        for name, target in (
            ("details over httpx, sync", self._details),
            ("ratings over grpc, sync", self._sync_ratings),
        ):
            thread = threading.Thread(target=target, args=(name,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, CALL_SECONDS + 1)
        await self._http.aclose()
        await self._channel.close()

    async def more(self, calls: int, seconds: float = 60.0) -> None:
        """Returns when so many further calls were made.

        Raises:
            Trouble: they were not within the time.
        """
        wanted = self.record.total + calls
        deadline = time.monotonic() + seconds
        while self.record.total < wanted:
            if time.monotonic() > deadline:
                raise Trouble(f"the clients made no {calls} calls within {seconds:.0f} s")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _repeat(self, name: str, call: Callable[[], Awaitable[str]]) -> None:
        while not self._stop.is_set():
            try:
                served_by = await call()
            except (httpx.HTTPError, grpc.RpcError, meshsdk.MeshError, BadAnswer) as error:
                self.record.add(name, error=error)
            else:
                self.record.add(name, name_of(served_by, self._processes))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _page(self) -> str:
        answer = await self._http.get("http://productpage:9080/productpage")
        _good(answer)
        for words in _SORRY:
            if words in answer.text:
                raise BadAnswer(f"the page of {answer.headers.get(HEADER)} says {words!r}")
        return str(answer.headers.get(HEADER, ""))

    async def _review(self) -> str:
        answer = await self._http.get("http://reviews:9080/reviews/1")
        _good(answer)
        if "error" in answer.text:
            raise BadAnswer(f"{answer.headers.get(HEADER)} answers {answer.text}")
        return str(answer.headers.get(HEADER, ""))

    @staticmethod
    async def _rating(ratings: ratings_pb2_grpc.RatingsStub) -> str:
        request = ratings_pb2.GetRatingsRequest(book_id=1)
        answer = await ratings.GetRatings(request, timeout=CALL_SECONDS)
        return str(answer.served_by)

    def _details(self, name: str) -> None:
        with httpx.Client(transport=self._mesh.transport(), timeout=CALL_SECONDS) as client:

            def call() -> None:
                _good(client.get("http://details:9080/details/1"))

            self._repeat_sync(name, call)

    def _sync_ratings(self, name: str) -> None:
        with self._mesh.channel("ratings:9081") as channel:
            ratings = ratings_pb2_grpc.RatingsStub(channel)  # type: ignore[no-untyped-call]
            request = ratings_pb2.GetRatingsRequest(book_id=2)
            self._repeat_sync(name, lambda: ratings.GetRatings(request, timeout=CALL_SECONDS))

    def _repeat_sync(self, name: str, call: Callable[[], object]) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            try:
                call()
            except (httpx.HTTPError, grpc.RpcError, meshsdk.MeshError, BadAnswer) as error:
                self.record.add(name, error=error)
            else:
                self.record.add(name)


def _good(answer: httpx.Response) -> None:
    if answer.status_code != 200:
        who = answer.headers.get(HEADER, "the mesh")
        raise BadAnswer(f"{answer.request.url} answers {answer.status_code} ({who}): {answer.text}")
