"""`python -m meshsdk {run,doctor,dump}`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from meshsdk import doctor, run

    parser = argparse.ArgumentParser(
        prog="python -m meshsdk",
        description="The mesh in a Python process. Each command has its own --help.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run.add_arguments(commands.add_parser("run", help="attach the mesh to an unchanged program"))
    doctor.add_doctor_arguments(
        commands.add_parser("doctor", help="what is covered here, what is not, what to do")
    )
    doctor.add_dump_arguments(
        commands.add_parser("dump", help="the configuration that this workload gets, as JSON")
    )
    args = parser.parse_args(argv)
    if args.command == "run":
        return run.main(args)
    if args.command == "doctor":
        return doctor.main(args)
    return doctor.dump_main(args)


if __name__ == "__main__":
    sys.exit(main())
