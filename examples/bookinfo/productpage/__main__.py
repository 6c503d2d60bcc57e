"""python -m examples.bookinfo.productpage --address 127.0.0.10 --port 9080"""

from __future__ import annotations

import os
import secrets
import sys

import meshsdk
from examples.bookinfo import serving
from examples.bookinfo.instance import arguments
from examples.bookinfo.productpage.app import create_app


def main() -> int:
    instance = arguments("productpage")
    mesh = meshsdk.Mesh()
    # Processes that share a secret accept each other's sign-ins; without one, each its own.
    secret = os.environ.get("BOOKINFO_SECRET") or secrets.token_hex(32)
    app = create_app(instance, mesh, secret)
    return serving.run(mesh.asgi(app, port=instance.port, address=instance.address), instance)


if __name__ == "__main__":
    sys.exit(main())
