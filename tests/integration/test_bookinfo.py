"""Bookinfo without a mesh: the same programs, with the mesh switched off, called directly."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from starlette.testclient import TestClient

import meshsdk
from examples.bookinfo.instance import Instance
from examples.bookinfo.productpage import backends
from examples.bookinfo.productpage.app import create_app
from examples.bookinfo.protos import ratings_pb2, ratings_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
SORRY = "Sorry, product {} are currently unavailable for this book."


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the programs ----------------------------------------------------------------------------


class Program:
    """One Bookinfo process with the mesh switched off."""

    def __init__(self, name: str, *arguments: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", f"examples.bookinfo.{name}"),
                *("--port", str(self.port), *arguments),
            ],
            cwd=ROOT,
            env=os.environ | {"MESHSDK_ENABLED": "false"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        self.process.kill()
        pytest.fail(f"it does not start: {self.process.communicate()[0]}")

    def stop(self) -> str:
        """SIGTERM, and what it has written."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.communicate(timeout=20)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def bookinfo() -> Iterator[dict[str, Program]]:
    """ratings, details, reviews v1 to v3, and a productpage for each version of reviews."""
    grpc_port = free_port()
    found = {
        "ratings": Program("ratings", "--grpc-port", str(grpc_port)),
        "details": Program("details"),
    }
    for version in ("v1", "v2", "v3"):
        target = f"127.0.0.1:{grpc_port}"
        reviews = Program("reviews", "--version", version, RATINGS_TARGET=target)
        found[f"reviews-{version}"] = reviews
        found[f"page-{version}"] = Program(
            "productpage",
            DETAILS_URL=found["details"].url,
            REVIEWS_URL=reviews.url,
            RATINGS_URL=found["ratings"].url,
        )
    found["ratings"].grpc_target = target  # type: ignore[attr-defined]
    for program in found.values():
        program.wait_until_up()
    yield found
    for program in found.values():
        output = program.stop()
        assert program.process.returncode in (0, -signal.SIGTERM), output
        assert "Traceback" not in output


@pytest.mark.parametrize(("version", "colour"), [("v1", None), ("v2", "black"), ("v3", "red")])
def test_each_version_of_reviews_shows_its_stars(
    bookinfo: dict[str, Program], version: str, colour: str | None
) -> None:
    page = httpx.get(f"{bookinfo[f'page-{version}'].url}/productpage")
    assert page.status_code == 200
    assert "What readers say" in page.text
    assert "Oona Field" in page.text
    assert "Lantern &amp; Reed" in page.text
    assert "unavailable" not in page.text
    for other in ("black", "red"):
        assert (f'class="stars {other}"' in page.text) is (other == colour)
    assert page.headers["x-reviews-served-by"].startswith(f"reviews-{version}; ")


def test_every_answer_names_the_process_that_gave_it(bookinfo: dict[str, Program]) -> None:
    for name, path in (
        ("page-v1", "/"),
        ("page-v1", "/productpage?id=99"),
        ("details", "/details/1"),
        ("details", "/details/99"),
        ("reviews-v2", "/reviews/1"),
        ("ratings", "/ratings/1"),
        ("ratings", "/nowhere"),
    ):
        program = bookinfo[name]
        served_by = httpx.get(program.url + path).headers["x-served-by"]
        assert f"address=127.0.0.1:{program.port}; pid=" in served_by
    pid = int(httpx.get(f"{bookinfo['ratings'].url}/health").json()["served_by"].split("pid=")[1])
    assert pid == bookinfo["ratings"].process.pid


