"""details: what the imprint of a book says. The synchronous one: Flask under gunicorn's threads.

python -m examples.bookinfo.details --address 127.0.0.11 --port 9080
"""

from __future__ import annotations

from typing import Any

import flask
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

import meshsdk
from examples.bookinfo import serving
from examples.bookinfo.instance import HEADER, Instance, arguments

DETAILS: dict[int, dict[str, Any]] = {
    1: {
        "author": "Ines Calder",
        "publisher": "Lantern & Reed",
        "year": 2019,
        "pages": 312,
        "format": "Cloth, with 40 charts",
        "language": "English",
        "shelf_mark": "LR 19.4 CAL",
    },
    2: {
        "author": "Anselm Ruiz-Holt",
        "publisher": "Hearthside Editions",
        "year": 2021,
        "pages": 204,
        "format": "Paperback",
        "language": "English",
        "shelf_mark": "HE 21.1 RUI",
    },
    3: {
        "author": "Petra Lindqvist",
        "publisher": "Meridian House",
        "year": 2023,
        "pages": 388,
        "format": "Hardcover",
        "language": "English",
        "shelf_mark": "MH 23.7 LIN",
    },
}


def create_app(instance: Instance) -> flask.Flask:
    app = flask.Flask("details")

    @app.get("/details/<int:book>")
    def details(book: int) -> tuple[dict[str, Any], int]:
        found = DETAILS.get(book)
        if found is None:
            return {"error": f"there is no book {book}"}, 404
        return {"id": book, **found, "served_by": instance.served_by}, 200

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "served_by": instance.served_by}

    @app.after_request
    def named(response: flask.Response) -> flask.Response:
        response.headers[HEADER] = instance.served_by
        return response

    return app


class Threaded(BaseApplication):  # type: ignore[misc]
    """gunicorn with one worker of eight threads, started from the program itself."""

    def __init__(self, instance: Instance, mesh: meshsdk.Mesh) -> None:
        self._instance = instance
        self._mesh = mesh
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "bind": f"{self._instance.address}:{self._instance.port}",
            "worker_class": "gthread",
            "threads": 8,
            "keepalive": 300,
            "control_socket_disable": True,
            "proc_name": self._instance.name,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Called in the worker, which is the process that serves and so the one to register."""
        app = create_app(self._instance)
        return self._mesh.wsgi(app, port=self._instance.port, address=self._instance.address)


def main() -> None:
    instance = arguments("details")
    serving.log_as(instance)
    Threaded(instance, meshsdk.Mesh()).run()


if __name__ == "__main__":
    main()
