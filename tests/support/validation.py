"""What the control plane renders, shown to real Envoy: does it accept it?"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
from typing import Any

import trustme
from google.protobuf import json_format

from controlplane.translate import resources as xds
from controlplane.world import World
from tests.support.controlplane import make_node
from tests.support.envoy import http_listener
from tests.support.programs import require_envoy

ADS: dict[str, Any] = {
    "api_type": "GRPC",
    "transport_api_version": "V3",
    "grpc_services": [{"envoy_grpc": {"cluster_name": "control-plane"}}],
}


def envoy_bootstrap(world: World, *, sdk: bool) -> dict[str, Any]:
    """A bootstrap that holds everything that a node would get."""
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


def envoy_accepts(bootstrap: dict[str, Any], folder: pathlib.Path) -> None:
    """Fails unless real Envoy takes it."""
    envoy = require_envoy()
    _give_files(bootstrap, folder)
    config = folder / "envoy.json"
    config.write_text(json.dumps(bootstrap))
    verdict = subprocess.run(
        [envoy, "--mode", "validate", "-c", str(config), "-l", "error"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert verdict.returncode == 0, verdict.stderr[-3000:] + verdict.stdout[-500:]


def _give_files(bootstrap: dict[str, Any], folder: pathlib.Path) -> None:
    """Certificates in place of files that are on the machines of whoever wrote the rules."""
    authority = trustme.CA()
    shown = authority.issue_cert("example.com")
    for name, blob in (
        ("trusted_ca", authority.cert_pem),
        ("certificate_chain", shown.cert_chain_pems[0]),
        ("private_key", shown.private_key_pem),
    ):
        blob.write_to_path(str(folder / f"{name}.pem"))
    text = json.dumps(bootstrap)
    for name, key in (
        ("trusted_ca", "trustedCa"),
        ("certificate_chain", "certificateChain"),
        ("private_key", "privateKey"),
    ):
        path = json.dumps(str(folder / f"{name}.pem"))
        text = re.sub(
            rf'"{key}": {{"filename": "[^"]*"}}', f'"{key}": {{"filename": {path}}}', text
        )
    bootstrap.clear()
    bootstrap.update(json.loads(text))
