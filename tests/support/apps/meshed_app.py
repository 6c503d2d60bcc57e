"""A service that says itself that it is in the mesh: under uvicorn, or `wsgi` under gunicorn.

`python -m tests.support.apps.meshed_app` serves on TEST_PORT.
"""

from __future__ import annotations

import os

import uvicorn

from meshsdk import default_mesh
from meshsdk.asgi import MeshMiddleware
from tests.support.apps.asgi_app import app as asgi
from tests.support.apps.flask_app import app as flask

PORT = int(os.environ["TEST_PORT"])

wsgi = default_mesh().wsgi(flask, port=PORT) if "TEST_WSGI" in os.environ else None

if __name__ == "__main__":
    asgi.add_middleware(MeshMiddleware, mesh=default_mesh(), port=PORT)
    uvicorn.run(asgi, port=PORT)
