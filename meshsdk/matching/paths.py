"""Conditions on the path of a request."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from meshsdk.matching.strings import compile_regex, lower
from meshsdk.matching.templates import Template


class PathKind(enum.Enum):
    EXACT = "path"
    PREFIX = "prefix"
    SEGMENT_PREFIX = "path_separated_prefix"
    REGEX = "safe_regex"
    TEMPLATE = "path_match_policy"
    CONNECT = "connect_matcher"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """Condition on the path without query and fragment; `ignore_case` not for expressions.

    CONNECT takes every path: its condition is the method.

    Raises:
        ValueError: the expression or template is wrong.
    """

    kind: PathKind
    value: str
    ignore_case: bool = False
    template: Template | None = field(init=False, repr=False, compare=False)
    _regex: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        template = Template(self.value) if self.kind is PathKind.TEMPLATE else None
        regex = None
        if template is not None:
            regex = template.regex
        elif self.kind is PathKind.REGEX:
            regex = compile_regex(self.value)
        object.__setattr__(self, "template", template)
        object.__setattr__(self, "_regex", regex)

    def matches(self, path: str) -> bool:
        value = self.value
        if self._regex is not None:
            return self._regex.fullmatch(path) is not None
        if self.kind is PathKind.CONNECT:
            return True
        if self.ignore_case:
            value, path = lower(value), lower(path)
        if self.kind is PathKind.EXACT:
            return path == value
        if not path.startswith(value):
            return False
        return self.kind is PathKind.PREFIX or len(path) == len(value) or path[len(value)] == "/"
