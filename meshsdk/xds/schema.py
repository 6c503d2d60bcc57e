"""Envoy's API with the fields that Envoy 1.40 has and `xds-protos` does not have yet.

A message parsed without them would lose a condition or an answer in silence. The messages live in a
pool of their own; they read like those of `envoy.*_pb2`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

_ROUTES: Final = "envoy/config/route/v3/route_components.proto"
_FAULT: Final = "envoy/extensions/filters/http/fault/v3/fault.proto"


def _amend_routes(file: Any) -> None:
    cookie = file.message_type.add(name="CookieMatcher")
    _add(cookie, "name", 1, Field.TYPE_STRING)
    _add(cookie, "string_match", 2, Field.TYPE_MESSAGE, ".envoy.type.matcher.v3.StringMatcher")
    _add(cookie, "invert_match", 3, Field.TYPE_BOOL)
    messages = {message.name: message for message in file.message_type}
    _add(
        messages["RouteMatch"],
        "cookies",
        17,
        Field.TYPE_MESSAGE,
        ".envoy.config.route.v3.CookieMatcher",
        label=Field.LABEL_REPEATED,
    )
    _add(messages["RetryPolicy"], "refresh_cluster_on_retry", 14, Field.TYPE_BOOL)
    redirect = messages["RedirectAction"]
    names = [oneof.name for oneof in redirect.oneof_decl]
    path = _add(redirect, "path_rewrite", 10, Field.TYPE_STRING)
    if path is not None:
        path.oneof_index = names.index("path_rewrite_specifier")
    extension = ".envoy.config.core.v3.TypedExtensionConfig"
    for name, number in (("Route", 21), ("VirtualHost", 26)):
        _add(
            messages[name],
            "route_specifiers",
            number,
            Field.TYPE_MESSAGE,
            extension,
            label=Field.LABEL_REPEATED,
        )


def _amend_fault(file: Any) -> None:
    messages = {message.name: message for message in file.message_type}
    _add(messages["FaultAbort"], "response_body", 6, Field.TYPE_STRING)


_AMENDMENTS: Final = {_ROUTES: _amend_routes, _FAULT: _amend_fault}


def _add(
    message: Any,
    name: str,
    number: int,
    kind: Any,
    type_name: str = "",
    *,
    label: Any = Field.LABEL_OPTIONAL,
) -> Any:
    """Add a field; None where the message has it already."""
    if any(field.name == name for field in message.field):
        return None
    return message.field.add(
        name=name, number=number, type=kind, label=label, type_name=type_name or None
    )


class _Files:
    """The files of the default pool, amended; loaded as they are asked for."""

    def FindFileByName(self, name: str) -> Any:  # noqa: N802
        found = descriptor_pool.Default().FindFileByName(name)
        return _amended(found)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        if symbol == "envoy.config.route.v3.CookieMatcher":
            return self.FindFileByName(_ROUTES)
        try:
            found = descriptor_pool.Default().FindFileContainingSymbol(symbol)
        except KeyError:
            _import_package(symbol.rpartition(".")[0])
            found = descriptor_pool.Default().FindFileContainingSymbol(symbol)
        return _amended(found)


def _import_package(name: str) -> None:
    """Import the modules of a package of Envoy's API; what is none is left alone."""
    if not name.startswith(("envoy.", "xds.", "udpa.")):
        return
    try:
        package = importlib.import_module(name)
    except ImportError:
        return
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_pb2"):
            importlib.import_module(f"{name}.{module.name}")


def _amended(file: Any) -> Any:
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    amend = _AMENDMENTS.get(proto.name)
    if amend is not None:
        amend(proto)
    return proto


POOL: Final = descriptor_pool.DescriptorPool(_Files())
"""For `json_format`: knows every message whose module was imported, and the newer fields."""


@cache
def message_class(full_name: str) -> Any:
    """The class of a message, for example `envoy.config.route.v3.RouteConfiguration`.

    Raises:
        KeyError: there is no such message.
    """
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))


def amended(original: Any) -> Any:
    """The class of the same message in the pool with the newer fields."""
    return message_class(original.DESCRIPTOR.full_name)
