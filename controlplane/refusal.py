"""Why a control plane does not start."""

from __future__ import annotations

from controlplane.model.resource import Level
from controlplane.sources.base import Snapshot
from controlplane.world import World

SET_FLAG = "--set"
_MESH_CONFIG = "spec.meshConfig."


class Refused(Exception):
    """The control plane does not start; one readable line per reason.

    Args:
        usage: it is a flag that is wrong.
    """

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


def check(snapshot: Snapshot, world: World, *, allow_unenforced: bool) -> None:
    """Looks at what would be served. Pure.

    Raises:
        Refused: a directory cannot be read, a value of `--set` means nothing, or there are
            security policies that nobody enforces.
    """
    missing = [f for f in snapshot.errors if f.resource == "config"]
    if missing:
        raise Refused("\n".join(f"{f.origin}: {f.message}" for f in missing))
    # Of a file Istio passes over what it does not know; who types a flag means something by it.
    given = [f for f in world.findings if f.origin.file == SET_FLAG and f.level > Level.INFO]
    if given:
        lines = [f"{SET_FLAG} {f.path.removeprefix(_MESH_CONFIG)}: {f.message}" for f in given]
        raise Refused("\n".join(lines), usage=True)
    if world.unenforced and not allow_unenforced:
        lines = [str(finding) for finding in world.unenforced]
        raise Refused(
            "\n".join(lines) + "\nthese security policies would not be enforced; remove them, "
            "or start with --allow-unenforced to serve without them"
        )
