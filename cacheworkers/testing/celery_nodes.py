"""pytest-celery's nodes and clusters over processes of this machine instead of containers; needs no Docker.

What pytest-celery asks of a container is asked of `LocalContainer`; everything above that is its own: nodes, clusters,
kill, restart, logs, and the set-up that knows when all are ready.
"""

from __future__ import annotations

import os
import signal as signals
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from pytest_celery import CeleryTestWorker, CeleryWorkerCluster, CeleryWorkerContainer

from cacheworkers.testing.servers import wait_until
from cacheworkers.workers.worker_command import app_path


class LocalContainer:
    """What pytest-docker-tools takes for a container: a process with its log, in a process group of its own."""

    def __init__(self, name: str, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self.id = self.name = name
        self._command, self._cwd, self._env, self._log = command, cwd, env, log
        self._logged = 0
        self._runtime: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start the process."""
        self._logged = self._log.stat().st_size if self._log.exists() else 0
        with open(self._log, "ab") as out:
            self._runtime = subprocess.Popen(
                self._command, cwd=self._cwd, env=self._env, stdout=out, stderr=out, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._runtime.pid

    @property
    def status(self) -> str:
        """What Docker would call it."""
        return "running" if self._runtime.poll() is None else "exited"

    @property
    def attrs(self) -> dict[str, Any]:
        """Nothing to wait for: no network of its own, no ports."""
        return {"NetworkSettings": {"Networks": {}, "Ports": {}}}

    def reload(self) -> None:
        """Do nothing: the state is never a copy."""

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal: SIGKILL to all of its processes, as the end of a container does, others to the first."""
        number = signals.Signals[signal] if isinstance(signal, str) else int(signal or signals.SIGKILL)
        (os.killpg if number == signals.SIGKILL else os.kill)(self._runtime.pid, number)
        if number == signals.SIGKILL:
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
        """Return what it has logged since its last start."""
        return self._log.read_bytes()[self._logged :]

    def remove(self) -> None:
        """End it."""
        if self.status == "running":
            self.kill()


class LocalWorker(CeleryWorkerContainer):  # type: ignore[misc]  # pytest-celery has no types
    """A worker on this machine.  Its readiness is looked for often, instead of once a second."""

    def ready(self) -> bool:
        """Wait until it takes messages."""
        wait_until(lambda: self.ready_prompt in self.logs() or self.status == "exited", 120.0)
        return bool(super().ready())

    def restart(self, timeout: float = 60) -> None:
        """Stop it, start it, and wait until it is ready."""
        self._container.restart(timeout)
        self.ready()

    def teardown(self) -> None:
        """End it."""
        self._container.remove()


def start_workers(
    app: Celery,
    names: Sequence[str],
    log_dir: Path,
    *,
    path: str | None = None,
    queues: Sequence[str] = (),
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | str = ".",
) -> CeleryWorkerCluster:
    """Start a worker for each name, and return them as a cluster of pytest-celery; they may not be ready yet.

    Args:
        names: of the nodes.
        log_dir: where each worker's log is written.
        path: what `celery -A` takes; by default the module in which the app is found.
        queues: that they consume; all of the app's, and the cache's, unless given.
        options: of `celery worker`.
        env: added to this process's environment.
        cwd: the directory from which the app can be imported.
    """
    command = [sys.executable, "-m", "celery", "-A", path or app_path(app), "worker", "-l", "DEBUG"]
    command += ["--without-mingle", "--without-gossip", *(["-Q", ",".join(queues)] if queues else []), *options]
    nodes = []
    for name in names:
        container = LocalContainer(
            name,
            [*command, "-n", f"{name}@%h"],
            cwd=Path(cwd).absolute(),
            env={**os.environ, **(env or {})},
            log=log_dir / f"{name}.log",
        )
        nodes.append(CeleryTestWorker(LocalWorker(container), app=app))
    return CeleryWorkerCluster(*nodes)
