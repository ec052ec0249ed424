"""`make up`: servers, data and every process of the Procfile, until Ctrl-C.

REDIS_URL and DATABASE_URL name servers that are used as they are; without them servers from wheels are started, with
their data in `.data/`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from app.page.control import VARIABLE, Control
from app.procfile import parse
from app.readiness import READY_PATHS, READY_WORDS, asked, status_of, until_ready
from app.servers import Servers, servers
from app.supervisor import ENDING, ChildDied, Console, Stopped, Supervisor

ROOT = Path(__file__).resolve().parent.parent
#: What workers and beat say of each task: the addresses must not be lost in it.  Failures are shown.
ROUTINE = re.compile(
    r": INFO/\S+\] (Task \S+ (received|succeeded in )|Scheduler: Sending due task )"
    # Celery's wall of text for workers that root has started: here they run on this machine's loopback alone.
    r"|^\s*$|You're running the worker with superuser privileges|absolutely not recommended!"
    r"|Please specify a different user using the --uid|User information: uid=|^\s+_?warn|SecurityWarning"
    r"|command:18\d\] (Broker: |Registered tasks:)|^\s+\[?'(cacheworkers|celery)\.\S+'[,\]]"  # Flower's banner
)
#: What starts when all else is ready: Flower asks workers once, at its start, for the queues that they consume.
LAST = {"flower"}
#: Those that the page may kill.
WORKERS = {"miss", "rest"}
#: What is started again when it is killed: all of which is known when it is ready.
RESTARTED = READY_PATHS.keys() | READY_WORDS.keys()


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a stack that runs is found."""

    pid: int
    page: str
    web: str
    exporter: str
    flower: str
    redis_url: str
    database_url: str
    broker_url: str


def running(data_dir: Path = ROOT / ".data") -> Addresses | None:
    """Return the addresses of the stack that runs in this checkout and is ready; None if there is none."""
    try:
        with open(data_dir / "up.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Addresses(**json.loads((data_dir / "up.json").read_text()))
    except FileNotFoundError:
        pass
    return None


def free_port(first: int) -> int:
    """Return the first port from `first` on that nothing listens on."""
    for port in range(first, 65536):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port is free from {first} on")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stack; return the exit status: 0 if it was asked to end, 1 if something failed."""
    options = _parser().parse_args(arguments)
    console = Console(sys.stdout)
    data_dir = options.data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / "up.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            there = running(data_dir)
            where = f" at {there.web} (process {there.pid})" if there else ", and is still starting"
            console.say("up", f"it already runs in this checkout{where}; Ctrl-C there ends it")
            return 1
        with contextlib.suppress(FileNotFoundError):
            (data_dir / "up.json").unlink()
        return _run(options, data_dir, console)


def _run(options: argparse.Namespace, data_dir: Path, console: Console) -> int:
    """Start the servers, run the stack on them, and stop them last."""
    commands = parse(options.procfile.read_text())
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)  # until the supervisor listens
    try:
        with servers(data_dir, console) as started:
            try:
                return asyncio.run(_up(options, commands, started, data_dir, console))
            finally:
                for number in ENDING:  # the servers must not be left behind now
                    signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        console.say("up", "ending")
        return 0


async def _up(
    options: argparse.Namespace,
    commands: Mapping[str, str],
    servers: Servers,
    data_dir: Path,
    console: Console,
) -> int:
    ports = {
        "PAGE_PORT": free_port(options.page_port),
        "PORT": free_port(options.port),
        "METRICS_PORT": free_port(options.metrics_port),
        "FLOWER_PORT": free_port(options.flower_port),
    }
    here = Addresses(os.getpid(), *(f"http://127.0.0.1:{port}" for port in ports.values()), **servers.urls)
    if "page" in commands:
        console.say("up", f"the page will be at {here.page}; {len(commands)} processes start")
    hides = None if options.verbose else ROUTINE
    supervisor = Supervisor(console, cwd=ROOT, stop_within=options.stop_within, hides=hides)
    supervisor.listen_to_signals()
    try:
        async with Control(supervisor, servers.store, WORKERS) as control:
            supervisor.env = {
                "BEAT_SCHEDULE": str(data_dir / "celerybeat-schedule"),
                "PROMETHEUS_MULTIPROC_DIR": str(_emptied(data_dir / "metrics")),
                **_environment(here),
                **{name: str(port) for name, port in ports.items()},
                VARIABLE: str(control.path),
            }
            login = os.environ.get("FLOWER_BASIC_AUTH", f"shop:{secrets.token_urlsafe(9)}")
            supervisor.secrets = {"flower": {"FLOWER_BASIC_AUTH": login}}
            await supervisor.until_over(_bring_up(supervisor, commands, here, options, console))
            _write_private(data_dir / "up.json", json.dumps(asdict(here)))
            _announce(console, commands, here, servers, login)
            await supervisor.until_over(asyncio.Event().wait())
    except Stopped:
        console.say("up", "ending")
        return 0
    except (ChildDied, TimeoutError) as error:
        for line in str(error).splitlines():
            console.say("up", line)
        return 1
    finally:
        with contextlib.suppress(FileNotFoundError):
            (data_dir / "up.json").unlink()
        await supervisor.stop()
    raise AssertionError("until_over ends only by raising")


