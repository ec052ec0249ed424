"""`make up`: starts what the Procfile names, shows its logs, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import heed_signals

from app.procfile import parse
from app.up import free_port, running
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 120.0

IDLE = "tail -f /dev/null"
#: Says its pid and that of a child of its own, which heeds no SIGTERM; then stays.
STAYS = f"""sh -c 'trap "" TERM; {IDLE} & trap - TERM; echo pids $$ $!; exec {IDLE}'"""


class Up:
    """One `python -m app.up`, and what it has said so far."""

    def __init__(self, directory: Path, procfile: str, *options: str, env: dict[str, str]) -> None:
        path = directory / "Procfile"
        path.write_text(procfile)
        words = [sys.executable, "-m", "app.up", "--procfile", str(path), "--data-dir", str(directory / "data")]
        self.text = ""
        self.process = subprocess.Popen(
            [*words, "--prepare", "", *options],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=heed_signals,
        )
        assert self.process.stdout is not None
        self._out = self.process.stdout
        os.set_blocking(self._out.fileno(), False)

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until a pattern is in the output."""
        end = time.monotonic() + WITHIN
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while (match := re.search(pattern, self.text)) is None:
                left = end - time.monotonic()
                assert left > 0 and selector.select(left), f"no {pattern!r} in time in:\n{self.text}"
                chunk = os.read(self._out.fileno(), 65536)
                assert chunk, f"it ended without {pattern!r}:\n{self.text}"
                self.text += chunk.decode()
        return match

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, and return the exit status."""
        if number is not None:
            self.process.send_signal(number)
        os.set_blocking(self._out.fileno(), True)
        self.text += self._out.read().decode()
        return self.process.wait(WITHIN)


@pytest.fixture
def up(tmp_path: Path, valkey: Valkey) -> Iterator[Callable[..., Up]]:
    """Start `app.up` on the suite's store, and on no database."""
    started: list[Up] = []

    def start(procfile: str, *options: str, **env: str) -> Up:
        urls = {"REDIS_URL": valkey.url, "DATABASE_URL": "postgresql://nowhere"}
        started.append(Up(tmp_path, procfile, *options, env={**urls, **env}))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        each._out.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or while it was read
        return False


def test_it_shows_each_process_s_log_under_its_name(up: Callable[..., Up]) -> None:
    """A line of a child carries the child's name; the environment says where the servers are."""
    stack = up("one: sh -c 'echo hello from one at $REDIS_URL; exec tail -f /dev/null'\ntwo: tail -f /dev/null\n")

    line = stack.until(r"one +\| hello from one at (\S+)")

    assert line[1].startswith("redis://127.0.0.1:")


ROUTINE = """one: sh -c 'echo "[now: INFO/MainProcess] Task cacheworkers.load.product[1] received"
 echo "[now: INFO/ForkPoolWorker-1] Task cacheworkers.load.product[1] succeeded in 0.01s: None"
 echo "[now: INFO/MainProcess] Scheduler: Sending due task cacheworkers-warm (cacheworkers.warm)"
 echo "[now: ERROR/ForkPoolWorker-1] Task cacheworkers.load.product[2] raised unexpected: no"; exec tail -f /dev/null'
""".replace("\n echo", "; echo")


def test_routine_of_tasks_is_not_shown(up: Callable[..., Up]) -> None:
    """Thousands of tasks a minute would carry the addresses off the screen; one that fails is shown."""
    stack = up(ROUTINE)

    stack.until(r"product\[2\] raised unexpected")

    assert "INFO/" not in stack.text


def test_routine_of_tasks_is_shown_if_asked_for(up: Callable[..., Up]) -> None:
    """`--verbose` hides nothing."""
    stack = up(ROUTINE, "--verbose")

    stack.until(r"product\[2\] raised unexpected")

    assert stack.text.count("INFO/") == 3


def test_the_pages_address_is_said_before_anything_starts(up: Callable[..., Up]) -> None:
    """The first line of all: what to open, once it is ready."""
    stack = up("page: sh -c 'echo started; exec tail -f /dev/null'\n")

    stack.until(r"page +\| started")

    assert re.match(r"up +\| the page will be at http://127\.0\.0\.1:\d+; ", stack.text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(up: Callable[..., Up], number: signal.Signals) -> None:
    """Ctrl-C, kill and a closed terminal end it with status 0, with no process left, not even a stubborn grandchild."""
    stack = up(f"one: {STAYS}\n", "--stop-within", "0.2")
    pids = [int(pid) for pid in stack.until(r"pids (\d+) (\d+)").groups()]
    stack.until("ready; Ctrl-C ends it")
    assert all(is_alive(pid) for pid in pids)

    status = stack.end(number)

    assert status == 0, stack.text
    wait_until(
        lambda: not [pid for pid in pids if is_alive(pid)]
    )  # the kernel ends immediately what was killed, or soon


def test_a_process_that_heeds_the_signal_is_not_killed(up: Callable[..., Up]) -> None:
    """A process is asked to end, and has time to say goodbye."""
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print('goodbye'))); print('here'); signal.pause()"
    stack = up(f'one: {sys.executable} -c "{code}"\n')
    stack.until(r"one +\| here")

    stack.end(signal.SIGINT)

    assert re.search(r"one +\| goodbye", stack.text)
    assert "is killed" not in stack.text


