"""JSON lines between the page and the processes that work for it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import IO, Any, TypeVar

import msgspec

T = TypeVar("T")


def say(message: Any) -> None:
    """Write one line to stdout, whole: several processes may share it."""
    os.write(1, msgspec.json.encode(message) + b"\n")


async def read_lines(stream: IO[Any], kind: type[T]) -> AsyncIterator[T]:
    """Yield what comes in on a pipe, until it ends."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), stream
    )
    while line := await reader.readline():
        yield msgspec.json.decode(line, type=kind)
    transport.close()


class Helper:
    """A process that takes orders on stdin and reports on stdout; started again when it ends."""

    def __init__(self, words: Sequence[str], kind: Any, received: Callable[[Any], None]) -> None:
        """
        Args:
            words: what comes after `python -m`.
            kind: type of its lines.
            received: called with each of them.
        """
        self._words = words
        self._decode = msgspec.json.Decoder(kind).decode
        self._received = received
        self._last_order: bytes = b""
        self._runtime: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Keep it running, until cancelled; the last order is given to each new one."""
        try:
            while True:
                self._runtime = process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    *self._words,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
                if self._last_order:
                    self._write(self._last_order)
                assert process.stdout is not None
                while line := await process.stdout.readline():
                    self._received(self._decode(line))
                await process.wait()
                await asyncio.sleep(1.0)
        finally:
            if self._runtime is not None and self._runtime.stdin is not None:
                self._runtime.stdin.close()  # it ends with its orders

    def order(self, order: Any) -> None:
        """Give an order, that holds until the next one."""
        self._last_order = msgspec.json.encode(order) + b"\n"
        self._write(self._last_order)

    def _write(self, line: bytes) -> None:
        if self._runtime is not None and self._runtime.stdin is not None:
            self._runtime.stdin.write(line)
