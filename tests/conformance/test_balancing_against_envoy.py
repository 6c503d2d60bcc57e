"""Which endpoint a key goes to: our tables and real Envoy, given the same resources.

Envoy and our decoders read the same cluster; each request carries its key in a header; a backend
answers with its own port. Order of endpoints, weights, localities, priorities and health differ
from case to case. Shares of weighted, prioritised and locality weighted policies are compared too,
where chance decides nothing.
"""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf import json_format

from meshsdk.balancing import ClusterPool, ClusterView
from meshsdk.balancing.hashing import xx_hash
from meshsdk.errors import NoHealthyUpstream
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import CLUSTER
from tests.support.envoy import Envoy, http_listener

Json = dict[str, Any]
KEYS = 60


class Backends:
    """Servers on loopback that answer with their port; the end of an answer to a path with `hold`
    waits for `release`."""

    def __init__(self, count: int) -> None:
        release = self.release = threading.Event()

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                # One write an answer: a second one would wait for an acknowledgement.
                self.send_response(200)
                self.send_header("x-port", str(self.server.server_port))  # type: ignore[attr-defined]
                held = "hold" in self.path
                self.send_header("content-length", "1" if held else "0")
                self.end_headers()
                if held:
                    release.wait(20)
                    self.wfile.write(b"x")

            def log_message(self, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                """Envoy ends with its connections open."""

        self._servers = [Server(("127.0.0.1", 0), Answer) for _ in range(count)]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.ports = [server.server_port for server in self._servers]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@pytest.fixture(scope="module")
def backends() -> Iterator[Backends]:
    made = Backends(6)
    yield made
    made.close()


@pytest.fixture(scope="module")
def ports(backends: Backends) -> list[int]:
    return backends.ports


def host(port: int, weight: int = 1, **more: Any) -> Json:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    name = more.pop("hostname", "")
    found: Json = {"endpoint": {"address": address, "hostname": name}, **more}
    return {**found, "load_balancing_weight": weight}


def group(*hosts: Json, zone: str = "", weight: int = 0, priority: int = 0) -> Json:
    found: Json = {"lb_endpoints": list(hosts), "priority": priority}
    if zone:
        found["locality"] = {"region": "r", "zone": zone}
    return {**found, **({"load_balancing_weight": weight} if weight else {})}


def cluster(name: str, *groups: Json, policy: Json | None = None, **fields: Any) -> Json:
    load = {"cluster_name": name, "endpoints": list(groups), "policy": policy or {}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": load,
        **fields,
    }


def typed(kind: str, **fields: Any) -> Json:
    prefix = "type.googleapis.com/envoy.extensions.load_balancing_policies"
    config = {"@type": f"{prefix}.{kind}", **fields}
    policy = {"typed_extension_config": {"name": "x", "typed_config": config}}
    return {"load_balancing_policy": {"policies": [policy]}}


RING: Json = {"lb_policy": "RING_HASH"}
MAGLEV: Json = {"lb_policy": "MAGLEV"}
WEIGHTED = {"common_lb_config": {"locality_weighted_lb_config": {}}}


def metadata(key: str) -> Json:
    return {"metadata": {"filter_metadata": {"envoy.lb": {"hash_key": key}}}}


def hashed(ports: list[int]) -> list[Json]:
    """Clusters that balance by key."""
    a, b, c, d, e, f = ports
    equal = group(*map(host, ports))
    heavy = group(host(a), host(b, 2), host(c, 7), host(d, 3), host(e, 5), host(f, 13))
    named = group(*(host(port, hostname=f"host-{i}") for i, port in enumerate(ports)))
    keyed = group(*(host(port, **metadata(f"key-{i}")) for i, port in enumerate(ports)))
    zones = (
        group(host(a), host(b, 3), zone="z", weight=5),
        group(host(c), zone="c", weight=1),
        group(host(d, 2), host(e), host(f), zone="b", weight=3),
    )
    sick = group(
        host(a, health_status="UNHEALTHY"),
        host(b),
        host(c, health_status="DEGRADED"),
        host(d, 4),
        host(e, health_status="DRAINING"),
        host(f, 2),
    )
    failing = (
        group(host(a, health_status="UNHEALTHY"), host(b), zone="z", weight=1),
        group(host(c), host(d, 2), zone="y", weight=1, priority=1),
        group(host(e), host(f), zone="x", weight=1, priority=2),
    )
    panicking = group(
        host(a, health_status="UNHEALTHY"), host(b, 2, health_status="UNHEALTHY"), host(c)
    )
    small = {"ring_hash_lb_config": {"minimum_ring_size": 7, "maximum_ring_size": 11}}
    murmur = {"ring_hash_lb_config": {"hash_function": "MURMUR_HASH_2"}}
    by_name = {
        "common_lb_config": {"consistent_hashing_lb_config": {"use_hostname_for_hashing": True}}
    }
    bounded = {"common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 200}}}
    found = []
    for kind, policy in (("ring", RING), ("maglev", MAGLEV)):
        found += [
            cluster(f"{kind}-equal", equal, **policy),
            cluster(f"{kind}-heavy", heavy, **policy),
            cluster(f"{kind}-named", named, **policy, **by_name) | {"type": "STRICT_DNS"},
            cluster(f"{kind}-keyed", keyed, **policy),
            cluster(f"{kind}-zones", *zones, **policy),
            cluster(f"{kind}-zone-weights", *zones, **policy, **WEIGHTED),
            cluster(f"{kind}-sick", sick, **policy),
            cluster(f"{kind}-failing", *failing, **policy),
            cluster(f"{kind}-panic", panicking, **policy),
            cluster(f"{kind}-bounded", equal, **policy, **bounded),
            cluster(f"{kind}-one", group(host(a)), **policy),
            cluster(
                f"{kind}-calm",
                panicking,
                **policy,
                common_lb_config={"healthy_panic_threshold": {"value": 0}},
            ),
        ]
    return [
        *found,
        cluster("ring-small", heavy, **RING, **small),
        cluster("ring-murmur", heavy, **RING, **murmur),
        cluster("maglev-table", heavy, **MAGLEV, maglev_lb_config={"table_size": 101}),
        cluster("typed-ring", heavy, **typed("ring_hash.v3.RingHash", minimum_ring_size=50)),
        cluster(
            "typed-maglev",
            *zones,
            **typed("maglev.v3.Maglev", table_size=1009, locality_weighted_lb_config={}),
        ),
        cluster(
            "typed-own-key",
            equal,
            **typed(
                "ring_hash.v3.RingHash",
                consistent_hashing_lb_config={
                    "hash_policy": [{"header": {"header_name": "x-own"}}]
                },
            ),
        ),
    ]


def route(name: str) -> Json:
    action = {"cluster": name, "hash_policy": [{"header": {"header_name": "x-key"}}]}
    return {"match": {"path": f"/{name}"}, "route": action}


def started(clusters: list[Json]) -> Envoy:
    routes = [route(each["name"]) for each in clusters]
    config = {"name": "rc", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]}
    return Envoy([http_listener(config)], clusters)


class Caller:
    """Asks Envoy over one connection."""

    def __init__(self, envoy: Envoy) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", envoy.port(), timeout=10)

    def port(self, name: str, key: str = "") -> int | None:
        """Where a call went; None where Envoy had nobody to ask."""
        headers = {"x-key": key, "x-own": f"own {key}"} if key else {}
        self._connection.request("GET", f"/{name}", headers=headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status == 503:
            assert body == b"no healthy upstream"
            return None
        assert answer.status == 200, body
        return int(answer.headers["x-port"])

    def close(self) -> None:
        self._connection.close()


def view_of(config: Json) -> ClusterView:
    message = json_format.ParseDict(config, cluster_pb2.Cluster())
    found = DECODERS[CLUSTER].decode(message, [])
    return ClusterPool(random.Random(1).random).view(found, None)


def our_port(view: ClusterView, key: int | None = None) -> int | None:
    try:
        return view.choose(random.random, key).endpoint.port
    except NoHealthyUpstream:
        return None


def test_a_key_goes_to_the_same_host(ports: list[int]) -> None:
    clusters = hashed(ports)
    differences = []
    with started(clusters) as envoy:
        caller = Caller(envoy)
        for config in clusters:
            view = view_of(config)
            for number in range(KEYS):
                key = f"key {number}"
                theirs = caller.port(config["name"], key)
                used = f"own {key}" if view.cluster.lb.hash_policy else key
                ours = our_port(view, xx_hash(used.encode()))
                if ours != theirs:
                    differences.append((config["name"], key, theirs, ours))
        caller.close()
    assert not differences, f"{len(differences)}: {differences[:5]}"


@pytest.mark.parametrize("policy", [RING, MAGLEV], ids=["ring", "maglev"])
@pytest.mark.parametrize("factor", [100, 150, 300])
def test_a_busy_host_makes_way_for_the_same_other_one(
    backends: Backends, policy: Json, factor: int
) -> None:
    """Calls of one key that do not end fill its host, and then others in an order of their own."""
    bound = {"common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": factor}}}
    hosts = group(*(host(port, weight) for weight, port in enumerate(backends.ports, 1)))
    config = cluster("hold", hosts, **policy, **bound)
    view = view_of(config)
    backends.release.clear()
    with started([config]) as envoy:
        held = []
        for _ in range(20):
            connection = http.client.HTTPConnection("127.0.0.1", envoy.port(), timeout=10)
            connection.request("GET", "/hold", headers={"x-key": "busy"})
            answer = connection.getresponse()
            held.append((connection, answer))
        backends.release.set()
        theirs = [int(answer.headers["x-port"]) for _, answer in held]
        for connection, answer in held:
            answer.read()
            connection.close()
    ours = [view.pick(random.random, xx_hash(b"busy")).endpoint.port for _ in held]
    assert ours == theirs
    assert len(set(ours)) > 1


