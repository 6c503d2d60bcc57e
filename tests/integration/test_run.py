"""`python -m meshsdk run`: unchanged programs, their servers, workers and subprocesses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshsdk.__main__ import main
from tests.support.ads import AdsServer, wait_until
from tests.support.echo_grpc import EchoRequest, EchoServer, EchoStub
from tests.support.resources import service
from tests.support.servers import (
    ROOT,
    TRACES,
    HeaderServer,
    Program,
    accepts,
    deregistered,
    free_port,
    mesh_environ,
    registered,
    traces_of,
)

FAR = "http://far.test/"


def run(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """`python -m meshsdk run …` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "meshsdk", "run", *arguments],
        input=stdin, capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={**os.environ, **environ}, check=False,
    )  # fmt: skip


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """Writes a script and says where."""

    def write(text: str, name: str = "script.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def far(ads_server: AdsServer) -> Iterator[AdsServer]:
    with HeaderServer() as http, EchoServer() as echo:
        ads_server.set(service("far.test:80", [("127.0.0.1", http.port)]))
        ads_server.set(service("echo.test:50051", [("127.0.0.1", echo.port)]))
        yield ads_server


# --- what is typed wrongly -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["run", "--lable", "app=a", "app.py"],
            "python -m meshsdk run: unknown flag --lable, did you mean --label?;",
        ),
        (["run", "--label"], "python -m meshsdk run: argument --label: expected one argument;"),
        (["run"], "python -m meshsdk run: the following arguments are required: PROGRAM"),
        (["doctor", "--bogus"], "python -m meshsdk doctor: unknown flag --bogus;"),
        (["doctr"], "python -m meshsdk: argument COMMAND: invalid choice: 'doctr'"),
    ],
)
def test_wrong_words_are_one_line_and_64(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert line.endswith("--help")


def test_a_misspelt_variable_is_said_once(script: Any) -> None:
    path = script("import os, meshsdk; meshsdk.Mesh().close(); print(os.environ['PATH'])")
    done = run(path, MESHSDK_LABLES="app=a", MESHSDK_ENABLED="true")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("MESHSDK_LABLES") == 1, done.stderr
    assert "did you mean MESHSDK_LABELS?" in done.stderr


# --- as if run directly ----------------------------------------------------------------------


def test_a_script_finds_everything_as_without_the_mesh(script: Any) -> None:
    path = script(
        """
        import sys, __main__
        print(__name__, sys.argv, sys.path[0], __main__.__file__, sys.stdin.read())
        sys.exit(7)
        """
    )
    directly = subprocess.run(
        [sys.executable, path, "-m", "--namespace", "x"],
        input="hello", capture_output=True, text=True, check=False,
    )  # fmt: skip
    meshed = run(path, "-m", "--namespace", "x", stdin="hello")
    assert (meshed.returncode, meshed.stdout) == (7, directly.stdout)
    assert meshed.stderr == ""


def test_a_module_code_and_a_command_run_too() -> None:
    assert run("-m", "json.tool", "--compact", stdin='{"a": 1}').stdout == '{"a":1}\n'
    code = run("-c", "import sys; print(sys.argv)", "-c", "x")
    assert code.stdout == "['-c', '-c', 'x']\n"
    assert "Running uvicorn" in run("uvicorn", "--version").stdout
    assert run("echo", "hi").stdout == "hi\n"


def test_a_signal_ends_it_as_without_the_mesh(script: Any) -> None:
    path = script("import time; print('up', flush=True); time.sleep(60)")
    with Program("-m", "meshsdk", "run", path) as program:
        assert program.line() == "up"
        program.terminate()
        assert program.wait() == -signal.SIGTERM


def test_flags_become_variables(script: Any) -> None:
    flags = [
        "--control-plane", "127.0.0.1:1", "--namespace", "shop", "--group", "reviews",
        "--label", "app=reviews", "--label", "version=v2", "--ports", "http:9080",
        "--propagate", "end-user", "--drain", "2", "--locality", "eu/a", "--enabled", "true",
    ]  # fmt: skip
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    environ = json.loads(run(*flags, "-c", code).stdout)
    assert {k: v for k, v in environ.items() if k.startswith("MESHSDK_")} == {
        "MESHSDK_CONTROL_PLANE": "127.0.0.1:1",
        "MESHSDK_NAMESPACE": "shop",
        "MESHSDK_AUTO_REGISTER_GROUP": "reviews",
        "MESHSDK_LABELS": "app=reviews,version=v2",
        "MESHSDK_PORTS": "http:9080",
        "MESHSDK_PROPAGATE": "end-user",
        "MESHSDK_DRAIN": "2",
        "MESHSDK_LOCALITY": "eu/a",
        "MESHSDK_ENABLED": "true",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["no-such-program"], 127, "no-such-program: not found, neither as a file nor beside"),
        (["--ports", "x:y", "true"], 64, "MESHSDK_PORTS: 'x:y' is not a port; give name:number"),
        (["--drain", "soon", "true"], 64, "MESHSDK_DRAIN is 'soon'; give seconds"),
        (["--propagate", "host", "true"], 64, "MESHSDK_PROPAGATE: host belongs to one hop"),
        (["--bootstrap", "/no/such", "true"], 64, "/no/such"),
        (["--enabled", "perhaps", "true"], 64, "MESHSDK_ENABLED is 'perhaps'; give true or false"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], code: int, says: str) -> None:
    result = run(*arguments)
    assert result.returncode == code
    assert result.stderr.startswith("meshsdk run: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_has_examples() -> None:
    assert "python -m meshsdk run app.py --its-own-flags" in run("--help").stdout


# --- attached where it is needed, absent where not -------------------------------------------

ATTACHED = "import meshsdk.attach as a; print(a.is_attached())"


def test_a_program_without_the_libraries_does_not_load_them() -> None:
    libraries = ["grpc", "httpx", "google.protobuf", "meshsdk.mesh", "asyncio"]
    code = f"import sys; print([m for m in {libraries} if m in sys.modules])"
    assert run("-c", code).stdout == "[]\n"


def test_subprocesses_are_attached_too(script: Any) -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ATTACHED!r}])"
    assert run("-c", child).stdout == "True\n"
    spawning = script(
        """
        import multiprocessing

        def child(queue):
            import meshsdk.attach
            import grpc
            queue.put(meshsdk.attach.attached())

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            print(queue.get(timeout=30))
            process.join()
        """
    )
    assert run(spawning).stdout == "{'grpc': ''}\n"


