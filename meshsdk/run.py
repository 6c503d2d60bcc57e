"""`python -m meshsdk run PROGRAM`: an unchanged program in the mesh.

The program is not run here: this process becomes it (exec), so that arguments, standard input,
signals, exit code and `__main__` are exactly what they are without the mesh. What makes it part of
the mesh is in its environment: `MESHSDK_*` from the flags, and a first entry of PYTHONPATH whose
`sitecustomize` attaches the mesh in that process and in every Python process that it starts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshsdk import settings
from meshsdk.errors import ConfigurationError
from meshsdk.propagation import extra_names
from meshsdk.serving import drain_of, ports_of

USAGE = 64
NOT_EXECUTABLE = 126
NOT_FOUND = 127

EXAMPLES = """\
examples:
  python -m meshsdk run app.py --its-own-flags
  python -m meshsdk run -m mypackage.worker
  python -m meshsdk run --group reviews --label app=reviews --label version=v2 \\
      gunicorn --workers 4 reviews:app
  python -m meshsdk run --control-plane 127.0.0.1:15010 uvicorn --workers 4 shop:app
  python -m meshsdk run celery -A tasks worker

Flags are short for MESHSDK_* variables, which may as well be set outside. Flags of `run` stand
before the program; everything behind it belongs to the program.
"""

# Flag → (variable, what it says).
_FLAGS: Mapping[str, tuple[str, str]] = {
    "control-plane": ("MESHSDK_CONTROL_PLANE", "host:port of the control plane"),
    "bootstrap": ("GRPC_XDS_BOOTSTRAP", "path of a gRPC xDS bootstrap instead"),
    "namespace": ("MESHSDK_NAMESPACE", "where this program lives and looks up short names"),
    "group": ("MESHSDK_AUTO_REGISTER_GROUP", "WorkloadGroup that its servers join"),
    "ports": ("MESHSDK_PORTS", "ports to register, as http:9080,grpc:9081 (default: all)"),
    "address": ("MESHSDK_ADDRESS", "IP address of this workload as others reach it"),
    "locality": ("MESHSDK_LOCALITY", "region/zone/subzone"),
    "service-account": ("MESHSDK_SERVICE_ACCOUNT", "identity of this workload"),
    "workload-name": ("MESHSDK_WORKLOAD_NAME", "name of this workload"),
    "state-dir": ("MESHSDK_STATE_DIR", "where the last good configuration is kept"),
    "propagate": ("MESHSDK_PROPAGATE", "headers to carry along besides traces: end-user,x-tenant"),
    "drain": ("MESHSDK_DRAIN", "seconds between deregistration and the end of accepting"),
    "enabled": ("MESHSDK_ENABLED", "false runs the program without the mesh"),
    "required": ("MESHSDK_REQUIRED", "true: fail instead of passing through without a mesh"),
}

SITE = Path(__file__).resolve().parent / "attach" / "site"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Attach the mesh to an unchanged program, its clients and its servers."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for flag, (variable, says) in _FLAGS.items():
        parser.add_argument(
            f"--{flag}", dest=variable, metavar="VALUE", help=f"{says} ({variable})"
        )
    parser.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE",
        help="label of this workload, may be repeated (MESHSDK_LABELS)",
    )  # fmt: skip
    parser.add_argument("-m", dest="module", action="store_true", help="PROGRAM is a module")
    parser.add_argument("-c", dest="code", action="store_true", help="PROGRAM is Python code")
    parser.add_argument("program", metavar="PROGRAM", help="script, command or module")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER)


def main(args: argparse.Namespace) -> int:
    """Become the program. Returns only when that is not possible."""
    try:
        environ = environment(args, os.environ)
        command = command_of(args, environ)
    except ConfigurationError as error:
        print(f"meshsdk run: {error}", file=sys.stderr)
        return USAGE
    except FileNotFoundError as error:
        print(f"meshsdk run: {error}", file=sys.stderr)
        return NOT_FOUND
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(command[0], command[1:], environ)  # noqa: S606 - that is the purpose
    except OSError as error:
        print(f"meshsdk run: {command[0]}: {error.strerror}", file=sys.stderr)
    return NOT_EXECUTABLE


def environment(args: argparse.Namespace, outside: Mapping[str, str]) -> dict[str, str]:
    """The environment of the program, checked before it starts.

    Raises:
        ConfigurationError: a flag or a variable is wrong.
    """
    environ = dict(outside)
    for variable, _ in _FLAGS.values():
        value = getattr(args, variable)
        if value is not None:
            environ[variable] = value
    if args.label:
        environ["MESHSDK_LABELS"] = ",".join(args.label)
    for name, meant in settings.misspelt(environ).items():
        # Said here, once: not again by every process of the program.
        del environ[name]
        print(f"meshsdk run: {name} is not known; did you mean {meant}?", file=sys.stderr)
    settings.load({}, environ)
    ports_of(environ)
    drain_of(environ)
    extra_names(environ)
    if sys.flags.ignore_environment:
        raise ConfigurationError("python -E and -I ignore the environment; start without them")
    paths = [p for p in environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(SITE)]
    environ["PYTHONPATH"] = os.pathsep.join([str(SITE), *paths])
    return environ


def command_of(args: argparse.Namespace, environ: Mapping[str, str]) -> list[str]:
    """What to execute: path of the executable, then its arguments from number 0 on.

    Raises:
        FileNotFoundError: there is no such program; says where it was looked for.
    """
    program, rest = args.program, list(args.arguments)
    if args.module:
        return _python("-m", program, *rest)
    if args.code:
        return _python("-c", program, *rest)
    path = Path(program)
    if path.suffix in (".py", ".pyc", ".pyw", ".pyz") and path.exists():
        return _python(program, *rest)
    found = _executable(program, environ)
    if found is not None:
        _look_at_shebang(found)
        return [found, program, *rest]
    if path.is_file() or (path / "__main__.py").is_file():
        return _python(program, *rest)
    raise FileNotFoundError(
        f"{program}: not found, neither as a file nor beside {sys.executable} nor in PATH; "
        f"a module is run with -m {program}"
    )


def _python(*arguments: str) -> list[str]:
    """This interpreter with the options that it was started with (-u, -X, -W …)."""
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if sys.stdout is not None and getattr(sys.stdout, "write_through", False):
        options = ["-u", *options]
    return [sys.executable, sys.executable, *options, *arguments]


def _executable(program: str, environ: Mapping[str, str]) -> str | None:
    if os.sep in program:
        return shutil.which(program)
    # An environment that is not activated: its programs stand beside its interpreter.
    beside = str(Path(sys.executable).parent)
    return shutil.which(program, path=os.pathsep.join([beside, environ.get("PATH", os.defpath)]))


def _look_at_shebang(path: str) -> None:
    """Say it when the program's first line switches off what attaches the mesh."""
    try:
        with open(path, "rb") as file:
            line = file.readline(512).decode("utf-8", "replace")
    except OSError:
        return
    words: Sequence[str] = line.split() if line.startswith("#!") else ()
    options = [word for word in words[1:] if word.startswith("-")]
    if "python" in line and any(set(word) & {"E", "I"} for word in options):
        print(
            f"meshsdk run: {path} starts Python with {' '.join(options)}, which ignores the "
            "environment: the mesh is not attached; run it with python instead",
            file=sys.stderr,
        )