def test_a_process_that_does_not_end_is_killed(up: Callable[..., Up]) -> None:
    """What has not ended within `--stop-within` is killed, and named."""
    stack = up(f"""one: sh -c 'trap "" TERM; echo here $$; exec {IDLE}'\n""", "--stop-within", "0.2")
    pid = int(stack.until(r"one +\| here (\d+)")[1])

    status = stack.end(signal.SIGTERM)

    assert status == 0
    assert "one is killed" in stack.text
    assert not is_alive(pid)


def test_output_that_nobody_reads_any_more_ends_it(up: Callable[..., Up]) -> None:
    """A terminal that is gone, or a pipe whose reader went, ends everything."""
    stack = up("one: sh -c 'echo here $$; exec yes'\n")
    pid = int(stack.until(r"one +\| here (\d+)")[1])

    stack._out.close()

    assert stack.process.wait(WITHIN) == 0
    assert not is_alive(pid)


def test_processes_end_when_the_supervisor_is_killed(up: Callable[..., Up]) -> None:
    """After kill -9 of the supervisor nobody is left to end its children: the kernel does."""
    stack = up(f"one: sh -c 'echo here $$; exec {IDLE}'\n")
    pid = int(stack.until(r"one +\| here (\d+)")[1])

    stack.process.kill()

    wait_until(lambda: not is_alive(pid))


def test_a_process_that_dies_ends_the_stack(up: Callable[..., Up]) -> None:
    """A child that dies early is named with its status and last lines; the others end, and the status is not 0."""
    stack = up(f"one: {IDLE}\ntwo: sh -c 'echo my last words; exit 7'\n")

    status = stack.end()

    assert status == 1
    assert re.search(r"up +\| two ended with status 7; its last lines:\nup +\|     my last words", stack.text)


def test_a_worker_that_is_killed_is_started_again(up: Callable[..., Up]) -> None:
    """kill -9 of a worker that was ready: it comes back as another process, with nothing of the old one left."""
    stack = up(f"one: {IDLE}\nmiss: sh -c '{IDLE} & echo it is ready. $$ $!; exec {IDLE}'\n", "--stop-within", "0.2")
    pid, child = (int(each) for each in stack.until(r"ready\. (\d+) (\d+)").groups())
    stack.until("ready; Ctrl-C ends it")

    os.kill(pid, signal.SIGKILL)

    stack.until(r"up +\| miss was killed by SIGKILL; it is started again")
    again = int(stack.until(rf"ready\. (?!{pid} )(\d+) \d+")[1])
    wait_until(lambda: not is_alive(child))
    assert is_alive(again)
    assert stack.end(signal.SIGINT) == 0
    assert not is_alive(again)


#: Answers 200 to all on the port that is named, and says its pid.
SERVES = (
    "import http.server, os; H = type('H', (http.server.BaseHTTPRequestHandler,), {'do_GET': lambda s:"
    " (s.send_response(200), s.end_headers()), 'log_message': lambda *_: None});"
    " S = http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H);"
    " print('serves', os.getpid(), flush=True); S.serve_forever()"
)


def test_a_web_process_that_is_killed_is_started_again(up: Callable[..., Up]) -> None:
    """And again, if it was ready meanwhile; the output says both."""
    stack = up(f'one: {IDLE}\nweb: {sys.executable} -c "{SERVES}"\n', "--warm", "0")
    stack.until("ready; Ctrl-C ends it")
    first = int(stack.until(r"serves (\d+)")[1])

    os.kill(first, signal.SIGKILL)
    stack.until(r"up +\| web was killed by SIGKILL; it is started again")
    stack.until(r"up +\| web is ready again")
    second = int(stack.until(rf"serves (?!{first}\b)(\d+)")[1])
    os.kill(second, signal.SIGKILL)
    stack.until(r"(?s)(web is ready again.*){2}")
    third = int(stack.until(rf"serves (?!(?:{first}|{second})\b)(\d+)")[1])

    assert is_alive(third)
    assert stack.end(signal.SIGINT) == 0
    assert not is_alive(third)