def shared(ports: list[int]) -> list[Json]:
    """Clusters whose turns are fixed by weights."""
    a, b, c, d, e, f = ports
    zones = (
        group(host(a), host(b, 3), zone="z", weight=6),
        group(host(c), zone="y", weight=2),
        group(host(d), host(e, health_status="UNHEALTHY"), host(f, health_status="UNHEALTHY"),
              zone="x", weight=12),
    )  # fmt: skip
    return [
        cluster("equal", group(*map(host, ports))),
        cluster("weights", group(host(a), host(b, 2), host(c, 5))),
        cluster("zone-weights", *zones, **WEIGHTED),
        cluster("ignored-zone-weights", *zones),
        cluster(
            "degraded", group(host(a, health_status="DEGRADED"), host(b, health_status="DRAINING"))
        ),
        cluster(
            "calm",
            group(host(a, health_status="UNHEALTHY"), host(b, health_status="UNHEALTHY"), host(c)),
            common_lb_config={"healthy_panic_threshold": {"value": 20}},
        ),
        cluster("panic", group(host(a, health_status="UNHEALTHY"), host(b, health_status="TIMEOUT"),
                               host(c, health_status="DRAINING"))),
        cluster("typed", *zones, **typed("round_robin.v3.RoundRobin",
                locality_lb_config={"locality_weighted_lb_config": {}})),
    ]  # fmt: skip