def test_ratings_answers_over_grpc_too(bookinfo: dict[str, Program]) -> None:
    with grpc.insecure_channel(bookinfo["ratings"].grpc_target) as channel:  # type: ignore[attr-defined]
        stub = ratings_pb2_grpc.RatingsStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.GetRatings(ratings_pb2.GetRatingsRequest(book_id=1), timeout=10)
        over_http = httpx.get(f"{bookinfo['ratings'].url}/ratings/1").json()
        assert dict(answer.stars) == over_http["ratings"]
        assert answer.served_by == over_http["served_by"]
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRatings(ratings_pb2.GetRatingsRequest(book_id=99), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_small_api_hands_on_what_the_services_say(bookinfo: dict[str, Program]) -> None:
    api = f"{bookinfo['page-v2'].url}/api/v1/products"
    assert [book["id"] for book in httpx.get(api).json()] == [1, 2, 3]
    assert httpx.get(f"{api}/2").json()["author"] == "Anselm Ruiz-Holt"
    reviews = httpx.get(f"{api}/2/reviews").json()["reviews"]
    assert [review["rating"]["colour"] for review in reviews] == ["black", "black"]
    assert httpx.get(f"{api}/3/ratings").json()["ratings"] == {
        "Henrike Blom": 3,
        "Paolo Anselm": 5,
    }
    assert httpx.get(f"{api}/99").status_code == 404


def test_reviews_without_ratings_say_so_and_are_still_read(bookinfo: dict[str, Program]) -> None:
    reviews = Program("reviews", "--version", "v3", RATINGS_TARGET=f"127.0.0.1:{free_port()}")
    try:
        reviews.wait_until_up()
        answer = httpx.get(f"{reviews.url}/reviews/1", timeout=20).json()
    finally:
        reviews.stop()
    assert [r["rating"]["error"].partition(":")[0] for r in answer["reviews"]] == [
        "UNAVAILABLE"
    ] * 2


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of the programs, which is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", f"examples.bookinfo.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | {"MESHSDK_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=40,
    )


@pytest.mark.parametrize("name", ["details", "reviews", "productpage", "ratings"])
def test_a_taken_port_is_said_in_a_line(bookinfo: dict[str, Program], name: str) -> None:
    taken = bookinfo["page-v1"].port
    also = ["--grpc-port", str(free_port())] if name == "ratings" else []
    ended = run(name, "--port", str(taken), *also)
    assert ended.returncode
    assert "in use" in ended.stderr
    assert str(taken) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_grpc_port_is_said_in_a_line(bookinfo: dict[str, Program]) -> None:
    ended = run("ratings", "--port", str(free_port()), "--grpc-port", str(bookinfo["page-v1"].port))
    assert ended.returncode == 1
    assert "in use; give another --grpc-port" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- the page alone, with back ends that do as the test says ----------------------------------

Answer = Callable[[BaseHTTPRequestHandler], tuple[int, Any]]


class BackEnd:
    """An HTTP server that answers as `answer` says and keeps the headers that it received."""

    def __init__(self, answer: Answer) -> None:
        self.seen: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append({k.lower(): v for k, v in self.headers.items()})
                status, data = answer(self)
                body = data if isinstance(data, bytes) else json.dumps(data).encode()
                try:
                    self.send_response(status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the caller did not wait

            def log_message(self, *_arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


REVIEWS = {"reviews": [{"reviewer": "A", "title": "T", "text": "X", "rating": None}]}
DETAILS = dict.fromkeys(("publisher", "year", "pages", "format", "language", "shelf_mark"), "-")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TestClient]]:
    """Makes a page whose details and reviews answer as they are told to."""
    closing: list[Callable[[], Any]] = []

    def make(
        reviews: Answer = lambda _: (200, REVIEWS), details: Answer = lambda _: (200, DETAILS)
    ) -> TestClient:
        ends = {"reviews": BackEnd(reviews), "details": BackEnd(details)}
        closing.extend(end.close for end in ends.values())
        monkeypatch.setattr(backends, "REVIEWS_URL", ends["reviews"].url)
        monkeypatch.setattr(backends, "DETAILS_URL", ends["details"].url)
        mesh = meshsdk.Mesh(enabled=False)
        client = TestClient(create_app(Instance("productpage", "v1", "127.0.0.1", 0), mesh, "s"))
        client.__enter__()
        closing.append(lambda: client.__exit__(None, None, None))
        client.ends = ends  # type: ignore[attr-defined]
        return client

    yield make
    for close in reversed(closing):
        close()


def test_a_slow_review_is_tried_twice_and_then_the_page_says_sorry(
    page: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "TRY_SECONDS", 0.3)
    released = threading.Event()

    def slow(_: BaseHTTPRequestHandler) -> tuple[int, Any]:
        released.wait(20)
        return 200, REVIEWS

    client = page(reviews=slow)
    started = time.monotonic()
    answer = client.get("/productpage")
    waited = time.monotonic() - started
    released.set()
    assert answer.status_code == 200
    assert SORRY.format("reviews") in answer.text
    assert "Book details" in answer.text
    assert SORRY.format("details") not in answer.text
    assert len(client.ends["reviews"].seen) == 2  # type: ignore[attr-defined]
    assert 0.6 <= waited < 5


def test_the_limits_are_three_seconds_and_one_retry() -> None:
    assert (backends.TRY_SECONDS, backends.TRIES) == (3.0, 2)


def test_the_second_try_may_succeed(page: Callable[..., TestClient]) -> None:
    numbers = itertools.count()
    client = page(reviews=lambda _: (503, {}) if next(numbers) == 0 else (200, REVIEWS))
    answer = client.get("/productpage")
    assert "Sorry" not in answer.text
    assert len(client.ends["reviews"].seen) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "broken", [(500, {}), (200, b"not json"), (404, {}), (200, ["a list"])], ids=repr
)
def test_a_broken_service_is_a_sentence_and_not_an_error(
    page: Callable[..., TestClient], broken: tuple[int, Any]
) -> None:
    answer = page(reviews=lambda _: broken, details=lambda _: broken).get("/productpage")
    assert answer.status_code == 200
    assert SORRY.format("reviews") in answer.text
    assert SORRY.format("details") in answer.text


