"""`python -m meshsdk {run,doctor,dump}`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import NoReturn

USAGE = 64


class _Parser(argparse.ArgumentParser):
    """Mistakes are one line, with the exit code of `meshctl`."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; see: {self.prog} --help\n")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Ends the program for words that mean nothing here."""
        flag = words[0].partition("=")[0]
        known = [name for name in self._option_string_actions if name.startswith("--")]
        close = difflib.get_close_matches(flag, known, 1)
        self.error(f"unknown flag {flag}" + (f", did you mean {close[0]}?" if close else ""))


def main(argv: Sequence[str] | None = None) -> int:
    from meshsdk import doctor, run

    parser = _Parser(
        prog="python -m meshsdk",
        description="The mesh in a Python process. Each command has its own --help.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser
    parsers = {
        "run": add("run", help="attach the mesh to an unchanged program"),
        "doctor": add("doctor", help="what is covered here, what is not, what to do"),
        "dump": add("dump", help="the configuration that this workload gets, as JSON"),
    }
    run.add_arguments(parsers["run"])
    doctor.add_doctor_arguments(parsers["doctor"])
    doctor.add_dump_arguments(parsers["dump"])
    args, rest = parser.parse_known_args(argv)
    if rest:
        parsers[args.command].unknown(rest)
    if args.command == "run":
        return run.main(args)
    if args.command == "doctor":
        return doctor.main(args)
    return doctor.dump_main(args)


if __name__ == "__main__":
    sys.exit(main())
