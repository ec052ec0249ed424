"""The shop by Starlette."""

from __future__ import annotations

import shop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cacheworkers.web.starlette import Responder

respond = Responder(shop.POLICY)


async def show_product(request: Request) -> Response:
    """One product."""
    return await respond(request, shop.product.aread_json, request.path_params["product_id"])


async def show_slow(request: Request) -> Response:
    """What takes too long."""
    return await respond(request, shop.slow.aread_json)


app = Starlette(routes=[Route("/products/{product_id:int}", show_product), Route("/slow", show_slow)])
