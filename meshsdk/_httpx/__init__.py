"""The mesh under httpx and httpx2; `meshsdk.httpx` is the public face.

The mesh sits where httpx keeps its connection pool. Above it everything is httpx's own, down to
`HTTPTransport.handle_request`: the response and error types of the caller's module, whatever an
instrumentation or a mock has put there. Below it lies the pool that was there before, for hosts
that the mesh does not know.

    wire.py, http1.py   one connection to an endpoint
    connections.py   all connections of a client: limits, idle stacks
    sender.py        gets a request to an endpoint, to another one if the first is unreachable
    exchange.py      pure: what a request looks like to a route, what a reply looks like to httpx
    pool.py          the pool: asks for a decision and drives it, sync and async
    attach.py        the same for an unchanged program
"""
