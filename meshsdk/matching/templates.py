"""URI templates: `/media/{country}/{lang=*}/**`, and what a rewrite makes of their variables.

A segment is text, `*` (one segment), `**` (the rest, possibly empty) or a variable `{name}` or
`{name=glob}`; text may stand in front of a variable, and behind a variable or a last glob.
Source: Envoy `extensions/path/match/uri_template/v3` and `extensions/path/rewrite/uri_template/v3`;
the finer points as seen on Envoy 1.40.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from meshsdk.matching.strings import compile_regex

_TEXT: Final = r"a-zA-Z0-9\-._~%!$&'()*+,;=:@"
_LITERAL: Final = re.compile(rf"[{_TEXT}]+")
_REWRITE_LITERAL: Final = re.compile(rf"[{_TEXT}/]+")
_VARIABLE_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")
_PRINTABLE: Final = re.compile(r"/[!-~]*")
_GLOBS: Final = {"*": f"[{_TEXT}]+", "**": f"[{_TEXT}/]*"}
_MOST_VARIABLES: Final = 5
_LONGEST_NAME: Final = 16


def valid_literal(text: str) -> bool:
    """Whether text may stand in a template as it is."""
    return _LITERAL.fullmatch(text) is not None


def valid_rewrite_literal(text: str) -> bool:
    """Whether text may stand in a rewrite as it is."""
    return _REWRITE_LITERAL.fullmatch(text) is not None


def valid_variable_name(text: str) -> bool:
    return _VARIABLE_NAME.fullmatch(text) is not None


class _Parser:
    """One pass over a template, building its regular expression."""

    def __init__(self, pattern: str) -> None:
        self.rest = pattern[1:]
        self.regex: list[str] = []
        self.variables: list[str] = []
        self._seen_rest = False

    def parse(self) -> None:
        while self.rest:
            self._segment()
            if self.rest == "/":
                self.regex.append("/")
                return
            if self.rest:
                self.rest = self.rest[1:]  # the slash that ended the segment
                self.regex.append("/")

    def _segment(self) -> None:
        if self.rest[0] == "*":
            glob = "**" if self.rest.startswith("**") else "*"
            self.rest = self.rest[len(glob) :]
            self._glob(glob)
            if self.rest and self.rest[0] != "/":
                suffix, self.rest = _until(self.rest, "/")
                self._literal(suffix)
                if self.rest:
                    raise ValueError("text behind a glob must end the template")
            return
        if self.rest[0] != "{":
            text, self.rest = _until(self.rest, "/{")
            self._literal(text)
            if not self.rest.startswith("{"):
                return
        self._variable()
        if self.rest and self.rest[0] != "/":
            suffix, self.rest = _until(self.rest, "/")
            self._literal(suffix)

    def _literal(self, text: str) -> None:
        if not valid_literal(text):
            raise ValueError(f"{text!r} may not stand in a path")
        # Envoy leaves the asterisk a quantifier here.
        self.regex.append(re.sub(r"[$()+.]", r"\\\g<0>", text))

    def _glob(self, glob: str) -> None:
        if self._seen_rest:
            raise ValueError("nothing but text may follow **")
        self._seen_rest = glob == "**"
        self.regex.append(_GLOBS[glob])

    def _variable(self) -> None:
        inner, closed, self.rest = self.rest[1:].partition("}")
        if not closed:
            raise ValueError("a variable is not closed")
        name, equals, glob = inner.partition("=")
        if not valid_variable_name(name) or len(name) > _LONGEST_NAME:
            raise ValueError(f"{name!r} is not a variable name of 1 to {_LONGEST_NAME} letters")
        if name in self.variables:
            raise ValueError(f"the variable {name!r} comes twice")
        if len(self.variables) == _MOST_VARIABLES:
            raise ValueError(f"at most {_MOST_VARIABLES} variables are allowed")
        self.variables.append(name)
        self.regex.append(f"(?P<{name}>")
        for index, part in enumerate((glob if equals else "*").split("/")):
            if index:
                self.regex.append("/")
            if part in _GLOBS:
                self._glob(part)
            elif part.startswith("*"):
                raise ValueError(f"{part!r}: a glob inside a variable stands alone")
            else:
                self._literal(part)
        self.regex.append(")")


def _until(text: str, ends: str) -> tuple[str, str]:
    position = min((i for i in map(text.find, ends) if i >= 0), default=len(text))
    return text[:position], text[position:]


@dataclass(frozen=True, slots=True)
class Template:
    """A path template.

    Raises:
        ValueError: the pattern is wrong; says how.
    """

    pattern: str
    variables: tuple[str, ...] = field(init=False, compare=False)
    regex: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _PRINTABLE.fullmatch(self.pattern):
            raise ValueError(f"{self.pattern!r} is not a path template: it must start with a slash")
        parser = _Parser(self.pattern)
        try:
            parser.parse()
        except ValueError as error:
            raise ValueError(f"{self.pattern!r} is not a path template: {error}") from None
        try:
            regex = compile_regex("/" + "".join(parser.regex))
        except ValueError:
            regex = compile_regex("[^\\x00-\\x{10FFFF}]")  # as in Envoy it matches nothing
        object.__setattr__(self, "variables", tuple(parser.variables))
        object.__setattr__(self, "regex", regex)

    def captures(self, path: str) -> dict[str, str] | None:
        """The values of the variables in a path; None when it does not match."""
        found = self.regex.fullmatch(path)
        return None if found is None else {name: found[name] for name in self.variables}


@dataclass(frozen=True, slots=True)
class TemplateRewrite:
    """`/{lang}/{country}`: text and variables of the template that the route matched.

    Raises:
        ValueError: the pattern is wrong; says how.
    """

    pattern: str
    parts: tuple[tuple[str, bool], ...] = field(init=False, repr=False, compare=False)
    """(text, False) or (name of a variable, True)."""

    def __post_init__(self) -> None:
        what = f"{self.pattern!r} is not a path rewrite"
        if not self.pattern.startswith("/") or "//" in self.pattern:
            raise ValueError(f"{what}: it must start with one slash and never have two in a row")
        parts: list[tuple[str, bool]] = []
        rest = self.pattern
        while rest:
            text, rest = _until(rest, "{")
            if text:
                if not valid_rewrite_literal(text):
                    raise ValueError(f"{what}: {text!r} may not stand in a path")
                parts.append((text, False))
            if rest:
                name, closed, rest = rest[1:].partition("}")
                if not closed or not valid_variable_name(name):
                    raise ValueError(f"{what}: {name!r} is not the name of a variable in braces")
                parts.append((name, True))
        object.__setattr__(self, "parts", tuple(parts))

    @property
    def variables(self) -> frozenset[str]:
        return frozenset(text for text, variable in self.parts if variable)

    def apply(self, captures: dict[str, str]) -> str:
        return "".join(captures[text] if variable else text for text, variable in self.parts)
