"""Waker: wakes a thread that waits in a selector, from any other thread."""

from __future__ import annotations

import socket


class Waker:
    """A socket pair: the selector watches one end, and whoever wakes it writes to the other."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def fileno(self) -> int:
        """Return what a selector registers."""
        return self._receiver.fileno()

    def wake(self) -> None:
        """Wake the selector."""
        try:
            self._sender.send(b".")
        except OSError:  # it is full, and so wakes already
            pass

    def clear(self) -> None:
        """Forget all calls of `wake` so far."""
        self._receiver.recv(4096)

    def close(self) -> None:
        """Close both ends."""
        self._receiver.close()
        self._sender.close()
