"""Real Envoy as the referee: it accepts every route configuration and cluster that we render."""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

import pytest
from google.protobuf import json_format

from controlplane.model.parse import parse_text
from controlplane.translate import resources as xds
from controlplane.world import World
from tests.support.controlplane import make_node
from tests.support.envoy import http_listener
from tests.support.programs import require_data, require_envoy

ADS: dict[str, Any] = {
    "api_type": "GRPC",
    "transport_api_version": "V3",
    "grpc_services": [{"envoy_grpc": {"cluster_name": "control-plane"}}],
}


def _bootstrap(world: World, *, sdk: bool) -> dict[str, Any]:
    found = xds.everything(world, make_node(sdk=sdk))
    routes = [json_format.MessageToDict(message) for message in found[xds.RDS]]
    clusters = [json_format.MessageToDict(message) for message in found[xds.CDS]]
    listeners = []
    for number, config in enumerate(routes):
        config["validateClusters"] = False  # rules may name services that are not here
        listeners.append(http_listener(config, f"listener-{number}"))
    return {
        "node": {"id": "validate", "cluster": "validate"},
        "dynamic_resources": {"ads_config": ADS},
        "static_resources": {
            "listeners": listeners,
            "clusters": [*clusters, {"name": "control-plane", "type": "STATIC"}],
        },
    }


@pytest.mark.parametrize("sdk", [True, False])
def test_envoy_accepts_what_is_rendered(tmp_path: pathlib.Path, sdk: bool) -> None:
    envoy = require_envoy()
    texts = sorted(require_data("seed-config").glob("*.yaml"))
    texts += sorted((require_data("istio/samples") / "files").rglob("*.yaml"))
    assert len(texts) > 20
    resources = {}
    for file in texts:
        for resource in parse_text(file.read_text(), file.name).resources:
            resources.setdefault(resource.ref, resource)
    world = World.build(resources.values(), analyze=False)
    bootstrap = _bootstrap(world, sdk=sdk)
    assert len(bootstrap["static_resources"]["listeners"]) > 10
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(bootstrap))
    verdict = subprocess.run(
        [envoy, "--mode", "validate", "-c", str(config), "-l", "error"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert verdict.returncode == 0, verdict.stderr[-3000:] + verdict.stdout[-500:]
