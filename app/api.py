"""The product API: plain ASGI, payload bytes straight from the cache; errors as RFC 9457 problem details."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from app import shop
from cacheworkers import CacheworkersError, Freshness, LoadError, Read, ReadError

Send = Callable[[dict[str, Any]], Awaitable[None]]
_JSON = [(b"content-type", b"application/json")]
_PROBLEM = [(b"content-type", b"application/problem+json")]
_MOST = 2**31 - 1


class Problem(Exception):
    """An error as RFC 9457 tells it."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})


class NewPrice(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /products/{id}/price; cents."""

    amount: int


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    """Answer one request."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] != "http":
        return
    headers = [*_JSON]
    status = 200
    try:
        body = await _answer(scope["method"], scope["path"], scope, receive, headers)
    except Problem as problem:
        status, body, headers = problem.status, problem.body, _PROBLEM
    except (ReadError, CacheworkersError) as error:
        title = "Load failed" if isinstance(error, LoadError) else "Not available now"
        status, body = 503, Problem(503, title, str(error)).body
        headers = [*_PROBLEM, (b"retry-after", b"1")]
    head = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _answer(
    method: str, path: str, scope: dict[str, Any], receive: Any, headers: list[tuple[bytes, bytes]]
) -> bytes:
    match path.split("/")[1:]:
        case ["products", number]:
            _only("GET", method)
            read = await shop.product.aread(_number("product id", number))
            headers.append((b"cache-status", _status(read)))
            return _found(msgspec.json.encode(read.value), path)
        case ["products", number, "price"]:
            _only("PUT", method)
            return await _put_price(_number("product id", number), receive)
        case ["categories", number]:
            _only("GET", method)
            page = parse_qs(scope["query_string"].decode()).get("page", ["1"])[-1]
            return _found(
                await shop.category_page.aget_json(_number("category id", number), _number("page", page)), path
            )
        case ["deals"]:
            _only("GET", method)
            payload: bytes = await shop.deals.aget_json()
            return payload
        case ["uncached", "products", number]:
            _only("GET", method)
            return _found(await asyncio.to_thread(shop.uncached_product, _number("product id", number)), path)
        case ["health"]:
            _only("GET", method)
            is_up = await asyncio.to_thread(shop.is_database_up)
            return msgspec.json.encode({"database": is_up})
    raise Problem(404, "Not found", f"there is nothing at {path}")


async def _put_price(product_id: int, receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > 1000:
            raise Problem(413, "Too large", "the body has at most 1000 bytes")
    try:
        new = msgspec.json.decode(body, type=NewPrice)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Problem(422, "Unprocessable", f'the body must be {{"amount": cents}}: {error}') from None
    if not 0 < new.amount <= 10**11:
        raise Problem(422, "Unprocessable", f"amount must be 1 to 10^11 cents, got {new.amount}")
    committed_at = await asyncio.to_thread(shop.set_price, product_id, new.amount)
    if committed_at is None:
        raise Problem(404, "Not found", f"there is no product {product_id}")
    return msgspec.json.encode({"id": product_id, "amount": new.amount, "committed_at": committed_at})


def _status(read: Read) -> bytes:
    """Return a Cache-Status (RFC 9211); of what is stale, the ttl is negative."""
    if read.tier == "load" or (read.tier == "store" and read.age <= read.waited):
        return b"cacheworkers; fwd=miss"
    return b"cacheworkers; hit; ttl=%d; detail=%s" % (
        0 if read.freshness is Freshness.FRESH else -1,
        read.tier.encode(),
    )


def _only(allowed: str, method: str) -> None:
    if method != allowed:
        raise Problem(405, "Method not allowed", f"the method here is {allowed}, got {method}")


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) <= _MOST:
        raise Problem(422, "Unprocessable", f"{name} must be a whole number from 1 to {_MOST}, got {text[:40]!r}")
    return int(text)


def _found(payload: bytes, path: str) -> bytes:
    if payload == b"null":
        raise Problem(404, "Not found", f"there is nothing at {path}")
    return payload
