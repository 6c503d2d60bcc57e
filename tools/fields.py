"""Writes docs/fields.md: every field of every Istio kind, and the tests that cover it or why not.

    python -m tools.fields

The fields come from the compiled CRDs, the verdicts from `tools/fields.yaml`, which is kept by
hand; `tools/ledger.py` says how it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from tools.ledger import (
    LEDGER,
    ROOT,
    STATUS,
    Kind,
    LedgerError,
    Verdict,
    kinds,
    missing_tests,
    read_ledger,
    read_schemas,
)

DOCUMENT = ROOT / "docs" / "fields.md"
_LEAST_FOLDED = 4

_HEAD = """\
<!-- Written by `make fields` from tools/fields.yaml; do not edit. -->
# Fields

Every field of every kind of Istio's CRDs, with the tests that cover it or the reason why it is not
honoured. *Honoured* means that it changes what a Python service with the SDK gets or does; honoured
or not, it is validated, kept and shown by `meshctl get`. Lists have `[]` behind their names, maps
`{}`. All versions of a kind have the same fields; the newest one stands first.

"""


def render(found: Iterable[Kind]) -> str:
    """The document."""
    found = list(found)
    lines = ["| kind | versions | fields | honoured | not yet | not |", "|---|---|---|---|---|---|"]
    totals = [0, 0, 0]
    for kind in found:
        counted = kind.count()
        totals = [total + count for total, count in zip(totals, counted, strict=True)]
        versions = ", ".join(kind.versions) or "all"
        link = f"[{_title(kind)}](#{_anchor(_title(kind))})"
        numbers = " | ".join(map(str, (sum(counted), *counted)))
        lines.append(f"| {link} | {versions} | {numbers} |")
    lines.append(f"| together | | {' | '.join(map(str, (sum(totals), *totals)))} |")
    sections = [_section(kind) for kind in found]
    return _HEAD + "\n".join(lines) + "\n\n" + "\n".join(sections)


def _title(kind: Kind) -> str:
    return "Status of every kind" if kind.name == STATUS else kind.name


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _section(kind: Kind) -> str:
    honoured, later, _ = kind.count()
    about = f"`{kind.group}/{kind.versions[0]}`. " if kind.versions else ""
    waiting = f", {later} not yet" if later else ""
    about += f"Honoured: {honoured} of {len(kind.verdicts)} fields{waiting}."
    page = _Page(kind.verdicts, kind.folded)
    return f"## {_title(kind)}\n\n{about}\n\n{page.text()}"


@dataclass(slots=True)
class _Page:
    """Tables of fields, in order, broken by what is folded away."""

    verdicts: Mapping[str, Verdict]
    folded: tuple[str, ...] = ()
    _blocks: list[str] = field(default_factory=list)
    _rows: list[str] = field(default_factory=list)

    def text(self) -> str:
        paths = list(self.verdicts)
        while paths:
            taken = self._folded_part(paths) or self._alike(paths)
            if not taken:
                taken = paths[:1]
                self._rows.append(f"| `{taken[0]}` | {self.verdicts[taken[0]]} |")
            paths = paths[len(taken) :]
        self._flush()
        return "\n".join(self._blocks).rstrip("\n") + "\n"

    def _folded_part(self, paths: list[str]) -> list[str]:
        """A subtree that the ledger wants folded: its fields keep their verdicts."""
        if paths[0] not in self.folded:
            return []
        taken = list(takewhile(lambda path: _inside(path, paths[0]), paths))
        part = {path: self.verdicts[path] for path in taken}
        honoured = sum(bool(verdict.tests) for verdict in part.values())
        self._fold(f"{_span(taken)}: {honoured} honoured", _Page(part).text())
        return taken

    def _alike(self, paths: list[str]) -> list[str]:
        """Fields one after the other that are not honoured for one reason."""
        verdict = self.verdicts[paths[0]]
        taken = list(
            takewhile(
                lambda path: self.verdicts[path] == verdict and path not in self.folded, paths
            )
        )
        if verdict.tests or len(taken) < _LEAST_FOLDED:
            return []
        title = f"all {len(taken)} fields" if len(taken) == len(self.verdicts) else _span(taken)
        self._fold(f"{title}: {_html(verdict)}", "\n".join(f"- `{path}`" for path in taken))
        return taken

    def _fold(self, summary: str, content: str) -> None:
        self._flush()
        text = content.rstrip("\n")
        self._blocks.append(f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>\n")

    def _flush(self) -> None:
        if self._rows:
            head = "| field | covered by |\n|---|---|\n"
            self._blocks.append(head + "\n".join(self._rows) + "\n")
            self._rows = []


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}.")


def _span(paths: Sequence[str]) -> str:
    """What fields one after the other have in common."""
    first = paths[0]
    if all(_inside(path, first) for path in paths):
        return f"<code>{first}</code> and the {len(paths) - 1} fields below"
    return f"<code>{first}</code> to <code>{paths[-1]}</code>, {len(paths)} fields"


def _html(verdict: Verdict) -> str:
    """A verdict inside an HTML element, where Markdown's code marks are not read."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", str(verdict))


def document() -> str:
    """The document as it should be.

    Raises:
        LedgerError: schemas and ledger do not fit together.
    """
    found = kinds(read_schemas(), read_ledger())
    if missing := missing_tests(found):
        raise LedgerError("\n".join(f"no such test: {test}" for test in missing))
    return render(found)


def main() -> None:
    try:
        text = document()
    except LedgerError as error:
        raise SystemExit(f"{LEDGER.relative_to(ROOT)}:\n{error}") from None
    DOCUMENT.write_text(text)
    print(f"{DOCUMENT.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
