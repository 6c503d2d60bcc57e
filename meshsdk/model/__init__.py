"""The configuration of the mesh as frozen values.

Decoders build these from xDS; everything behind them never sees protobuf. Times are seconds.
One vocabulary: listener → route → cluster → endpoint → attempt.
"""

from meshsdk.model.clusters import (
    Assignment,
    Balancing,
    Cluster,
    ClusterKind,
    Endpoint,
    Health,
    Locality,
    LocalityEndpoints,
)
from meshsdk.model.routes import (
    Action,
    AppendAction,
    DirectResponseAction,
    DomainIndex,
    Fault,
    FaultAbort,
    FaultDelay,
    ForwardAction,
    HeaderMutations,
    HeaderOption,
    Listener,
    RedirectAction,
    RegexRewrite,
    RetryPolicy,
    Route,
    RouteConfiguration,
    RouteMatch,
    UnsupportedAction,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.model.snapshot import (
    ListenerView,
    Snapshot,
)

__all__ = [
    "Action",
    "AppendAction",
    "Assignment",
    "Balancing",
    "Cluster",
    "ClusterKind",
    "DirectResponseAction",
    "DomainIndex",
    "Endpoint",
    "Fault",
    "FaultAbort",
    "FaultDelay",
    "ForwardAction",
    "HeaderMutations",
    "HeaderOption",
    "Health",
    "Listener",
    "ListenerView",
    "Locality",
    "LocalityEndpoints",
    "RedirectAction",
    "RegexRewrite",
    "RetryPolicy",
    "Route",
    "RouteConfiguration",
    "RouteMatch",
    "Snapshot",
    "UnsupportedAction",
    "VirtualHost",
    "WeightedCluster",
]
