"""The control plane's configuration directory: a copy that each step writes its file into."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent / "config"
BOOKINFO = Path(__file__).parents[1] / "bookinfo" / "mesh"


class Configuration:
    """A directory with the services, and one file for what the present step wants.

    There is only one such file, replaced in one go, so no call ever finds the rules of two steps
    or of none.

    Args:
        directory: is made.
        addresses: what an address written in a file stands for: `ip:port` → `ip:port`.
    """

    def __init__(self, directory: Path, addresses: Mapping[str, str]) -> None:
        self.directory = directory
        self._addresses = dict(addresses)
        self._step = ""
        directory.mkdir(parents=True)
        for source in sorted(BOOKINFO.glob("*.yaml")):
            shutil.copy(source, directory / source.name)
        shutil.copy(HERE / "00-services.yaml", directory)

    def write(self, name: str) -> list[dict[str, Any]]:
        """Puts `config/<name>` in the place of what was there; the documents in it."""
        text = (HERE / name).read_text()
        documents = [document for document in yaml.safe_load_all(text) if document]
        if any(self._move(document) for document in documents):
            text = yaml.safe_dump_all(documents, sort_keys=False)
        # Not *.yaml until it is complete, so that nobody reads half of it.
        partial = self.directory / "step.yaml.partial"
        partial.write_text(text)
        os.replace(partial, self.directory / "step.yaml")
        self._step = name
        return documents

    def relocate(self, old: str, new: str) -> None:
        """What is at `ip:port` `old` is now at `new`: puts that into the step's file."""
        for written, actual in self._addresses.items():
            if actual == old:
                self._addresses[written] = new
        self.write(self._step)

    def _move(self, document: dict[str, Any]) -> bool:
        """Puts the actual addresses into a ServiceEntry; whether any differs."""
        if document.get("kind") != "ServiceEntry":
            return False
        moved = False
        for endpoint in document["spec"].get("endpoints", ()):
            for name, port in endpoint.get("ports", {}).items():
                written = f"{endpoint['address']}:{port}"
                actual = self._addresses.get(written, written)
                host, _, number = actual.rpartition(":")
                endpoint["address"], endpoint["ports"][name] = host, int(number)
                moved |= actual != written
        return moved
