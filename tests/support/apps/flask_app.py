"""Plain Flask and httpx: `/call?url=` asks on and says what came back, and who did it."""

from __future__ import annotations

import os

import httpx
from flask import Flask, Response, request, stream_with_context

app = Flask(__name__)
client = httpx.Client()


@app.get("/call")
def call() -> dict[str, object]:
    answer = client.get(request.args["url"])
    return {"pid": os.getpid(), "status": answer.status_code, "seen": answer.json()}


@app.get("/stream")
def stream() -> Response:
    url = request.args["url"]

    def chunks() -> object:
        yield "["
        yield client.get(url).text
        yield "]"

    return Response(stream_with_context(chunks()), mimetype="application/json")


@app.get("/pid")
def pid() -> str:
    return str(os.getpid())


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ["TEST_PORT"]))
