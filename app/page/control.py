"""What `make up` lets its page do to the processes that it started: one JSON request and one answer a connection.

The socket is in a directory that only this user can enter.  Nothing is named by process id: what `make up` did not
start is out of reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal, Self

import msgspec

from app.supervisor import Supervisor
from cacheworkers.testing.servers import Valkey

#: Names the socket in the environment of what `make up` starts.
VARIABLE = "UP_CONTROL"
NOT_OURS = "REDIS_URL names the store: `make up` did not start it, and leaves it alone"
ANSWER_WITHIN = 40.0


class Refused(Exception):
    """`make up` cannot, or may not, do what was asked; the text says why."""


class Order(msgspec.Struct, frozen=True):
    """What is asked for; `name` is a worker's."""

    do: Literal["state", "kill", "stop-store", "start-store"]
    name: str = ""


class WorkerState(msgspec.Struct, frozen=True):
    """One Celery worker, by its name in the Procfile."""

    name: str
    pid: int
    is_ready: bool
    restarts: int


class State(msgspec.Struct, frozen=True):
    """What can be done now.

    Attributes:
        store_pid: the store's process; 0 while it is stopped, None if it is not ours.
        why: why something could not be done; empty if all is well.
    """

    workers: tuple[WorkerState, ...] = ()
    store_pid: int | None = None
    why: str = ""


class Control:
    """Listens, in the process of `make up`; an async context manager."""

    def __init__(self, supervisor: Supervisor, store: Valkey | None, workers: Collection[str]) -> None:
        """
        Args:
            workers: names of those that may be killed.
        """
        self._supervisor = supervisor
        self._workers = workers
        self._store = store
        self._store_pid = _pid(store)
        self._one_at_a_time = asyncio.Lock()
        self._dir = Path(tempfile.mkdtemp(prefix="cwup-"))  # a socket's path has at most 107 bytes: not in the data
        self.path = self._dir / "control"
        self._server: asyncio.AbstractServer | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        shutil.rmtree(self._dir, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            order = msgspec.json.decode(await reader.readline(), type=Order)
            await self._do(order)
            answer = self._state()
        except (Refused, RuntimeError, msgspec.MsgspecError) as error:
            answer = msgspec.structs.replace(self._state(), why=str(error))
        with contextlib.suppress(ConnectionError):
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        writer.close()

    async def _do(self, order: Order) -> None:
        match order.do:
            case "state":
                pass
            case "kill":
                if order.name not in self._workers or not self._supervisor.kill(order.name):
                    raise Refused(f"a worker must be one that runs and is started again, got {order.name!r}")
            case "stop-store" | "start-store":
                store = self._ours()
                async with self._one_at_a_time:  # a store that is ending still holds its port
                    if order.do == "stop-store":
                        await asyncio.to_thread(store.close)
                    elif store.process is None:
                        # On the loop's own thread, for some tens of milliseconds: the kernel ends the store with the
                        # thread that started it.
                        store.start()
                    self._store_pid = _pid(store)

    def _ours(self) -> Valkey:
        if self._store is None:
            raise Refused(NOT_OURS)
        return self._store

    def _state(self) -> State:
        workers = tuple(
            WorkerState(child.name, child.process.pid, child.is_ready, child.restarts or 0)
            for child in sorted(self._supervisor.restarting(), key=lambda child: child.name)
            if child.name in self._workers
        )
        return State(workers, self._store_pid)


def _pid(store: Valkey | None) -> int | None:
    """Return a store's process; 0 if it is stopped, None if it is not ours."""
    if store is None:
        return None
    return store.process.pid if store.process is not None else 0


async def ask(do: Literal["state", "kill", "stop-store", "start-store"], name: str = "") -> State:
    """Have `make up` do something; return what holds then.

    Raises:
        Refused: it cannot, or this process was not started by `make up`.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        raise Refused("these processes were not started by `make up`: there is nobody who would start them again")
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(msgspec.json.encode(Order(do, name)) + b"\n")
                state = msgspec.json.decode(await reader.readline(), type=State)
            finally:
                writer.close()
    except (OSError, msgspec.MsgspecError) as error:
        raise Refused(f"`make up` does not answer: {error}") from error
    if state.why:
        raise Refused(state.why)
    return state