def test_a_web_process_that_is_killed_before_it_is_ready_ends_the_stack(up: Callable[..., Up]) -> None:
    """Whatever killed it would do so again, and again."""
    stack = up("web: sh -c 'kill -9 $$'\n")

    assert stack.end() == 1
    assert "web was killed by SIGKILL; its last lines:" in stack.text
    assert "started again" not in stack.text


def test_a_worker_that_fails_ends_the_stack(up: Callable[..., Up]) -> None:
    """Only a kill is undone: a worker that ends by itself is a failure as any other's."""
    stack = up(f"one: {IDLE}\nmiss: sh -c 'echo it is ready.; exit 3'\n")

    assert stack.end() == 1
    assert "miss ended with status 3" in stack.text


def test_data_that_cannot_be_prepared_ends_it(up: Callable[..., Up]) -> None:
    """When the seed fails, nothing else is started."""
    stack = up("one: echo started\n", "--prepare", "sh -c 'echo no such table; exit 3'")

    status = stack.end()

    assert status == 1
    assert "prepare ended with status 3" in stack.text
    assert "started" not in stack.text


def test_a_second_one_says_that_it_already_runs(up: Callable[..., Up], tmp_path: Path) -> None:
    """One checkout runs one stack; the second says where the first is, and the first goes on."""
    first = up("one: tail -f /dev/null\n")
    first.until("ready; Ctrl-C ends it")
    there = running(tmp_path / "data")

    second = up("one: tail -f /dev/null\n")

    assert second.end() == 1
    assert there is not None
    assert f"already runs in this checkout at {there.web} (process {first.process.pid})" in second.text
    assert first.process.poll() is None


def test_it_waits_until_the_web_process_answers(up: Callable[..., Up]) -> None:
    """It is ready when the API answers, on a port that nobody else uses."""
    stack = up(f'web: {sys.executable} -c "{SERVES}"\n', "--warm", "3")

    stack.until("warmed 3 of 3 products")

    assert stack.end(signal.SIGINT) == 0


def test_it_starts_servers_of_its_own(up: Callable[..., Up], tmp_path: Path) -> None:
    """Without URLs in the environment it brings Valkey and Postgres, keeps their data, and stops them."""
    check = (
        "import os, sqlalchemy as s; e = s.create_engine(os.environ['DATABASE_URL']); c = e.connect();"
        " print('database', c.scalar(s.text('select current_database()'))); c.close(); import signal; signal.pause()"
    )
    (tmp_path / "check.py").write_text(check)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REDIS_URL", raising=False)
        stack = Up(tmp_path, f"one: {sys.executable} {tmp_path / 'check.py'}\n", env={"PYTHONUNBUFFERED": "1"})
    try:
        stack.until(r"one +\| database shop")
        stack.until("ready; Ctrl-C ends it")
        port = int(stack.until(r"Valkey: redis://127.0.0.1:(\d+)/")[1])

        status = stack.end(signal.SIGINT)
    finally:
        stack.process.kill()
        stack._out.close()

    assert status == 0
    assert free_port(port) == port


def test_its_servers_end_when_it_is_killed(up: Callable[..., Up], tmp_path: Path) -> None:
    """With kill -9, when it cannot end them itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REDIS_URL", raising=False)
        patch.delenv("DATABASE_URL", raising=False)
        stack = Up(tmp_path, f"one: {IDLE}\n", env={})
    try:
        port = int(stack.until(r"Valkey: redis://127.0.0.1:(\d+)/")[1])
        sockets = Path(stack.until(r"Postgres: \S+host=(\S+)")[1])
        stack.until("ready; Ctrl-C ends it")
        pid = int((sockets / ".s.PGSQL.5432.lock").read_text().split()[0])
    finally:
        stack.process.kill()
        stack.process.wait()
        stack._out.close()

    wait_until(lambda: free_port(port) == port)
    wait_until(lambda: not is_alive(pid))


def test_a_taken_port_is_left_alone(valkey: Valkey) -> None:
    """Where somebody listens, the next free port is taken."""
    assert free_port(valkey.port) > valkey.port


def test_a_malformed_procfile_is_refused() -> None:
    """A line that is no `name: command` is named, and so is a name that comes twice."""
    with pytest.raises(ValueError, match="line 2 must be `name: command`"):
        parse("# the shop\nwhat is this\n")
    with pytest.raises(ValueError, match="'web' again"):
        parse("web: a\nweb: b\n")
