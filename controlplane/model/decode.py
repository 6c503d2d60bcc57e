"""Plain values → frozen types, and what is wrong when they do not fit, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from controlplane.model.duration import Duration
from controlplane.model.entries import ServiceEntrySpec, WorkloadEntrySpec, WorkloadGroupSpec
from controlplane.model.envoyfilter import EnvoyFilterSpec
from controlplane.model.kubernetes import (
    KubeConfigMap,
    KubeEndpoints,
    KubePod,
    KubeServiceSpec,
    KubeSlice,
)
from controlplane.model.policy import DestinationRuleSpec
from controlplane.model.schema import suggest, type_name
from controlplane.model.sidecar import SidecarSpec
from controlplane.model.traffic import VirtualServiceSpec

# Kinds whose content is `spec` and those that carry it beside their metadata.
SPEC_TYPES: Mapping[tuple[str, str], Any] = {
    ("networking.istio.io", "VirtualService"): VirtualServiceSpec,
    ("networking.istio.io", "DestinationRule"): DestinationRuleSpec,
    ("networking.istio.io", "ServiceEntry"): ServiceEntrySpec,
    ("networking.istio.io", "WorkloadEntry"): WorkloadEntrySpec,
    ("networking.istio.io", "WorkloadGroup"): WorkloadGroupSpec,
    ("networking.istio.io", "Sidecar"): SidecarSpec,
    ("networking.istio.io", "EnvoyFilter"): EnvoyFilterSpec,
    ("", "Service"): KubeServiceSpec,
}
BODY_TYPES: Mapping[tuple[str, str], Any] = {
    ("", "Endpoints"): KubeEndpoints,
    ("discovery.k8s.io", "EndpointSlice"): KubeSlice,
    ("", "Pod"): KubePod,
    ("", "ConfigMap"): KubeConfigMap,
}
_PATH = re.compile(r" - at `\$(.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"unknown field `(.*)`")


def field_names(wanted: Any) -> set[str]:
    """Every field name of a struct and of the structs in it."""
    names: set[str] = set()
    pending, seen = [wanted], set()
    while pending:
        kind = pending.pop()
        if kind in seen:
            continue
        seen.add(kind)
        for field in msgspec.structs.fields(kind):
            names.add(field.encode_name)
            parts = getattr(field.type, "__args__", (field.type,))
            pending += [
                part
                for part in parts
                if isinstance(part, type) and issubclass(part, msgspec.Struct)
            ]
    return names


def decode(value: Any, wanted: Any) -> Any:
    """Plain values → one of the frozen types.

    Raises:
        msgspec.ValidationError: names the field.
    """
    return msgspec.convert(value, wanted, dec_hook=_decode_hook)


def _decode_hook(wanted: type, value: Any) -> Any:
    if wanted is Duration:
        if not isinstance(value, str):
            raise ValueError(f"a duration must be text such as 5s, not {type_name(value)}")
        return Duration.parse(value)
    raise NotImplementedError(wanted)


def explain(error: msgspec.ValidationError, root: str, wanted: Any) -> tuple[str, str]:
    """The path of the field and what is wrong with it.

    Args:
        error: raised by `decode`.
        root: path of the decoded value in its document, `spec` or nothing.
        wanted: the type that was decoded to, for suggestions.
    """
    text = str(error)
    found = _PATH.search(text)
    path = root + (found[1] if found else "")
    message = text[: found.start()] if found else text
    if (unknown := _UNKNOWN.search(message)) is not None:
        message = f"unknown field{suggest(unknown[1], field_names(wanted))}"
        path = f"{path}.{unknown[1]}"
    return path.removeprefix("."), message
