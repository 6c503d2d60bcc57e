"""Running an asynchronous service under uvicorn.

The mesh does the rest, through `mesh.asgi(app, port=...)`: it registers the process once the port
accepts connections, and on SIGTERM it deregisters and lets calls that are on their way arrive
before uvicorn hears of the signal.
"""

from __future__ import annotations

import logging
import os

import uvicorn

from examples.bookinfo.instance import AsgiApp, Instance, naming


def log_as(instance: Instance) -> None:
    """Each line says which process wrote it."""
    logging.basicConfig(
        level=os.environ.get("BOOKINFO_LOG", "INFO"),
        format=f"%(asctime)s {instance.name} %(process)d %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


def run(app: AsgiApp, instance: Instance) -> int:
    """Serves until SIGTERM or Ctrl-C, each answer naming the instance; the exit status."""
    log_as(instance)
    server = uvicorn.Server(
        uvicorn.Config(
            naming(app, instance),
            host=instance.address,
            port=instance.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=300,
            timeout_graceful_shutdown=5,
        )
    )
    server.run()
    return 0 if server.started else 1