def test_switched_off_it_does_nothing() -> None:
    assert run("--enabled", "false", "-c", ATTACHED).stdout == "False\n"


def test_a_sitecustomize_of_the_program_runs_too(script: Any, tmp_path: Path) -> None:
    script("print('theirs', __name__)", "sitecustomize.py")
    code = "import sys; print(sys.modules['sitecustomize'].__file__, sys.path[1])"
    result = run("-c", code, PYTHONPATH=str(tmp_path))
    lines = result.stdout.splitlines()
    # Once in the process of `run` itself, once in the program.
    assert lines == ["theirs sitecustomize"] * 2 + [f"{tmp_path}/sitecustomize.py {tmp_path}"]


def test_patched_functions_say_where_they_come_from() -> None:
    code = (
        "import grpc, inspect, uvicorn.config, httpx; "
        "print(inspect.unwrap(grpc.insecure_channel).__module__, grpc.insecure_channel.__name__, "
        "type(grpc.__spec__.loader).__name__, type(grpc.insecure_channel('unix:/x')).__module__)"
    )
    assert run("-c", code).stdout == "grpc insecure_channel SourceFileLoader grpc._channel\n"


def test_an_unchanged_client_goes_through_the_mesh(far: AdsServer, script: Any) -> None:
    path = script(
        f"""
        import asyncio, grpc, httpx, httpx2
        from tests.support.echo_grpc import EchoRequest, EchoStub

        async def main():
            async with httpx.AsyncClient() as client:
                print((await client.get("{FAR}")).json()["host"])
            async with grpc.aio.insecure_channel("echo.test:50051") as channel:
                print((await EchoStub(channel).Unary(EchoRequest(), timeout=10)).authority)

        print(httpx.get("{FAR}").json()["host"], httpx2.get("{FAR}").json()["host"])
        with grpc.insecure_channel("echo.test:50051") as channel:
            print(EchoStub(channel).Unary(EchoRequest(), timeout=10).authority)
        asyncio.run(main())
        """
    )
    with mesh_environ(far) as environ:
        result = run(path, PYTHONPATH=str(ROOT), **environ)
    assert result.stdout.split() == [
        "far.test", "far.test", "echo.test:50051", "far.test", "echo.test:50051",
    ]  # fmt: skip
    assert result.stderr == ""


# --- HTTP servers ----------------------------------------------------------------------------

ASGI = "tests.support.apps.asgi_app:app"
FLASK = "tests.support.apps.flask_app:app"

GUNICORN = ["gunicorn", "-b", "127.0.0.1:{port}"]

SERVERS = {
    "uvicorn": (["uvicorn", "--port", "{port}", ASGI], 1, -signal.SIGTERM),
    "uvicorn-workers": (["uvicorn", "--workers", "2", "--port", "{port}", ASGI], 2, 0),
    "gunicorn": ([*GUNICORN, "-w", "2", "--threads", "2", FLASK], 2, 0),
    "gunicorn-preload": ([*GUNICORN, "--preload", "-w", "2", FLASK], 2, 0),
    "gunicorn-asgi": ([*GUNICORN, "-k", "asgi", ASGI], 1, 0),
    "gunicorn-uvicorn": ([*GUNICORN, "-k", "uvicorn.workers.UvicornWorker", ASGI], 1, 0),
    "flask": (["flask", "--app", FLASK, "run", "--port", "{port}"], 1, -signal.SIGTERM),
    "script": (["tests/support/apps/flask_app.py"], 1, -signal.SIGTERM),
}


