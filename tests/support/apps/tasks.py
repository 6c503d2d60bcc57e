"""A plain Celery application over files: its one task asks a server and stores the answer."""

from __future__ import annotations

import os

import httpx
from celery import Celery

_DIRECTORY = os.environ.get("TEST_BROKER", "")

app = Celery("tests.support.apps.tasks", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{_DIRECTORY}/queue",
        "data_folder_out": f"{_DIRECTORY}/queue",
        "control_folder": f"{_DIRECTORY}/control",
    },
    result_backend=f"file://{_DIRECTORY}/results",
    worker_hijack_root_logger=False,
)


@app.task
def ask(url: str) -> list[object]:
    return [os.getpid(), httpx.get(url).json()]
