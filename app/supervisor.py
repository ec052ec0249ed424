"""Supervisor: child processes with prefixed logs, which end together and leave nothing behind.

Every child leads a process group of its own: a Ctrl-C in the terminal reaches only this process, and what a child
left behind is killed with its group.  A child that dies ends all; but one that was ready when somebody killed it is
started again.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar

from app.procfile import argv
from cacheworkers.testing.servers import end_with_parent

T = TypeVar("T")
Answers = Callable[[], Awaitable[bool]]

#: What ends the stack: Ctrl-C, kill, and a terminal that is closed.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: How many of a child's last lines are shown when it dies.
TAIL = 20
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)


class ChildDied(Exception):
    """A child ended that should not have."""


class Stopped(Exception):
    """Someone asked for the end: a signal came, or the terminal is gone."""


class Console:
    """Lines with the name of who says them in front, coloured on a terminal."""

    def __init__(self, out: TextIO) -> None:
        self.is_gone = False
        self._out = out
        self._is_coloured = out.isatty() and "NO_COLOR" not in os.environ
        self._colours: dict[str, int] = {}

    def say(self, name: str, line: str) -> None:
        """Write one line; a terminal that was closed is noted, not an error."""
        label = f"{name:<8}|"
        if self._is_coloured:
            colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
            label = f"\x1b[{colour}m{label}\x1b[0m"
        try:
            self._out.write(f"{label} {line}\n")
            self._out.flush()
        except OSError:
            self.is_gone = True


class Child:
    """One process, its last lines, and whether it was ready.

    Attributes:
        needle: is in the line by which it says that it is ready.
        answers: asks it whether it is, where its log does not say so.
        restarts: how often it has been started again; None if it never is.
    """

    def __init__(
        self,
        name: str,
        command: str,
        process: asyncio.subprocess.Process,
        *,
        needle: str | None,
        answers: Answers | None,
        restarts: int | None,
    ) -> None:
        self.name = name
        self.command = command
        self.process = process
        self.needle = needle
        self.answers = answers
        self.restarts = restarts
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL)
        self.was_ready = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether it runs and was ready."""
        return self.was_ready.is_set() and self.process.returncode is None

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the child and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Supervisor:
    """Starts children, notices when one dies, and ends them all.

    Attributes:
        env: the environment of children that are started from now on.
        secrets: child -> what it alone finds in its environment besides.
    """

    def __init__(
        self, console: Console, *, cwd: Path, stop_within: float = 10.0, hides: re.Pattern[str] | None = None
    ) -> None:
        """
        Args:
            stop_within: seconds that children have to end by themselves; then they are killed.
            hides: lines of children that are not shown.
        """
        self.env: Mapping[str, str] = os.environ
        self.secrets: Mapping[str, Mapping[str, str]] = {}
        self._console = console
        self._hides = hides
        self._cwd = cwd
        self._stop_within = stop_within
        self._children: list[Child] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._waits: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[None] = self._loop.create_future()
        self._is_stopping = False
        self._kill_now = asyncio.Event()

    def listen_to_signals(self) -> None:
        """End on SIGINT, SIGTERM and a closed terminal; a second signal kills immediately."""
        for number in ENDING:
            # nohup ignores SIGHUP: so be it.
            # A shell ignores SIGINT for what it starts in the background: it is heeded.
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
                self._loop.add_signal_handler(number, self.ask_to_stop)

    def ask_to_stop(self) -> None:
        """End soon; asked again, end now."""
        if self._outcome.done():
            self._kill_now.set()
        else:
            self._outcome.set_exception(Stopped())
            self._outcome.exception()  # seen: nobody need wait for it

    async def start(
        self,
        name: str,
        command: str,
        *,
        needle: str | None = None,
        answers: Answers | None = None,
        restarts: bool = False,
    ) -> Child:
        """Start a child that stays.

        Args:
            needle: is in the line by which it says that it is ready.
            answers: asks it instead.
            restarts: once it was ready, start it again when it is killed with SIGKILL, by whomever.
        """
        child = await self._spawn(name, command, needle=needle, answers=answers, restarts=0 if restarts else None)
        self._keep(self._watch(child))
        return child

    def restarting(self) -> list[Child]:
        """Return the children that are started again when they are killed."""
        return [child for child in self._children if child.restarts is not None]

    def kill(self, name: str) -> bool:
        """Kill -9 a child that is started again, with all that it started; False if none of that name is ready."""
        found = [child for child in self.restarting() if child.name == name and child.is_ready]
        for child in found:
            child.signal_group(signal.SIGKILL)
        return bool(found)

    async def finish(self, name: str, command: str) -> None:
        """Run a child to its end.

        Raises:
            ChildDied: it failed.
        """
        child = await self._spawn(name, command)
        status = await child.process.wait()
        if status != 0:
            await asyncio.wait(self._pumps, timeout=1.0)
            raise ChildDied(_epitaph(child, status))

    async def until_over(self, work: Awaitable[T]) -> T:
        """Return what `work` comes to, unless a child dies or somebody asks to stop before.

        Raises:
            ChildDied: a child ended; the message has its last lines.
            Stopped: somebody asked.
        """
        task = asyncio.ensure_future(work)
        first: set[asyncio.Future[Any]] = {task, self._outcome}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if self._outcome.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._outcome.result()
        return task.result()

    async def stop(self) -> None:
        """End all children: ask, wait for `stop_within`, kill; nothing they started is left."""
        self._is_stopping = True
        waits = list(self._waits)
        for task in waits:  # first: nothing is started from here on
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        running = [child for child in self._children if child.process.returncode is None]
        for child in running:
            # To the child alone: it ends its own children, a worker's pool would take the signal as an accident.
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        ends = [asyncio.ensure_future(child.process.wait()) for child in running]
        all_ended = asyncio.gather(*ends)
        hurry = asyncio.create_task(self._kill_now.wait())
        first: set[asyncio.Future[Any]] = {all_ended, hurry}
        await asyncio.wait(first, timeout=self._stop_within, return_when=asyncio.FIRST_COMPLETED)
        for child in running:
            if child.process.returncode is None:
                self._console.say("up", f"{child.name} is killed, it has not ended by itself")
        for child in self._children:
            child.signal_group(signal.SIGKILL)
        await all_ended
        hurry.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=1.0)
        for task in self._pumps:
            task.cancel()
        await asyncio.gather(*self._pumps, hurry, return_exceptions=True)

    async def _spawn(
        self,
        name: str,
        command: str,
        *,
        needle: str | None = None,
        answers: Answers | None = None,
        restarts: int | None = None,
    ) -> Child:
        process = await asyncio.create_subprocess_exec(
            *argv(command),
            cwd=self._cwd,
            env={**self.env, **self.secrets.get(name, {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        child = Child(name, command, process, needle=needle, answers=answers, restarts=restarts)
        self._children.append(child)
        self._pumps.append(asyncio.create_task(self._pump(child)))
        if answers is not None:
            self._keep(self._ask(child, answers))
        return child

    async def _pump(self, child: Child) -> None:
        """Pass a child's output on, line by line, however long the lines are."""
        assert child.process.stdout is not None
        rest = b""
        while chunk := await child.process.stdout.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._pass_on(child, line)
        if rest:
            self._pass_on(child, rest)

    def _pass_on(self, child: Child, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        child.tail.append(text)
        if self._hides is None or not self._hides.search(text):
            self._console.say(child.name, text)
        if child.needle is not None and child.needle in text:
            self._note_ready(child)
        if self._console.is_gone and not self._outcome.done():
            self.ask_to_stop()

    async def _ask(self, child: Child, answers: Answers) -> None:
        """Ask a child until it answers or has ended."""
        while child.process.returncode is None:
            if await answers():
                self._note_ready(child)
                return
            await asyncio.sleep(0.05)

    def _note_ready(self, child: Child) -> None:
        if child.restarts and not child.was_ready.is_set():
            self._console.say("up", f"{child.name} is ready again")
        child.was_ready.set()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the rest until the end."""
        task = asyncio.create_task(work)
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    async def _watch(self, child: Child) -> None:
        """Wait for a child's end: start it again if it was killed, else end all.

        One that is killed before it is ready is given up: whatever kills it would do so again.
        """
        while True:
            status = await _end_of(child)
            if self._is_stopping or self._outcome.done():
                return
            if status != -signal.SIGKILL or child.restarts is None or not child.was_ready.is_set():
                break
            child.signal_group(signal.SIGKILL)
            self._children.remove(child)
            child = await self._spawn(
                child.name, child.command, needle=child.needle, answers=child.answers, restarts=child.restarts + 1
            )
            self._console.say("up", f"{child.name} was killed by SIGKILL; it is started again")
        await asyncio.wait(self._pumps, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)  # its last words
        if not self._outcome.done():
            self._outcome.set_exception(ChildDied(_epitaph(child, status)))
            self._outcome.exception()


async def _end_of(child: Child) -> int:
    """Return a child's status once it has ended.

    `Runtime.wait` would wait as well for what the child has left behind, while that holds its output.
    """
    while child.process.returncode is None:
        await asyncio.sleep(0.05)
    return child.process.returncode


def _epitaph(child: Child, status: int) -> str:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    last = "\n".join(f"    {line}" for line in child.tail) or "    (it said nothing)"
    return f"{child.name} {how}; its last lines:\n{last}"