def test_who_signs_in_is_named_to_the_services_and_can_sign_out(
    page: Callable[..., TestClient],
) -> None:
    client = page()

    def user_of_the_last_call() -> str | None:
        return client.ends["reviews"].seen[-1].get("end-user")  # type: ignore[attr-defined]

    client.get("/productpage")
    assert user_of_the_last_call() is None
    client.get("/productpage", headers={"end-user": "jason"})
    assert user_of_the_last_call() is None, "only a sign-in makes a user"
    answer = client.post("/login", data={"username": "jason"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/productpage")
    assert "jason" in client.get("/productpage").text
    assert user_of_the_last_call() == "jason"
    client.post("/logout", follow_redirects=False)
    client.get("/productpage")
    assert user_of_the_last_call() is None


def test_a_cookie_that_was_changed_signs_nobody_in(page: Callable[..., TestClient]) -> None:
    client = page()
    client.post("/login", data={"username": "jason"}, follow_redirects=False)
    signed = client.cookies["bookinfo"]
    client.cookies.clear()
    client.cookies.set("bookinfo", "x" + signed)
    client.get("/productpage")
    assert "end-user" not in client.ends["reviews"].seen[-1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["", " ", "<script>", "a\r\nx-admin: 1", "ä", "x" * 60])
def test_a_name_that_could_not_travel_is_refused(
    page: Callable[..., TestClient], name: str
) -> None:
    answer = page().post("/login", data={"username": name}, follow_redirects=False)
    assert answer.status_code == 422
    assert "Please give a name" in answer.text
    assert "<script>" not in answer.text


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/productpage?id=2", "/productpage?id=2"),
        ("https://evil.example/", "/productpage"),
        ("//evil.example/", "/productpage"),
        ("/\\evil.example/", "/productpage"),
        ("/a\r\nset-cookie: b=c", "/productpage"),
        ("", "/productpage"),
    ],
)
def test_a_sign_in_leads_nowhere_but_to_this_site(
    page: Callable[..., TestClient], target: str, location: str
) -> None:
    form = {"username": "mary", "next": target}
    answer = page().post("/login", data=form, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, location)


@pytest.mark.parametrize("number", ["0", "4", "-1", "x", "1e3", "9" * 50, "²"])
def test_a_book_that_does_not_exist_has_no_page(
    page: Callable[..., TestClient], number: str
) -> None:
    answer = page().get("/productpage", params={"id": number})
    assert answer.status_code == 404
    assert "There is no such book" in answer.text