async def _bring_up(
    supervisor: Supervisor,
    commands: Mapping[str, str],
    here: Addresses,
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Prepare the data, start every process, wait until all are ready, and warm what is read most."""
    if options.prepare:
        await supervisor.finish("prepare", options.prepare)
    for names in (commands.keys() - LAST, commands.keys() & LAST):
        children = [
            await supervisor.start(
                name,
                command,
                needle=READY_WORDS.get(name),
                answers=asked(getattr(here, name) + READY_PATHS[name]) if name in READY_PATHS else None,
                restarts=name in RESTARTED,
            )
            for name, command in commands.items()
            if name in names
        ]
        await asyncio.gather(*(until_ready(child) for child in children))
    if "web" in commands and options.warm:
        paths = [f"/products/{number}" for number in range(1, options.warm + 1)]
        answers = [await status_of(here.web + path) for path in paths]
        console.say("up", f"warmed {sum(status == 200 for status in answers)} of {len(paths)} products")


def _environment(here: Addresses) -> dict[str, str]:
    """Return what the processes find in their environment."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **{name: value for name, value in os.environ.items() if name != "FLOWER_BASIC_AUTH"},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "REDIS_URL": here.redis_url,
        "DATABASE_URL": here.database_url,
        "BROKER_URL": here.broker_url,
        "WEB_URL": here.web,
        "FLOWER_URL": here.flower,
    }


def _announce(console: Console, commands: Mapping[str, str], here: Addresses, servers: Servers, login: str) -> None:
    """Say where everything is, first what to look at first; and that it is ready once all of it is said."""
    if "page" in commands:
        console.say("up", f"Page:    {here.page}")
    if "web" in commands:
        console.say("up", f"API:     {here.web}/products/1")
    if "flower" in commands:
        user, _, password = login.partition(":")
        console.say("up", f"Flower:  {here.flower}  user {user}, password {password}")
    if "exporter" in commands:
        console.say("up", f"Metrics: {here.exporter}/metrics")
    if servers.store is not None:
        console.say("up", f"Valkey: {here.redis_url}")
    if "DATABASE_URL" not in os.environ:
        console.say("up", f"Postgres: {here.database_url}")
    if servers.store is not None and not {"DATABASE_URL", "BROKER_URL"} & os.environ.keys():
        urls = f"REDIS_URL={shlex.quote(here.redis_url)} DATABASE_URL={shlex.quote(here.database_url)}"
        command = os.path.relpath(Path(sys.executable).parent / "cacheworkers", ROOT)
        console.say("up", f"Look inside: {urls} {command} -A app.shop:cache stats")
    console.say("up", "ready; Ctrl-C ends it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.up", description=__doc__)
    parser.add_argument("--procfile", type=Path, default=ROOT / "Procfile")
    parser.add_argument("--data-dir", type=Path, default=ROOT / ".data", help="where the servers keep their data")
    parser.add_argument(
        "--prepare", default="python -m app.seed", help="command that migrates and seeds; empty for none"
    )
    parser.add_argument("--page-port", type=int, default=8080, help="the page's port, or the next free one")
    parser.add_argument("--port", type=int, default=8000, help="the API's port, or the next free one")
    parser.add_argument("--metrics-port", type=int, default=9808, help="the exporter's port, or the next free one")
    parser.add_argument("--flower-port", type=int, default=5555, help="Flower's port, or the next free one")
    parser.add_argument("--warm", type=int, default=100, help="how many products to read before it is ready")
    parser.add_argument("--verbose", action="store_true", help="show each task that workers and beat deal with")
    parser.add_argument("--stop-within", type=float, default=10.0, help="seconds until what has not ended is killed")
    return parser


def _write_private(path: Path, text: str) -> None:
    """Write a file that nobody but its owner can read: URLs hold passwords."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _emptied(directory: Path) -> Path:
    """Return a directory with nothing in it: what processes counted before belongs to no process now."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _flush() -> None:
    """Write what is buffered; if nobody reads it, drop it: else the interpreter's own flush ends with status 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    status = main()
    _flush()
    sys.exit(status)
