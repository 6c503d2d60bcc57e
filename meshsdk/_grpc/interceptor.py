"""The sync interceptor for channels that are not the mesh's own."""

from __future__ import annotations

from typing import Any

import grpc

from meshsdk._grpc.codecs import Codecs, Routed
from meshsdk._grpc.trip import Args


class Interceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends intercepted calls to a mesh channel instead of the channel that they were made on."""

    def __init__(self, channel: grpc.Channel) -> None:
        def make(factory: str, path: str, codecs: Codecs) -> Any:
            return getattr(channel, factory)(path, *codecs)

        self._routed = Routed(make)

    def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return self._send_unary("unary_unary", continuation, client_call_details, request)

    def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        details = client_call_details
        return self._send_unary("stream_unary", continuation, details, request_iterator)

    def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        details = client_call_details
        method = self._routed.method("unary_stream", details.method, continuation)
        return method(request, *_arguments(details))

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        details = client_call_details
        method = self._routed.method("stream_stream", details.method, continuation)
        return method(request_iterator, *_arguments(details))

    def _send_unary(self, factory: str, continuation: Any, details: Any, request: Any) -> Any:
        """The call as grpc's own continuation gives it: a call, a future and maybe an error."""
        method = self._routed.method(factory, details.method, continuation)
        arguments = _arguments(details)
        if not getattr(continuation, "__qualname__", "").startswith(_BLOCKING):
            return method.future(request, *arguments)
        try:
            _, call = method.with_call(request, *arguments)
        except grpc.RpcError as error:
            return error
        return call


# In these the application waits; anything else must not block, and `future` is always right.
_BLOCKING = (
    "_UnaryUnaryMultiCallable._with_call.",
    "_StreamUnaryMultiCallable._with_call.",
)


def _arguments(details: Any) -> Args:
    return Args(
        details.timeout,
        details.metadata,
        details.credentials,
        details.wait_for_ready,
        getattr(details, "compression", None),
    )
