"""What a document tells its reader to type, and what it says will be seen."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^(?P<ticks>```+)(?P<language>\w*)\s*$")
_COMMENT = re.compile(r"^<!--\s*(?P<text>.*?)\s*-->$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        language: the word behind the fence: `sh`, `text`, `yaml` …
        text: what is inside, with its last newline.
        note: text of an HTML comment on the line in front; empty when there is none.
    """

    language: str
    text: str
    note: str = ""


def section(document: str, title: str) -> str:
    """The part of a document below the heading `title`, up to the next one of its level or above.

    Raises:
        LookupError: there is no such heading.
    """
    lines = document.splitlines(keepends=True)
    start, level = _heading(lines, title)
    fenced = False
    for end in range(start, len(lines)):
        fenced ^= lines[end].startswith("```")
        match = re.match(r"(#+) ", lines[end])
        if match and not fenced and len(match[1]) <= level:
            return "".join(lines[start:end])
    return "".join(lines[start:])


def _heading(lines: list[str], title: str) -> tuple[int, int]:
    for number, line in enumerate(lines):
        match = re.match(r"(#+) (.*)", line)
        if match and match[2].strip() == title:
            return number + 1, len(match[1])
    raise LookupError(f"no heading {title!r}")


def blocks(text: str) -> list[Block]:
    """Every fenced block, in order."""
    found: list[Block] = []
    opened: tuple[str, str, str] | None = None
    inside: list[str] = []
    note = ""
    for line in text.splitlines(keepends=True):
        if opened is not None:
            ticks, language, about = opened
            if line.strip() == ticks:
                found.append(Block(language, "".join(inside), about))
                opened, inside = None, []
            else:
                inside.append(line)
        elif fence := _FENCE.match(line):
            opened, note = (fence["ticks"], fence["language"], note), ""
        elif comment := _COMMENT.match(line.strip()):
            note = comment["text"]
        elif line.strip():
            note = ""
    return found


def links(text: str) -> list[tuple[str, str]]:
    """Links and pictures that lead to files beside the document: (path, fragment)."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.partition("#") for target in targets if "://" not in target]
    return [(path, fragment) for path, _, fragment in local]


def anchors(text: str) -> set[str]:
    """What fragments may name: the headings, as GitHub makes links of them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}
