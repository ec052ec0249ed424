"""pytest-celery's nodes without Docker: its own classes, over processes of this machine instead of containers.

What pytest-celery asks of a container is asked of `LocalContainer`; everything above that is its own: nodes, clusters,
kill, restart, logs, the set-up that tells when all are ready.
"""

from __future__ import annotations

import os
import signal as signals
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_celery import CeleryWorkerContainer

from cacheworkers.testing.servers import wait_until


class LocalContainer:
    """What pytest-docker-tools takes for a container: a process with its log, in a process group of its own."""

    def __init__(self, name: str, command: Sequence[str], *, cwd: Path, env: dict[str, str], log: Path) -> None:
        self.id = self.name = name
        self._command, self._cwd, self._env, self._log = command, cwd, env, log
        self._logged = 0
        self._runtime: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        self._logged = self._log.stat().st_size if self._log.exists() else 0
        with open(self._log, "ab") as out:
            self._runtime = subprocess.Popen(
                self._command, cwd=self._cwd, env=self._env, stdout=out, stderr=out, start_new_session=True
            )

    @property
    def status(self) -> str:
        return "running" if self._runtime.poll() is None else "exited"

    @property
    def attrs(self) -> dict[str, Any]:
        """Nothing to wait for: no network of its own, no ports."""
        return {"NetworkSettings": {"Networks": {}, "Ports": {}}}

    def reload(self) -> None:
        """Its state is never a copy."""

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal: SIGKILL to all of its processes, as the end of a container does, others to the first."""
        number = _number(signal or "SIGKILL")
        (os.killpg if number == 9 else os.kill)(self._runtime.pid, number)
        if number == 9:
            self._runtime.wait()

    def restart(self, timeout: float = 60) -> None:
        """Stop as `docker restart` does, with SIGTERM and then SIGKILL, and start again."""
        if self.status == "running":
            self._runtime.terminate()
        try:
            self._runtime.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self.start()

    def logs(self) -> bytes:
        """Return what it has said since its last start."""
        return self._log.read_bytes()[self._logged :]

    def remove(self) -> None:
        if self.status == "running":
            self.kill()


class LocalWorker(CeleryWorkerContainer):
    """A worker on this machine.  Its readiness is looked for often, instead of once a second."""

    def ready(self) -> bool:
        wait_until(lambda: self.ready_prompt in self.logs() or self.status == "exited")
        return bool(super().ready())

    def restart(self, timeout: float = 60) -> None:
        self._container.restart(timeout)
        self.ready()

    def teardown(self) -> None:
        self._container.remove()


def _number(named: str | int) -> int:
    return signals.Signals[named] if isinstance(named, str) else named
