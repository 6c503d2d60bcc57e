"""`meshctl`: one command for operators, with istioctl's verbs, nouns and flags.

Exit codes as istioctl: 0 ok, 1 unknown error, 64 usage, 65 bad data, 79 the analyzer found errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from controlplane.cli.check import register as register_check
from controlplane.cli.live import register as register_live
from controlplane.cli.look import register as register_look
from controlplane.cli.output import Failure, complain
from controlplane.cli.serve import register as register_serve
from controlplane.cli.validate import register as register_validate
from controlplane.world import ConfigError

USAGE, DATA = 64, 65

app = typer.Typer(
    name="meshctl",
    help="Istio's traffic policy without sidecars: the control plane and the tools around it.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for register in (register_serve, register_validate, register_look, register_live, register_check):
    register(app)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `meshctl` and exit; every error is one readable line per mistake, never a traceback."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run `meshctl`; returns the exit code.

    Args:
        argv: the words after the program's name; None takes those of this process.
    """
    try:
        code = app(argv, prog_name="meshctl", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except TyperException as error:
        _complain_of_usage(error)
        return USAGE
    except SystemExit as end:
        return int(end.code or 0)
    except ConfigError as error:
        for finding in error.findings:
            complain(str(finding))
        return DATA
    except Failure as failure:
        complain(str(failure))
        return failure.code
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _complain_of_usage(error: TyperException) -> None:
    """One line instead of typer's box; nothing when it has shown the help already."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "meshctl"
    said = getattr(error, "format_message", error.__str__)()
    words = " ".join(said.replace("Value error, ", "").split()).rstrip(".")
    complain(f"{command}: {words}; see: {command} --help")
