"""The serializers of an intercepted method.

grpc hands an interceptor the application's message and a continuation that knows how to serialize
it, but not the serializers. A call that has to leave by another channel needs them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Codecs = tuple[Any, Any]


def codecs_of(continuation: Callable[..., Any], method: str) -> Codecs:
    """Request serializer and response deserializer of the method that is being intercepted.

    Where grpc's continuations look different from what is known here, the message types are taken
    from the protobuf registry by the name of the method.

    Raises:
        TypeError: neither shows them.
    """
    found = _of_partial(continuation) or _of_closure(continuation) or _of_protobuf(method)
    if found is None:
        raise TypeError(
            f"the serializers of {method} are not visible to an interceptor here; "
            "use Mesh.channel or Mesh.aio_channel instead of the mesh's interceptor"
        )
    return found


def _of_partial(continuation: Any) -> Codecs | None:
    """grpc.aio: a partial of (remaining interceptors, method, serializer, deserializer)."""
    if isinstance(continuation, functools.partial) and len(continuation.args) == 4:
        _, _, serializer, deserializer = continuation.args
        return serializer, deserializer
    return None


def _of_closure(continuation: Any) -> Codecs | None:
    """Sync grpc: a function that closes over the multicallable, whose thunk has them."""
    thunk = getattr(_closed_over(continuation).get("self"), "_thunk", None)
    names = _closed_over(thunk)
    if {"request_serializer", "response_deserializer"} <= names.keys():
        return names["request_serializer"], names["response_deserializer"]
    return None


def _closed_over(function: Any) -> dict[str, Any]:
    cells = getattr(function, "__closure__", None)
    if not cells:
        return {}
    return dict(zip(function.__code__.co_freevars, (c.cell_contents for c in cells), strict=True))


def _of_protobuf(method: str) -> Codecs | None:
    from google.protobuf import descriptor_pool, message_factory

    try:
        name = method.strip("/").replace("/", ".")
        found = descriptor_pool.Default().FindMethodByName(name)
    except KeyError:
        return None
    request = message_factory.GetMessageClass(found.input_type)
    response = message_factory.GetMessageClass(found.output_type)
    return request.SerializeToString, response.FromString


class Routed:
    """The methods of a mesh channel that intercepted calls go to, made once each."""

    def __init__(self, make: Callable[[str, str, Codecs], Any]) -> None:
        self._make = functools.lru_cache(maxsize=4096)(make)

    def method(self, factory: str, method: str | bytes, continuation: Any) -> Any:
        """The multicallable for a call that `continuation` would have sent."""
        path = method.decode() if isinstance(method, bytes) else method
        return self._make(factory, path, codecs_of(continuation, path))