def get(port: int, path: str, headers: dict[str, str] | None = None) -> Any:
    call = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    with urllib.request.urlopen(call, timeout=20) as answer:
        return json.load(answer)


@pytest.mark.parametrize("name", SERVERS)
def test_an_unchanged_http_server_is_in_the_mesh(far: AdsServer, name: str) -> None:
    command, workers, exit_code = SERVERS[name]
    port = free_port()
    with mesh_environ(far, TEST_PORT=str(port)) as environ:
        arguments = [part.format(port=port) for part in command]
        with Program("-m", "meshsdk", "run", *arguments, environ=environ) as program:
            program.listening(port)
            for path in ("/call", "/stream"):
                answer = get(port, f"{path}?url={FAR}", TRACES)
                seen = answer["seen"] if path == "/call" else answer[0]
                assert traces_of(seen) == TRACES, program.text
            wait_until(lambda: _streams_registering(far) == workers, 20, "all workers register")
            assert registered(far)[-1]["ports"] == {"http": port}
            assert registered(far)[-1]["id"].startswith("sidecar~127.0.0.1~")

            program.terminate()
            wait_until(lambda: deregistered(far) == workers, 10, "deregistration")
            assert accepts(port)  # clients that have not heard yet are still served
            assert get(port, "/pid") > 0
            assert program.wait() == exit_code, program.text
            assert "Traceback" not in program.text


def _streams_registering(ads: AdsServer) -> int:
    return sum("MESHSDK_PORTS" in stream.node.metadata for stream in list(ads.streams))


def test_a_killed_worker_is_replaced_and_registers_anew(far: AdsServer) -> None:
    port = free_port()
    with mesh_environ(far) as environ:
        command = ("gunicorn", "-w", "1", "-b", f"127.0.0.1:{port}", FLASK)
        with Program("-m", "meshsdk", "run", *command, environ=environ) as program:
            program.listening(port)
            first = get(port, "/pid")
            wait_until(lambda: _streams_registering(far) == 1, 20)
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: far.streams_total >= 2 and _streams_registering(far) == 1, 20)
            assert get(port, "/pid") != first
            assert deregistered(far) == 0


def test_named_ports_decide_what_is_registered(far: AdsServer) -> None:
    port = free_port()
    with mesh_environ(far, MESHSDK_PORTS=f"http-web:{port}") as environ:
        command = ("uvicorn", "--port", str(port), ASGI)
        with Program("-m", "meshsdk", "run", *command, environ=environ) as program:
            program.listening(port)
            wait_until(lambda: registered(far), 20)
            assert registered(far)[-1]["ports"] == {"http-web": port}


# --- gRPC servers ----------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["sync", "aio"])
def test_an_unchanged_grpc_server_is_in_the_mesh(far: AdsServer, flavour: str) -> None:
    command = ("-m", "meshsdk", "run", "-m", "tests.support.apps.grpc_app", flavour)
    with (
        mesh_environ(far, TEST_NEXT="echo.test:50051") as environ,
        Program(*command, environ=environ) as program,
    ):
        port = int(program.line())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = EchoStub(channel)
            reply = stub.Unary(
                EchoRequest(), timeout=20, wait_for_ready=True, metadata=tuple(TRACES.items())
            )
            seen = {item.name: item.value.decode() for item in reply.metadata}
            assert traces_of(seen) == TRACES
            wait_until(lambda: registered(far), 20)
            assert registered(far)[-1]["ports"] == {"grpc": port}
            program.terminate()
            wait_until(lambda: deregistered(far) == 1, 10, "deregistration")
            assert stub.Unary(EchoRequest(), timeout=5).server == "echo"
        assert program.wait() == -signal.SIGTERM
        assert "Traceback" not in program.text


# --- Celery ----------------------------------------------------------------------------------


def test_prefork_workers_of_celery_are_attached(far: AdsServer, tmp_path: Path) -> None:
    for folder in ("queue", "control", "results"):
        (tmp_path / folder).mkdir()
    worker = ("celery", "-A", "tests.support.apps.tasks", "worker", "-c", "2", "--pool", "prefork")
    options = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "warning")
    ask = (
        "from tests.support.apps.tasks import ask; "
        f"r = [ask.delay('{FAR}') for _ in range(8)]; "
        "print([x.get(timeout=40)[1]['host'] for x in r])"
    )
    with (
        mesh_environ(far, TEST_BROKER=str(tmp_path)) as environ,
        Program("-m", "meshsdk", "run", *worker, *options, environ=environ) as program,
    ):
        client = subprocess.run(
            [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=60,
            env={**os.environ, "TEST_BROKER": str(tmp_path)}, check=False,
        )  # fmt: skip
        assert client.stdout == f"{['far.test'] * 8}\n", client.stderr + program.text
        program.terminate()
        program.wait()
