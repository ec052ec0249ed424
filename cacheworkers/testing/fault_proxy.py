"""FaultProxy: a TCP proxy that loses, holds, delays or cuts what passes, for tests of what a bad network does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit


class FaultProxy:
    """Stands between clients and a server on loopback; a context manager.

    Requests always reach the server.  Its replies are what can be held: to the client that is a late reply, the case
    in which it cannot know whether its command has run.

    Attributes:
        url: for clients, with the scheme and path of the server's.
        connections: how many clients have connected so far.
        delay: seconds by which replies come later, while it is not 0.
    """

    def __init__(self, url: str, only: bytes = b"") -> None:
        """
        Args:
            url: the server's, such as `redis://127.0.0.1:6379/0`.
            only: what is held, delayed and cut are connections whose client has sent these bytes; `b"TRACKING"` means
                those that receive invalidation messages.
        """
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"{parts.scheme}://127.0.0.1:{self._listening.getsockname()[1]}{parts.path}"
        self.connections = 0
        self.delay = 0.0
        self._only = only
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
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
        """Close every connection that is meant; new ones are accepted."""
        with self._lock:
            links = [link for link in self._links if link.is_meant]
        for link in links:
            link.hang_up()

    def close(self) -> None:
        """Accept no further connections, and close all that are open."""
        self._is_closed = True
        _hang_up(self._listening)
        self._open.set()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.hang_up()

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
                link = _Link(client, server, is_meant=not self._only)
                with self._lock:
                    self._links.add(link)
                threading.Thread(target=self._pass_requests, args=(link,), daemon=True).start()
                threading.Thread(target=self._pass_replies, args=(link,), daemon=True).start()

    def _pass_requests(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.client.recv(1 << 16):
                if self._only and self._only in data:
                    link.is_meant = True
                link.server.sendall(data)
        self._end(link)

    def _pass_replies(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.server.recv(1 << 16):
                if link.is_meant:
                    self._open.wait()
                    time.sleep(self.delay)
                link.client.sendall(data)
        self._end(link)

    def _end(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)
        link.hang_up()


class _Link:
    """One client's connection, and the one to the server for it."""

    def __init__(self, client: socket.socket, server: socket.socket, *, is_meant: bool) -> None:
        self.client = client
        self.server = server
        self.is_meant = is_meant

    def hang_up(self) -> None:
        _hang_up(self.client)
        _hang_up(self.server)


def _hang_up(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
