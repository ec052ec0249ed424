"""The command in a fork of a process that has imported what it needs: that is most of what each run of it costs."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Nothing of a caller's, and nothing that reads the environment as it is imported.
IMPORTED = (
    "cacheworkers.ops.cli",
    "cacheworkers.ops.doctor.command",
    "celery.app.amqp",
    "celery.app.control",
    "psycopg",
)


def run(words: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `cacheworkers` with these words, and return its status and what it has printed."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        asked = {"words": words, "cwd": str(cwd), "env": dict(env), "outputs": [out.name, err.name]}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(["cacheworkers", *words], status, out.read(), err.read())


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)  # it ends where its input does
    return server


def _become(words: list[str], cwd: str, env: dict[str, str], outputs: list[str]) -> None:
    """Be the command, as its script starts it."""
    from cacheworkers.ops.cli import main

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate([os.devnull, *outputs]):
        taken = os.open(path, os.O_RDWR)
        os.dup2(taken, number)
        os.close(taken)
    sys.argv = [str(Path(sys.executable).parent / "cacheworkers"), *words]
    sys.path[0] = str(Path(sys.executable).parent)
    main()


def _serve() -> None:
    for name in IMPORTED:
        __import__(name)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            return _become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
