"""A hot entry's answer is made once and sent many times: what is added to one response is in no other."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request

from cacheworkers import Cache, Load, Read
from cacheworkers.testing.servers import wait_until
from cacheworkers.web import asgi, starlette

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/products/42", "headers": []}


@pytest.fixture
def hit(cache: Cache) -> Read:
    """A read that memory has answered."""

    @cache.loader(early=0)
    def product(load: Load, product_id: int) -> dict[str, int]:
        return {"id": product_id}

    wait_until(lambda: product.read_json(42).tier == "l1")
    return product.read_json(42)


def again(read: Read) -> Callable[[], Any]:
    """Return what a loader's `aread_json` is while nothing changes."""

    async def aread_json() -> Read:
        return read

    return aread_json


def test_a_cookie_is_set_for_one_client(hit: Read) -> None:
    """Starlette appends to a response's own list of headers; the next client must not get the cookie."""
    respond = starlette.Responder()

    first = asyncio.run(respond(Request(SCOPE), again(hit)))
    first.set_cookie("session", "secret")
    second = asyncio.run(respond(Request(SCOPE), again(hit)))

    assert "set-cookie" in first.headers
    assert "set-cookie" not in second.headers


def test_what_a_middleware_adds_is_added_to_one_response(hit: Read) -> None:
    """Compression writes Content-Encoding into the list that it is sent; the next body is not compressed."""
    respond = asgi.Responder()
    sent: list[list[tuple[bytes, bytes]]] = []

    async def compress(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            sent.append(list(message["headers"]))
            message["headers"].append((b"content-encoding", b"gzip"))

    async def serve() -> None:
        await respond.serve(SCOPE, compress, again(hit))

    asyncio.run(serve())
    asyncio.run(serve())

    assert sent[0] == sent[1]


def test_what_memory_drops_is_not_kept_alive_by_its_answer(cache: Cache) -> None:
    """`l1_bytes` bounds what a process keeps: of a thousand answers nothing is kept but their headers."""

    @cache.loader(early=0)
    def page(load: Load, number: int) -> str:
        return chr(97 + number) * 1_000_000

    respond = asgi.Responder()
    wait_until(lambda: page.read_json(0).tier == "l1")
    tracemalloc.start()
    for number in range(20):
        wait_until(lambda number=number: page.read_json(number).tier == "l1")
        read = page.read_json(number)
        first = asyncio.run(respond(SCOPE, again(read)))
        assert asyncio.run(respond(SCOPE, again(read))).headers is first.headers
        del read, first
    cache.clear()

    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 5_000_000
