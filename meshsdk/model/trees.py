"""The route table as a tree: Envoy's unified matcher over request headers.

Source: `xds/type/matcher/v3/matcher.proto`; Envoy allows only request headers as its input here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

from meshsdk.matching import HeaderSource, StringMatch

if TYPE_CHECKING:
    from meshsdk.model.routes import Route


@dataclass(frozen=True, slots=True)
class Predicate:
    """A condition on one header, or a combination of conditions.

    Attributes:
        header, string: the one condition.
        every, some: conditions of which all, or any, must hold.
        negated: the other way round.
    """

    header: str = ""
    string: StringMatch | None = None
    every: tuple[Predicate, ...] = ()
    some: tuple[Predicate, ...] = ()
    negated: bool = False

    def holds(self, headers: HeaderSource) -> bool:
        if self.string is not None:
            value = _value(headers, self.header)
            found = value is not None and self.string.matches(value)
        elif self.every:
            found = all(part.holds(headers) for part in self.every)
        else:
            found = any(part.holds(headers) for part in self.some)
        return found != self.negated


def _value(headers: HeaderSource, name: str) -> str | None:
    values = headers.values(name)
    return ",".join(values) if values else None


Outcome = Union["MatchTree", "tuple[Route, ...]"]


@dataclass(frozen=True, slots=True)
class MatchTree:
    """One node.

    Attributes:
        branches: asked in order; the first that holds and leads to routes counts.
        header, table: the value of a header looked up, exactly or by its longest prefix.
        otherwise: where nothing else leads to routes.
    """

    branches: tuple[tuple[Predicate, Outcome], ...] = ()
    header: str = ""
    table: Mapping[str, Outcome] = field(default_factory=dict, hash=False)
    by_prefix: bool = False
    otherwise: Outcome | None = None

    def find(self, headers: HeaderSource) -> tuple[Route, ...] | None:
        """The routes to ask, in order; None when the tree leads nowhere."""
        for outcome in self._outcomes(headers):
            found = outcome.find(headers) if isinstance(outcome, MatchTree) else outcome
            if found is not None:
                return found
        return None

    def _outcomes(self, headers: HeaderSource) -> Iterator[Outcome]:
        for predicate, outcome in self.branches:
            if predicate.holds(headers):
                yield outcome
        value = _value(headers, self.header) if self.header else None
        if value is not None:
            shortest = 0 if self.by_prefix else len(value)
            for length in range(len(value), shortest - 1, -1):
                if value[:length] in self.table:
                    yield self.table[value[:length]]
        if self.otherwise is not None:
            yield self.otherwise

    def routes(self) -> tuple[Any, ...]:
        """Every route in it."""
        outcomes = [outcome for _, outcome in self.branches] + list(self.table.values())
        if self.otherwise is not None:
            outcomes.append(self.otherwise)
        return tuple(
            route
            for outcome in outcomes
            for route in (outcome.routes() if isinstance(outcome, MatchTree) else outcome)
        )