def test_weights_give_the_same_shares(ports: list[int]) -> None:
    """Over whole cycles the shares of round robin are exact, wherever it began."""
    clusters = shared(ports)
    turns = 240
    with started(clusters) as envoy:
        caller = Caller(envoy)
        for config in clusters:
            name = config["name"]
            view = view_of(config)
            theirs = Counter(caller.port(name) for _ in range(turns))
            ours = Counter(our_port(view) for _ in range(turns))
            assert theirs.keys() == ours.keys(), name
            for port, count in theirs.items():
                assert abs(count - ours[port]) <= 6, (name, theirs, ours)
        caller.close()


def spread(ports: list[int]) -> list[Json]:
    """Clusters whose priorities share calls by chance."""
    a, b, c, d, e, f = ports
    low = group(host(d), host(e), host(f), priority=1, zone="w")
    return [
        cluster("half", group(host(a), host(b, health_status="UNHEALTHY"), zone="z"), low),
        cluster(
            "by-weight",
            group(host(a, 9), host(b, 1, health_status="UNHEALTHY"), zone="z"),
            low,
            policy={"weighted_priority_health": True},
        ),
        cluster(
            "factor",
            group(host(a), host(b), host(c, health_status="UNHEALTHY"), zone="z"),
            low,
            policy={"overprovisioning_factor": 100},
        ),
        cluster(
            "degrading",
            group(host(a), *(host(p, health_status="DEGRADED") for p in (b, c)), zone="z"),
        ),
        cluster(
            "total-panic",
            group(*(host(p, health_status="UNHEALTHY") for p in (a, b)), zone="z"),
            group(*(host(p, health_status="UNHEALTHY") for p in (d, e, f)), priority=1, zone="w"),
        ),
    ]


