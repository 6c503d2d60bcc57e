"""Changes of headers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from meshsdk.formats import Format


class AppendAction(enum.Enum):
    """Envoy `HeaderValueOption.HeaderAppendAction`."""

    APPEND_OR_ADD = "APPEND_IF_EXISTS_OR_ADD"
    ADD_IF_ABSENT = "ADD_IF_ABSENT"
    OVERWRITE_OR_ADD = "OVERWRITE_IF_EXISTS_OR_ADD"
    OVERWRITE = "OVERWRITE_IF_EXISTS"


@dataclass(frozen=True, slots=True)
class HeaderOption:
    """One header to set; `value` may hold command operators.

    Raises:
        ValueError: an operator does not exist, or its parameters are wrong.
    """

    name: str
    """Lower case."""
    value: str
    action: AppendAction = AppendAction.APPEND_OR_ADD
    keep_empty: bool = False
    format: Format = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", Format(self.value))


@dataclass(frozen=True, slots=True)
class HeaderMutations:
    """Changes of one level (weighted cluster, route, virtual host or route configuration)."""

    request_set: tuple[HeaderOption, ...] = ()
    request_remove: tuple[str, ...] = ()
    response_set: tuple[HeaderOption, ...] = ()
    response_remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.request_set or self.request_remove or self.response_set or self.response_remove
        )


NO_MUTATIONS = HeaderMutations()
