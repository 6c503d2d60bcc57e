"""Authority → virtual host → first matching route; and what a route changes on the way.

Pure functions over the frozen model. Semantics: Envoy `config/route/v3/route_components.proto`
and "HTTP header manipulation"; the finer points as seen on Envoy 1.40.
"""

from meshsdk.routing.cors import CorsAnswer, cors_answer
from meshsdk.routing.hashing import hash_key
from meshsdk.routing.mutation import (
    Levels,
    apply_changes,
    is_constant,
    mutate,
    request_levels,
    response_levels,
)
from meshsdk.routing.request import Headers, Random, Request
from meshsdk.routing.rewriting import (
    forwarded_host,
    host_of,
    own_uri,
    path_of,
    redirect_location,
    redirected_target,
    rewrite_path,
    shadow_host,
    tls_location,
    without_forwarded_host,
)
from meshsdk.routing.selection import (
    Draw,
    comparable_path,
    conditions_hold,
    matches,
    path_matches,
    routes_for,
    select,
    virtual_host,
)

__all__ = [
    "CorsAnswer",
    "Draw",
    "Headers",
    "Levels",
    "Random",
    "Request",
    "apply_changes",
    "comparable_path",
    "conditions_hold",
    "cors_answer",
    "forwarded_host",
    "hash_key",
    "host_of",
    "is_constant",
    "matches",
    "mutate",
    "own_uri",
    "path_matches",
    "path_of",
    "redirect_location",
    "redirected_target",
    "request_levels",
    "response_levels",
    "rewrite_path",
    "routes_for",
    "select",
    "shadow_host",
    "tls_location",
    "virtual_host",
    "without_forwarded_host",
]
