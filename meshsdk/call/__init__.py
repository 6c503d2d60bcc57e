"""One client call, decided without I/O: what is to be done with this request?

`decide()` answers with one of

- `Forward`      send it to an endpoint of a cluster, changed as the route says
- `Reply`        the mesh answers itself (redirect, direct response, preflight, abort, no route …)
- `Passthrough`  send it unchanged to where the caller was going (ALLOW_ANY, mesh off)

each with the `delay` that a fault injection asks for before anything else happens. The delay lies
outside the route's timeout and inside the caller's own limit. An adapter drives it:

    decision = decide(view, request, random)
    sleep(decision.delay)
    if isinstance(decision, Forward):
        endpoint = decision.pick(random)     # an EndpointState, or raises NoHealthyUpstream
        try: send within decision.timeout
        finally: endpoint.release()

A gRPC method asks the same questions over and over: `compile_method()` answers once per view what
does not depend on the call, and leaves only the rest to `MethodTable.decide()`.
"""

from meshsdk.call.deciding import decide
from meshsdk.call.decisions import Decision, Forward, Mirror, Passthrough, Reply
from meshsdk.call.methods import MethodTable, compile_method
from meshsdk.routing import Request

__all__ = [
    "Decision",
    "Forward",
    "MethodTable",
    "Mirror",
    "Passthrough",
    "Reply",
    "Request",
    "compile_method",
    "decide",
]
