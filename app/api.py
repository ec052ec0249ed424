"""The product API: plain ASGI, payload bytes straight from the cache; errors as RFC 9457 problem details."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from app import shop
from cacheworkers.ops.metrics import exposition
from cacheworkers.web import UNAVAILABLE, Answer, HttpPolicy, refusal
from cacheworkers.web.asgi import Responder, send_answer

#: Everybody sees the same products; each reuse is revalidated, so that a new price shows at once behind proxies too.
POLICY = HttpPolicy(is_public=True, none_is_404=True)
respond = Responder(POLICY)
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_READS = ("GET", "HEAD")
_MOST = 2**31 - 1


class Problem(Exception):
    """An error as RFC 9457 tells it."""

    def __init__(self, status: int, title: str, detail: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(detail)
        body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
        self.answer = _whole(status, b"application/problem+json", body, *headers)


class NewPrice(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /products/{id}/price; cents."""

    amount: int


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer one request."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] != "http":
        return
    try:
        answer = await _answer(scope["method"], scope["path"], scope, receive)
    except Problem as problem:
        answer = problem.answer
    except UNAVAILABLE as error:  # a price that could not be set; what reads raise is answered with their policy
        answer = refusal(error, POLICY)
    await send_answer(send, answer)


async def _answer(method: str, path: str, scope: dict[str, Any], receive: Receive) -> Answer:
    match path.split("/")[1:]:
        case ["products", number]:
            _only(_READS, method)
            return await respond(scope, shop.product.aread_json, _number("product id", number))
        case ["products", number, "price"]:
            _only(("PUT",), method)
            return _json(await _put_price(_number("product id", number), receive))
        case ["categories", number]:
            _only(_READS, method)
            category = _number("category id", number)
            page = _number("page", parse_qs(scope["query_string"].decode("latin-1")).get("page", ["1"])[-1])
            return await respond(scope, shop.category_page.aread_json, category, page)
        case ["deals"]:
            _only(_READS, method)
            return await respond(scope, shop.deals.aread_json)
        case ["uncached", "products", number]:
            _only(_READS, method)
            return _found(await asyncio.to_thread(shop.uncached_product, _number("product id", number)), path)
        case ["metrics"]:
            _only(_READS, method)
            return _whole(200, CONTENT_TYPE_LATEST.encode(), await asyncio.to_thread(exposition))
        case ["health"]:
            _only(_READS, method)
            is_up = await asyncio.to_thread(shop.is_database_up)
            return _json(msgspec.json.encode({"database": is_up}))
    raise Problem(404, "Not Found", f"there is nothing at {path}")


async def _put_price(product_id: int, receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > 1000:
            raise Problem(413, "Content Too Large", "the body has at most 1000 bytes")
    try:
        new = msgspec.json.decode(body, type=NewPrice)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Problem(422, "Unprocessable Content", f'the body must be {{"amount": cents}}: {error}') from None
    if not 0 < new.amount <= 10**11:
        raise Problem(422, "Unprocessable Content", f"amount must be 1 to 10^11 cents, got {new.amount}")
    committed_at = await asyncio.to_thread(shop.set_price, product_id, new.amount)
    if committed_at is None:
        raise Problem(404, "Not Found", f"there is no product {product_id}")
    return msgspec.json.encode({"id": product_id, "amount": new.amount, "committed_at": committed_at})


def _only(allowed: tuple[str, ...], method: str) -> None:
    if method not in allowed:
        methods = ", ".join(allowed)
        detail = f"the methods here are {methods}, got {method}"
        raise Problem(405, "Method Not Allowed", detail, (b"allow", methods.encode()))


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) <= _MOST:
        raise Problem(
            422, "Unprocessable Content", f"{name} must be a whole number from 1 to {_MOST}, got {text[:40]!r}"
        )
    return int(text)


def _found(payload: bytes, path: str) -> Answer:
    if payload == b"null":
        raise Problem(404, "Not Found", f"there is nothing at {path}")
    return _json(payload)


def _json(body: bytes) -> Answer:
    return _whole(200, b"application/json", body)


def _whole(status: int, content_type: bytes, body: bytes, *headers: tuple[bytes, bytes]) -> Answer:
    length = (b"content-length", b"%d" % len(body))
    return Answer(status, [(b"content-type", content_type), length, *headers], body)