def test_priorities_get_the_same_shares(ports: list[int]) -> None:
    clusters = spread(ports)
    turns = 1000
    with started(clusters) as envoy:
        caller = Caller(envoy)
        for config in clusters:
            name = config["name"]
            view = view_of(config)
            theirs = Counter(caller.port(name) for _ in range(turns))
            ours = Counter(our_port(view) for _ in range(turns))
            assert theirs.keys() == ours.keys(), name
            for port, count in theirs.items():
                # four standard deviations of a difference of two such draws
                assert abs(count - ours[port]) < 4 * (2 * turns / 4) ** 0.5, (name, theirs, ours)
        caller.close()


def subsets(ports: list[int]) -> list[tuple[Json, list[Json | None]]]:
    """Clusters with subsets, and what routes ask of them."""

    def labelled(port: int, **labels: Any) -> Json:
        return host(port, metadata={"filter_metadata": {"envoy.lb": labels}})

    a, b, c, d, e, f = ports
    hosts = group(
        labelled(a, stage="prod", version="1"),
        labelled(b, stage="prod", version="2"),
        labelled(c, stage="dev", version="1"),
        labelled(d, stage="dev", version=["2", "3"]),
        labelled(e, other="x"),
        host(f),
    )
    asked: list[Json | None] = [
        None,
        {"stage": "prod"},
        {"stage": "dev"},
        {"stage": "none"},
        {"version": "1"},
        {"version": "3"},
        {"stage": "prod", "version": "2"},
        {"stage": "prod", "version": "9"},
        {"stage": "prod", "other": "x"},
        {"unknown": "x"},
    ]
    selectors: list[Json] = [
        {"keys": ["stage"]},
        {"keys": ["stage", "version"], "fallback_policy": "KEYS_SUBSET",
         "fallback_keys_subset": ["stage"]},
        {"keys": ["version"], "fallback_policy": "NO_FALLBACK"},
        {"keys": ["other"], "fallback_policy": "ANY_ENDPOINT", "single_host_per_subset": True},
    ]  # fmt: skip
    default = {"default_subset": {"stage": "dev"}}
    return [
        (cluster(name, hosts, lb_subset_config={**config, "subset_selectors": selectors}), asked)
        for name, config in (
            ("none", {}),
            ("any", {"fallback_policy": "ANY_ENDPOINT"}),
            ("default", {"fallback_policy": "DEFAULT_SUBSET", **default}),
            ("lists", {"fallback_policy": "ANY_ENDPOINT", "list_as_any": True}),
            ("default-of-nobody", {"fallback_policy": "DEFAULT_SUBSET", "panic_mode_any": True,
                                   "default_subset": {"stage": "gone"}}),
        )
    ]  # fmt: skip


def test_routes_reach_the_same_subset(ports: list[int]) -> None:
    cases = subsets(ports)
    routes = [
        {
            "match": {"path": f"/{config['name']}-{index}"},
            "route": {
                "cluster": config["name"],
                **({"metadata_match": {"filter_metadata": {"envoy.lb": match}}} if match else {}),
            },
        }
        for config, asked in cases
        for index, match in enumerate(asked)
    ]
    rc = {"name": "rc", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]}
    with Envoy([http_listener(rc)], [config for config, _ in cases]) as envoy:
        caller = Caller(envoy)
        for config, asked in cases:
            view = view_of(config)
            for index, match in enumerate(asked):
                name = f"{config['name']}-{index}"
                theirs = {caller.port(name) for _ in range(12)}
                ours = {our_port(view.subset(match)) for _ in range(12)}
                assert ours == theirs, (config["name"], match)
        caller.close()


@pytest.mark.parametrize("per_million", [1_000_000, 999_999])
def test_drops_are_answered_alike(ports: list[int], per_million: int) -> None:
    share = {"numerator": per_million, "denominator": "MILLION"}
    drops = {"drop_overloads": [{"category": "x", "drop_percentage": share}]}
    config = cluster("dropping", group(host(ports[0])), policy=drops)
    with started([config]) as envoy:
        connection = http.client.HTTPConnection("127.0.0.1", envoy.port(), timeout=10)
        connection.request("GET", "/dropping")
        answer = connection.getresponse()
        theirs = answer.status, answer.read()
        connection.close()
    error = view_of(config).dropped(lambda: 0.5)
    assert error is not None
    assert (error.http_status, error.body.encode()) == theirs
