"""The shop's HTTP API, on Starlette: reads are cached, changes are a PUT."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app import shop
from app.same_site import is_ours
from cacheworkers.ops.metrics import exposition
from cacheworkers.web import REFUSED, HttpPolicy, asgi, refusal
from cacheworkers.web.starlette import Responder

#: Everybody sees the same products; each reuse is revalidated, so that proxies show a new price immediately.
POLICY = HttpPolicy(is_public=True, none_is_404=True)
READS = ["GET", "HEAD"]
MAX_ID = 2**31 - 1
MAX_BODY_BYTES = 1000
#: Names beside addresses and localhost by which this API may be asked: `web` in a compose network.
HOSTS = frozenset(filter(None, os.environ.get("ALLOWED_HOSTS", "").split(",")))

T = TypeVar("T")
ASGI = Callable[[dict[str, Any], Callable[..., Awaitable[Any]], Callable[..., Awaitable[None]]], Awaitable[None]]
respond = Responder(POLICY)


class NewPrice(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /products/{id}/price; cents."""

    amount: int


class NewProduct(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /products/{id}; what is left out stays as it is."""

    name: str | None = None
    price: Decimal | None = None
    category_id: int | None = None


class ProductEndpoint(HTTPEndpoint):
    """/products/{number}"""

    async def get(self, request: Request) -> Response:
        """Return one product."""
        return await respond(request, shop.product.aread_json, _id(request))

    async def put(self, request: Request) -> Response:
        """Change a product's name, price and category; every listing that it leaves or enters shows it."""
        new = await _body(request, NewProduct)
        if new.price is not None and not (0 < new.price <= 10**9 and new.price == round(new.price, 2)):
            raise HTTPException(422, f"price must be 0.01 to 10^9 with at most two decimals, got {new.price}")
        if new.name is not None and not 0 < len(new.name) <= 200:
            raise HTTPException(422, f"name must have 1 to 200 characters, got {len(new.name)}")
        try:
            view = await asyncio.to_thread(shop.change, _id(request), new.name, new.price, new.category_id)
        except LookupError as error:
            raise HTTPException(422, str(error)) from None
        if view is None:
            raise HTTPException(404, f"there is no product {_id(request)}")
        return _json(msgspec.json.encode(view))


async def category(request: Request) -> Response:
    """One page of a category."""
    page = _number("page", request.query_params.get("page", "1"))
    return await respond(request, shop.category_page.aread_json, _id(request, "category id"), page)


async def deals(request: Request) -> Response:
    """What is in the sale."""
    return await respond(request, shop.deals.aread_json)


async def put_price(request: Request) -> Response:
    """Change a product's price, in cents; return when that was committed."""
    amount, number = (await _body(request, NewPrice)).amount, _id(request)
    if not 0 < amount <= 10**11:
        raise HTTPException(422, f"amount must be 1 to 10^11 cents, got {amount}")
    committed_at = await asyncio.to_thread(shop.set_price, number, amount)
    if committed_at is None:
        raise HTTPException(404, f"there is no product {number}")
    return _json(msgspec.json.encode({"id": number, "amount": amount, "committed_at": committed_at}))


async def uncached_product(request: Request) -> Response:
    """The same product straight from the database, for comparison."""
    payload = await asyncio.to_thread(shop.uncached_product, _id(request))
    if payload == b"null":
        raise HTTPException(404, f"there is nothing at {request.url.path}")
    return _json(payload)


async def metrics(_: Request) -> Response:
    """What the processes of this directory have counted, for Prometheus."""
    return Response(await asyncio.to_thread(exposition), media_type=CONTENT_TYPE_LATEST)


async def health(_: Request) -> Response:
    """This process is alive, whatever else is not: an orchestrator restarts it only when this fails."""
    return _json(b'{"alive":true}')


async def ready(_: Request) -> Response:
    """This process can answer reads: from the store without the database, or from the database without the store."""
    database, store = await asyncio.gather(asyncio.to_thread(shop.is_database_up), asyncio.to_thread(shop.is_store_up))
    body = msgspec.json.encode({"database": database, "store": store})
    return Response(body, 200 if database or store else 503, media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    """Answer an error as RFC 9457 has it."""
    assert isinstance(error, HTTPException)
    detail, headers = error.detail, dict(error.headers or {})
    if error.status_code == 405:
        detail = f"the methods here are {headers.get('allow', headers.get('Allow', ''))}, got {request.method}"
    elif error.status_code == 404 and detail == "Not Found":
        detail = f"there is nothing at {request.url.path}"
    title = msgspec.json.encode({"type": "about:blank", "status": error.status_code, "detail": detail})
    return Response(title, error.status_code, headers, media_type="application/problem+json")


async def _unavailable(_: Request, error: Exception) -> Response:
    """Answer a write that the database or the store did not take; what reads raise is answered with their policy."""
    made = refusal(error, POLICY)  # type: ignore[arg-type]  # registered for these errors alone
    return Response(made.body, made.status, {name.decode(): value.decode() for name, value in made.headers})


def _id(request: Request, what: str = "product id") -> int:
    return _number(what, request.path_params["number"])


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) <= MAX_ID):
        raise HTTPException(422, f"{name} must be a whole number from 1 to {MAX_ID}, got {text[:40]!r}")
    return int(text)


async def _body(request: Request, kind: type[T]) -> T:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body has at most {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        fields = ", ".join(getattr(kind, "__struct_fields__", ()))
        raise HTTPException(422, f"the body must be a JSON object of {fields}: {error}") from None


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def lean_products(framework: ASGI) -> ASGI:
    """Answer what is read most, GET /products/{id}, without the framework, and leave all else to it.

    A hit in this process's memory takes a few microseconds, and routing and wrapping it some fifty more: here, where
    most requests are such hits, that is most of the work.  Do this for one or two hot routes, once a profile says so.
    """
    respond = asgi.Responder(POLICY)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] in READS and scope["path"].startswith("/products/"):
            text = scope["path"][len("/products/") :]
            if text.isascii() and text.isdigit() and len(text) <= 10 and 0 < (number := int(text)) <= MAX_ID:
                await respond.serve(scope, send, shop.product.aread_json, number)
                return
        await framework(scope, receive, send)

    return app


def own_site_only(framework: ASGI) -> ASGI:
    """Refuse changes that a page of another site has sent: the shop has no log-in that would stop them."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] not in READS:
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            if not is_ours(headers.get(b"host", ""), headers.get(b"origin", ""), HOSTS):
                detail = "changes are taken from this API's own address alone"
                body = msgspec.json.encode({"type": "about:blank", "status": 403, "detail": detail})
                refused = Response(body, 403, media_type="application/problem+json")
                await refused(scope, receive, send)
                return
        await framework(scope, receive, send)

    return app


starlette = Starlette(
    routes=[
        Route("/products/{number}", ProductEndpoint),
        Route("/products/{number}/price", put_price, methods=["PUT"]),
        Route("/categories/{number}", category, methods=READS),
        Route("/deals", deals, methods=READS),
        Route("/uncached/products/{number}", uncached_product, methods=READS),
        Route("/metrics", metrics, methods=READS),
        Route("/health", health, methods=READS),
        Route("/ready", ready, methods=READS),
    ],
    exception_handlers={HTTPException: _problem, **dict.fromkeys(REFUSED, _unavailable)},
)
app = lean_products(own_site_only(starlette))
