"""The page's server: plain ASGI; static files, one stream of server-sent events, and actions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from app.page.control import Refused
from app.page.sale import Sale
from app.same_site import is_ours

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".woff2": b"font/woff2",
}
SAFE = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
#: Seconds between comments that keep a quiet stream open.
QUIET_FOR = 15.0


class Page:
    """The ASGI app; the sale runs from startup to shutdown."""

    def __init__(self) -> None:
        self._files = {
            f"/{path.relative_to(STATIC)}": (TYPES[path.suffix], path.read_bytes())
            for path in STATIC.rglob("*")
            if path.suffix in TYPES
        }
        self._files["/"] = self._files["/index.html"]
        self._sale: Sale | None = None
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "lifespan.shutdown":
            self._sale = Sale()
            self._running = asyncio.create_task(self._sale.run())
            await send({"type": "lifespan.startup.complete"})
        if self._sale is not None and self._running is not None:
            self._sale.end()
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        sale = self._sale
        assert sale is not None
        method, path = scope["method"], scope["path"]
        headers = dict(scope["headers"])
        if not is_ours(headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin", b"").decode("latin-1")):
            await _problem(send, 403, "this page answers to its own address alone")
        elif method == "POST" and path.startswith("/actions/"):
            await _act(sale, path.removeprefix("/actions/"), send)
        elif method not in ("GET", "HEAD"):
            await _problem(send, 405, f"the method here is GET, got {method}")
        elif path == "/health":
            await _reply(send, 200, b'{"page":true}', b"application/json")
        elif path == "/events":
            await _stream(sale, receive, send)
        elif path in self._files:
            kind, body = self._files[path]
            await _reply(send, 200, body, kind, is_head=method == "HEAD")
        else:
            await _problem(send, 404, f"there is nothing at {path}")


async def _act(sale: Sale, name: str, send: Send) -> None:
    if name not in sale.actions:
        await _problem(send, 404, f"an action is one of {', '.join(sale.actions)}, got {name!r}")
        return
    try:
        text = await sale.actions[name]()
    except Refused as error:
        await _problem(send, 409, str(error))
    else:
        await _reply(send, 200, msgspec.json.encode({"text": text}), b"application/json")


async def _stream(sale: Sale, receive: Receive, send: Send) -> None:
    """Send messages until the reader goes, or there are no more."""
    headers = [*SAFE, (b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"retry: 1000\n\n", "more_body": True})
    with sale.messages() as queue:
        sending = asyncio.create_task(_send_messages(queue, send))
        leaving = asyncio.create_task(_until_gone(receive))
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
    with contextlib.suppress(Exception):  # nobody may be there any more
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_messages(queue: asyncio.Queue[Any], send: Send) -> None:
    while True:
        try:
            message = await asyncio.wait_for(queue.get(), QUIET_FOR)
        except TimeoutError:
            body = b": here\n\n"
        else:
            if message is None:
                return
            body = b"event: %s\ndata: %s\n\n" % (message.event.encode(), message.data)
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _problem(send: Send, status: int, detail: str) -> None:
    body = msgspec.json.encode({"type": "about:blank", "status": status, "detail": detail})
    await _reply(send, status, body, b"application/problem+json")


async def _reply(send: Send, status: int, body: bytes, kind: bytes, *, is_head: bool = False) -> None:
    headers = [*SAFE, (b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else body})


app = Page()
