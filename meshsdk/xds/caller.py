"""The calling process, as header values and hash policies may speak of it."""

from __future__ import annotations

import ipaddress
import os
import platform
import random
from typing import Any

from meshsdk.formats import Caller


def caller_of(node: Any) -> Caller:
    """The process whose node this is.

    Args:
        node: `envoy.config.core.v3.Node`; Istio's ids hold the address: `sidecar~10.0.0.1~…`.
    """
    return Caller(
        address=_address(node),
        hostname=platform.node(),
        environment=dict(os.environ),
        channel=random.getrandbits(64),
    )


def _address(node: Any) -> str:
    parts = node.id.split("~")
    candidates = [str(node.metadata["INSTANCE_IPS"])] if "INSTANCE_IPS" in node.metadata else []
    candidates += parts[1:2]
    for text in candidates:
        first = text.partition(",")[0]
        try:
            return str(ipaddress.ip_address(first))
        except ValueError:
            continue
    return ""
