"""gRPC's own `xds:///` client, in a process of its own with a stock bootstrap, as a client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.backend import METHOD, Backend
from tests.support.controlplane import ServedWorld, service, workload

_CLIENT = """
import collections, json, sys
import grpc
for line in sys.stdin:
    order = json.loads(line)
    with grpc.insecure_channel("xds:///" + order["target"]) as channel:
        call = channel.unary_unary(order["method"])
        counts = collections.Counter()
        for _ in range(order["times"]):
            try:
                counts[call(b"", timeout=10, metadata=order["metadata"]).decode()] += 1
            except grpc.RpcError as error:
                counts[f"{error.code().name}: {error.details()}"] += 1
    print(json.dumps(counts), flush=True)
"""


class NativeClient:
    def __init__(self, address: str) -> None:
        bootstrap = {
            "xds_servers": [
                {
                    "server_uri": address,
                    "channel_creds": [{"type": "insecure"}],
                    "server_features": ["xds_v3"],
                }
            ],
            "node": {"id": "sidecar~127.0.0.1~native.default~default.svc.cluster.local"},
        }
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def call(self, target: str, times: int = 1, **metadata: str) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        order = {"target": target, "method": METHOD, "times": times, "metadata": pairs}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        self.process.communicate(timeout=10)


def _rules(http: list[dict[str, Any]]) -> str:
    spec = {"hosts": ["ratings"], "http": http}
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "ratings", "namespace": "default"},
        "spec": spec,
    }
    return json.dumps(document) + "\n---\n"


def _to(subset: str = "", weight: int = 0) -> dict[str, Any]:
    destination = {"host": "ratings", **({"subset": subset} if subset else {})}
    return {"destination": destination, **({"weight": weight} if weight else {})}


_SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings, namespace: default}
spec:
  host: ratings
  trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
"""


@pytest.fixture(scope="module")
def backends() -> Any:
    with Backend("v1") as one, Backend("v2") as two:
        yield one, two


@pytest.fixture(scope="module")
def base(backends: tuple[Backend, Backend]) -> str:
    one, two = backends
    return (
        service("ratings", "grpc:9080")
        + workload("one", "127.0.0.1", "ratings", version="v1", ports={"grpc": one.port})
        + workload("two", "127.0.0.1", "ratings", version="v2", ports={"grpc": two.port})
        + _SUBSETS
    )


@pytest.fixture(scope="module")
def served(base: str) -> Any:
    with ServedWorld(base) as world:
        yield world


@pytest.fixture(scope="module")
def client(served: ServedWorld) -> Any:
    made = NativeClient(served.address)
    yield made
    made.close()


FQDN = "ratings.default.svc.cluster.local:9080"


def test_round_robin_over_all_endpoints(
    client: NativeClient, served: ServedWorld, base: str
) -> None:
    served.publish(base)
    counts = client.call(FQDN, 20)
    assert set(counts) == {"v1", "v2"}
    assert sum(counts.values()) == 20


@pytest.mark.parametrize(
    "target", ["ratings:9080", "ratings.default:9080", "ratings.default.svc:9080", FQDN]
)
def test_all_names_of_the_service_answer(
    client: NativeClient, served: ServedWorld, base: str, target: str
) -> None:
    served.publish(base)
    assert sum(client.call(target, 2).values()) == 2
    assert set(client.call(target, 2)) <= {"v1", "v2"}


def test_header_chooses_the_subset(client: NativeClient, served: ServedWorld, base: str) -> None:
    jason = {"match": [{"headers": {"end-user": {"exact": "jason"}}}], "route": [_to("v2")]}
    served.publish(base + _rules([jason, {"route": [_to("v1")]}]))
    assert client.call(FQDN, 5, end_user="jason") == {"v2": 5}
    assert client.call(FQDN, 5, end_user="anna") == {"v1": 5}
    assert client.call(FQDN, 5) == {"v1": 5}


def test_without_headers_holds_when_the_header_is_absent_or_another(
    client: NativeClient, served: ServedWorld, base: str
) -> None:
    others = {
        "match": [{"withoutHeaders": {"end-user": {"exact": "jason"}}}],
        "route": [_to("v1")],
    }
    served.publish(base + _rules([others, {"route": [_to("v2")]}]))
    assert client.call(FQDN, 3) == {"v1": 3}
    assert client.call(FQDN, 3, end_user="anna") == {"v1": 3}
    assert client.call(FQDN, 3, end_user="jason") == {"v2": 3}


def test_weights(client: NativeClient, served: ServedWorld, base: str) -> None:
    served.publish(base + _rules([{"route": [_to("v1", 80), _to("v2", 20)]}]))
    counts = client.call(FQDN, 500)
    assert sum(counts.values()) == 500
    assert 340 <= counts["v1"] <= 450  # five standard deviations around 400, and then some


def test_abort(client: NativeClient, served: ServedWorld, base: str) -> None:
    abort = {"percentage": {"value": 100}, "grpcStatus": "RESOURCE_EXHAUSTED"}
    served.publish(base + _rules([{"fault": {"abort": abort}, "route": [_to("v1")]}]))
    (answer,) = client.call(FQDN, 3)
    assert answer.startswith("RESOURCE_EXHAUSTED")


def test_rules_that_it_does_not_know_do_no_harm(
    client: NativeClient, served: ServedWorld, base: str
) -> None:
    rule = {
        "match": [{"uri": {"prefix": "/"}}],
        "rewrite": {"authority": "other"},
        "headers": {"request": {"set": {"x-a": "b"}}},
        "retries": {"attempts": 2, "retryOn": "5xx,unavailable", "perTryTimeout": "1s"},
        "mirror": {"host": "ratings", "subset": "v2"},
        "corsPolicy": {"allowOrigins": [{"exact": "https://a"}]},
        "timeout": "5s",
        "route": [_to("v1")],
    }
    served.publish(base + _rules([rule]))
    # What is left out is told to operators; that it was accepted shows in that the call works.
    assert client.call(FQDN, 3) == {"v1": 3}


def test_an_unknown_host_is_not_answered_as_passthrough(
    client: NativeClient, served: ServedWorld, base: str
) -> None:
    served.publish(base)
    assert not served.run(
        lambda: [
            name
            for (_, _, name), watchers in served.hub._watchers.items()
            if name == "PassthroughCluster" and watchers
        ]
    )
