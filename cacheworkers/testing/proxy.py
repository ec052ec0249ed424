"""FaultProxy: a TCP proxy that loses, holds or cuts what passes, for tests of what a bad network does."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class FaultProxy:
    """Stands between clients and a server on loopback; a context manager.

    Requests always reach the server.  Its replies are what can be held: to the client that is a late reply, the case
    in which it cannot know whether its command has run.

    Attributes:
        url: for clients, with the scheme and path of the server's.
        connections: how many clients have connected so far.
    """

    def __init__(self, url: str) -> None:
        """
        Args:
            url: the server's, such as `redis://127.0.0.1:6379/0`.
        """
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"{parts.scheme}://127.0.0.1:{self._listening.getsockname()[1]}{parts.path}"
        self.connections = 0
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._is_closed = False
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hold_replies(self) -> None:
        """Keep back what the server answers from now on."""
        self._open.clear()

    def release(self) -> None:
        """Deliver what was kept back, late, and all that follows."""
        self._open.set()

    def cut(self) -> None:
        """Close every connection; new ones are accepted."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            _hang_up(each)

    def close(self) -> None:
        """Accept no more, and close every connection."""
        self._is_closed = True
        _hang_up(self._listening)
        self._open.set()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._is_closed:
                client, _ = self._listening.accept()
                self.connections += 1
                try:
                    server = socket.create_connection(self._server)
                except OSError:
                    _hang_up(client)
                    continue
                with self._lock:
                    self._sockets |= {client, server}
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_reply:
                    self._open.wait()
                sink.sendall(data)
        for each in (source, sink):
            with self._lock:
                self._sockets.discard(each)
            _hang_up(each)


def _hang_up(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
