"""Plain Starlette, httpx and gRPC: each path asks on in another way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import grpc
import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.echo_grpc import EchoRequest, EchoStub


async def call(request: Request) -> Response:
    async with httpx.AsyncClient() as client:
        answer = await client.get(request.query_params["url"])
    return JSONResponse({"pid": os.getpid(), "status": answer.status_code, "seen": answer.json()})


def thread(request: Request) -> Response:
    """A sync endpoint: Starlette runs it in a thread."""
    answer = httpx.get(request.query_params["url"])
    return JSONResponse({"pid": os.getpid(), "status": answer.status_code, "seen": answer.json()})


def over_grpc(request: Request) -> Response:
    with grpc.insecure_channel(request.query_params["target"]) as channel:
        reply = EchoStub(channel).Unary(EchoRequest(text="hi"), timeout=10)
    return JSONResponse({"seen": {item.name: item.value.decode() for item in reply.metadata}})


async def over_grpc_aio(request: Request) -> Response:
    async with grpc.aio.insecure_channel(request.query_params["target"]) as channel:
        reply = await EchoStub(channel).Unary(EchoRequest(text="hi"), timeout=10)
    return JSONResponse({"seen": {item.name: item.value.decode() for item in reply.metadata}})


async def streamed(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"["
        async with httpx.AsyncClient() as client:
            yield (await client.get(request.query_params["url"])).content
        yield b"]"

    return StreamingResponse(chunks(), media_type="application/json")


async def own_headers(request: Request) -> Response:
    return JSONResponse(dict(request.headers))


async def pid(_request: Request) -> Response:
    return PlainTextResponse(str(os.getpid()))


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    async with httpx.AsyncClient() as client:
        answer = await client.get(socket.query_params["url"])
    await socket.send_text(answer.text)
    await socket.close()


app = Starlette(
    routes=[
        Route("/call", call),
        Route("/thread", thread),
        Route("/grpc", over_grpc),
        Route("/grpc-aio", over_grpc_aio),
        Route("/stream", streamed),
        Route("/headers", own_headers),
        Route("/pid", pid),
        WebSocketRoute("/ws", websocket),
    ]
)
