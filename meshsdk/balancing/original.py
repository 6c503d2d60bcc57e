"""Calls that name their destination themselves. Source: Envoy `OriginalDstLbConfig`."""

from __future__ import annotations

import ipaddress

from meshsdk.balancing import pickers
from meshsdk.balancing.endpoint import EndpointState
from meshsdk.balancing.pool import ClusterView
from meshsdk.model import Endpoint


def toward(cluster: ClusterView, address: str) -> ClusterView:
    """The view for a call whose header names `ip:port`; the cluster's own where it is neither."""
    host, colon, port = address.strip().rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return cluster
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        return cluster
    state = EndpointState(Endpoint(str(ip), int(port)), cluster.cluster)
    return ClusterView(cluster.cluster, (state,), pickers.always(state))
