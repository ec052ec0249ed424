"""Runs a page: its Python in one namespace, in order; its commands checked, or run if it has the reader write files."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_command
from sqlalchemy import Engine

from cacheworkers import Cache
from cacheworkers.testing.servers import free_port, wait_until

from . import shell
from .blocks import ROOT, Block
from .prelude import LAYOUT_MODULES

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
import drawing  # found through the line above

#: Ports that a tutorial names, and that are taken anywhere else when it is tested.
PORTS = ("8000",)
#: Fences that are no code, but what the site's generator puts there.
DIRECTIVES = ("{eval-rst}", "{include}", "{toctree}")
UP_WITHIN = 120.0
#: What a shell would only split into words.
_OWN = re.compile(r"cacheworkers [^$;&|<>*`]*")


class Page:
    """Runs blocks; a context manager that closes what they have opened."""

    def __init__(
        self,
        name: str,
        directory: Path,
        names: dict[str, Any],
        *,
        is_session: bool,
        new_database: Callable[[], str] | None = None,
    ) -> None:
        """
        Args:
            directory: where files are written and commands run.
            names: what the page's Python takes for granted.
            is_session: commands are run, not only checked.
            new_database: makes the database of each run of pytest, which would start a server of its own otherwise, as
                tests/integration/test_plugin.py has it do.
        """
        self._module = types.ModuleType("page_" + re.sub(r"\W", "_", name))
        self._names = self._module.__dict__
        self._names.update(names)
        self._directory = directory
        self._is_session = is_session
        self._new_database = new_database
        self._files: set[str] = set()
        self._staying: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = {port: str(free_port()) for port in PORTS}
        self._env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
        self._env["PYTHONUNBUFFERED"] = "1"  # a terminal shows each line immediately; a file would get it at the end
        self._printed = ""

    def __enter__(self) -> Page:
        sys.modules[self._module.__name__] = self._module
        sys.modules.update(dict.fromkeys(LAYOUT_MODULES, self._module))
        return self

    def __exit__(self, *_: object) -> None:
        for command in reversed([*self._staying]):
            self._stop(command)
        for value in list(self._names.values()):
            if isinstance(value, Cache):
                value.close()
            elif isinstance(value, Engine):
                value.dispose()
        for name in (self._module.__name__, *LAYOUT_MODULES):
            del sys.modules[name]

    def run_loads(self, block: Block) -> str:
        """Do with a block what its language and its mark ask for, and return what that was.

        Raises:
            AssertionError: nobody knows what to do with it, or it does not do what the page says.
        """
        match block.language, block.mark:
            case "python", "":
                self._run(block)
                return "run"
            case "pyi", "":
                compile(block.text, block.place, "exec")
                return "compiled"
            case _, "file" | "adds":
                self._write(block)
                return "written"
            case "bash", "" | "stays" | "terminals" | "status":
                return self._shell(block)
            case "text", "prints":
                assert _timeless(block.text) == _timeless(self._printed), f"{block.place}: it prints {self._printed!r}"
                return "printed"
            case "text", "":
                return "shown"
            case ("toml" | "json") as language, "":
                _READERS[language](block.text)
                return "parsed"
            case "mermaid", "":
                drawing.svg(drawing.parse(block.text))
                return "drawn"
            case language, "" if language in DIRECTIVES:
                return "directive"
        raise AssertionError(f"{block.place}: nobody tests a {block.language or 'nameless'} block {block.mark}")

    def _run(self, block: Block) -> None:
        source = "\n" * block.line + textwrap.dedent(block.text)  # so that a traceback names the page's lines
        code = compile(source, str(ROOT / block.page), "exec", dont_inherit=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, self._names)
        self._printed = out.getvalue()

    def _write(self, block: Block) -> None:
        path = self._directory / block.says
        text = self._moved(block.text)
        if block.mark == "adds":
            text = f"{path.read_text()}\n\n{text}"
        if block.language == "python":
            compile(text, block.place, "exec")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self._files.add(block.says)

    def _shell(self, block: Block) -> str:
        lines = shell.lines_of(block.text)
        for line in lines:
            try:
                shell.check(line, self._files)
            except shell.BadLine as error:
                raise AssertionError(f"{block.place}: {error}") from None
        if not self._is_session or any(line.startswith("pip ") for line in lines):
            return "checked"
        if block.mark == "stays":
            self._execute(lines[:-1], block)
            self._stay(lines[-1], block)
        elif block.mark == "terminals":
            for line in lines:
                self._stay(line, block)
                if printed := line.partition("# prints ")[2]:
                    assert printed == self._printed.strip(), f"{block.place}: {line} prints {self._printed!r}"
        else:
            self._execute(lines, block)
        return "executed"

    def _execute(self, lines: list[str], block: Block) -> None:
        """Run commands in a shell, and take over what they export; our own without one, where that is the same."""
        printed = []
        for is_own, some in itertools.groupby(lines, lambda line: not block.mark and bool(_OWN.fullmatch(line))):
            if is_own:
                printed += [self._execute_own(self._moved(line), block) for line in some]
            else:
                printed.append(self._execute_in_shell([*map(self._moved, some)], block))
        self._printed = "".join(printed)

    def _execute_own(self, line: str, block: Block) -> str:
        words = shlex.split(line, comments=True)[1:]
        done = own_command.run(words, cwd=self._directory, env=self._env)
        assert done.returncode == 0, f"{block.place}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def _execute_in_shell(self, lines: list[str], block: Block) -> str:
        kept = self._directory / ".env"
        if self._new_database is not None and any(line.startswith("pytest") for line in lines):
            self._env["TEST_DATABASE_URL"] = self._new_database()
        script = "\n".join(["set -e", *lines, f"env -0 > {kept}"])
        wanted = 0
        if block.mark == "status":
            script, wanted = "\n".join(["set -e", *lines]), int(block.says)
        done = subprocess.run(
            ["bash", "-c", script], cwd=self._directory, env=self._env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == wanted, f"{block.place}: {done.returncode}: {done.stdout}{done.stderr}"
        if not wanted:
            self._env = dict(pair.split("=", 1) for pair in kept.read_text().split("\0") if pair)
        return done.stdout

    def _stay(self, command: str, block: Block) -> None:
        """Start a command, again if it goes on already, and return when it is up; in `terminals` it may also end."""
        self._stop(command)
        log = self._directory / f"{block.line}-{len(self._staying)}.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", "exec " + self._moved(command)],
                cwd=self._directory,
                env=self._env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._staying[command] = process
        try:
            wait_until(lambda: process.poll() is not None or re.search(block.says, log.read_text()), UP_WITHIN)
        except AssertionError:
            raise AssertionError(f"{block.place}: it has not said {block.says!r}: {log.read_text()}") from None
        ended, self._printed = process.poll(), log.read_text()
        may_end = block.mark == "terminals" and ended == 0
        assert ended is None or may_end, f"{block.place}: {command} ended: {self._printed}"

    def _stop(self, command: str) -> None:
        """End a command as Ctrl-C does."""
        process = self._staying.pop(command, None)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _moved(self, text: str) -> str:
        for named, taken in self._ports.items():
            text = text.replace(named, taken)
        return text


def _timeless(printed: str) -> str:
    return re.sub(r"\d[\d.]*( ?m?s)\b", r"#\1", printed.strip())


_READERS = {"toml": tomllib.loads, "json": json.loads}
