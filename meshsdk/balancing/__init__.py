"""Which endpoint of a cluster takes the next attempt.

A `ClusterView` is what a call sees of a cluster: frozen configuration, the endpoints that may be
used now, and a picker over them. `EndpointState` is what changes per call; it belongs to the
endpoint and outlives views. Semantics: Envoy "Supported load balancers", "Priority levels",
"Locality weighted load balancing", "Load balancer subsets".

    endpoint   attempts under way, reported load     what changes per call
    health     shares of priorities and localities   arithmetic
    pickers    policies without a key
    hashing    ring hash and Maglev
    layers     one priority: which endpoints, which picker
    subsets    endpoints by metadata
    pool       views of configuration
    original   calls that name their destination themselves
"""

from meshsdk.balancing.endpoint import EndpointState, LoadReport
from meshsdk.balancing.original import toward
from meshsdk.balancing.pickers import Picker, Random
from meshsdk.balancing.pool import ClusterPool, ClusterView

__all__ = [
    "ClusterPool",
    "ClusterView",
    "EndpointState",
    "LoadReport",
    "Picker",
    "Random",
    "toward",
]
